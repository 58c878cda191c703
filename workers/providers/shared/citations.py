"""Which sources does a vendor name beside its answer?

Perplexity repeats all sources with each chunk, and the text refers to them by number; OpenAI, and gateways in its format, name
each one as an annotation of the text. Every source becomes one ``Citation``, in the vendor's order.
Sources: https://docs.perplexity.ai/docs/sonar/openai-compatibility,
https://platform.openai.com/docs/guides/tools-web-search#output-and-citations
"""

from collections.abc import Iterator, Mapping
from typing import Any

from common.canonical.events import Citation
from workers.providers.shared.figures import index_of
from workers.providers.shared.loose_json import dict_of, list_of, text_of

_CITATIONS_MAX = 1000  # Of one answer.
_CHARS_MAX = 100_000_000  # Of a text.


class Citations:
    """Collects the citations of an answer; each is told once."""

    def __init__(self) -> None:
        self._listed: dict[str, Citation] = {}  # By URL.
        self._annotated: dict[tuple[int, str, int, int], Citation] = {}
        self._passed: set[int] = set()  # The ids of the citations that were passed on.

    def read_lists(self, chunk: Mapping[str, Any]) -> None:
        """Read the lists beside the choices: ``search_results``, and ``citations`` with the URLs alone (xAI has only those)."""
        for result in map(dict_of, list_of(chunk.get("search_results"))):
            self._list(text_of(result.get("url")), text_of(result.get("title")))
        for url in list_of(chunk.get("citations")):
            self._list(text_of(url), "")

    def read_annotations(self, annotations: object, choice: int = 0) -> None:
        """Read the annotations of a text. Chat completions put the fields of one into ``url_citation``, responses do not."""
        for annotation in map(dict_of, list_of(annotations)):
            fields = dict_of(annotation.get("url_citation")) or annotation
            url = text_of(fields.get("url"))
            start, end = (index_of(fields.get(name), _CHARS_MAX) or 0 for name in ("start_index", "end_index"))
            if url and annotation.get("type") == "url_citation" and len(self._annotated) < _CITATIONS_MAX:
                citation = Citation(url, text_of(fields.get("title")), start, end, choice)
                self._annotated.setdefault((choice, url, start, end), citation)

    def events(self) -> Iterator[Citation]:
        """Yield what was collected since the last call."""
        for citation in (*self._listed.values(), *self._annotated.values()):
            if id(citation) not in self._passed:
                self._passed.add(id(citation))
                yield citation

    def _list(self, url: str, title: str) -> None:
        if url and len(self._listed) < _CITATIONS_MAX:
            self._listed.setdefault(url, Citation(url, title))
