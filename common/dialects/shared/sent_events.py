"""How does a dialect read back what its client was sent?

The bytes were written by us, or passed through from a vendor. So only one thing is certain: they are complete SSE blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from common.dialects.shared.openai_words import DONE
from common.sse import read_block


def parse_events(blocks: Sequence[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield the JSON object of each block; None for a block without one, such as ``[DONE]``."""
    for block in blocks:
        try:
            event = orjson.loads(read_block(block)[1])
        except orjson.JSONDecodeError:
            event = None
        yield event if isinstance(event, dict) else None


def is_done(block: bytes) -> bool:
    """Whether a block is ``[DONE]``, which ends streams of OpenAI's family."""
    return read_block(block)[1].startswith(DONE)


def dict_in(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def objects_in(items: object) -> list[dict[str, Any]]:
    """Return the objects in a list; an empty list for any other value."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def text_in(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def count_in(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
