"""Which fields does a citation of a page have, in all of OpenAI's formats?"""

from typing import Any

from common.canonical.events import Citation


def citation_fields(citation: Citation) -> dict[str, Any]:
    """Source: https://platform.openai.com/docs/guides/tools-web-search#output-and-citations"""
    return {
        "start_index": citation.start,
        "end_index": citation.end,
        "url": citation.url,
        "title": citation.title or citation.url,
    }
