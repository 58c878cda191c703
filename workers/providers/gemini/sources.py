"""Which sources does Gemini name for its answer?

A candidate that was grounded by a search has the pages (``groundingChunks``), and which ranges of the text rest on which
of them (``groundingSupports``). The ranges count bytes of UTF-8. ``citationMetadata`` has sources that the text repeats word
for word. Later chunks of a stream repeat the sources, and add to them.

Sources: https://ai.google.dev/gemini-api/docs/google-search, https://ai.google.dev/api/generate-content#citationmetadata
"""

from collections.abc import Iterator
from typing import Any

from workers.providers.shared.citations import Citations
from workers.providers.shared.figures import index_of
from workers.providers.shared.loose_json import dict_of, list_of, text_of

_BYTES_MAX = 100_000  # Of a text. Counting the characters of a longer one for each range would take too long.
_SUPPORTS_MAX = 1_000


def read_sources(candidate: dict[str, Any], texts: list[str], citations: Citations) -> None:
    """Add the sources in a candidate of a chunk. ``texts``: the pieces of its text so far."""
    grounding, cited = candidate.get("groundingMetadata"), candidate.get("citationMetadata")
    if not (grounding or cited):
        return
    choice = index_of(candidate.get("index")) or 0
    encoded = "".join(texts).encode(errors="replace")
    pages = [_page(chunk) for chunk in list_of(dict_of(grounding).get("groundingChunks"))]
    supports = list_of(dict_of(grounding).get("groundingSupports"))[:_SUPPORTS_MAX]
    ranges = [*_supported(supports, pages), *map(_repeated, list_of(dict_of(cited).get("citationSources")))]
    supported = {page["url"] for page in ranges}
    ranges += [page for page in pages if page["url"] not in supported]
    citations.read_annotations([_annotation(page, encoded) for page in ranges], choice)


def _page(chunk: Any) -> dict[str, Any]:
    """Return a page as an annotation without a range. Other chunks (maps, retrieved documents) may have an address, too."""
    fields = next((value for value in dict_of(chunk).values() if isinstance(value, dict)), {})
    return {"url": text_of(fields.get("uri")), "title": text_of(fields.get("title"))}


def _supported(supports: list[Any], pages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for support in map(dict_of, supports):
        segment = dict_of(support.get("segment"))
        for number in list_of(support.get("groundingChunkIndices")):
            at = index_of(number)
            if at is not None and at < len(pages):
                yield {**pages[at], "start": segment.get("startIndex"), "end": segment.get("endIndex")}


def _repeated(source: Any) -> dict[str, Any]:
    fields = dict_of(source)
    return {
        "url": text_of(fields.get("uri")),
        "title": text_of(fields.get("title")),
        "start": fields.get("startIndex"),
        "end": fields.get("endIndex"),
    }


def _annotation(page: dict[str, Any], encoded: bytes) -> dict[str, Any]:
    end = _characters(encoded, page.get("end"))
    start = _characters(encoded, page.get("start")) if end else 0
    return {"type": "url_citation", "url": page["url"], "title": page["title"], "start_index": start, "end_index": end}


def _characters(encoded: bytes, byte_index: object) -> int:
    """Return how many characters the first bytes have; 0: it is not known."""
    index = index_of(byte_index, _BYTES_MAX) or 0
    return len(encoded[:index].decode(errors="ignore"))
