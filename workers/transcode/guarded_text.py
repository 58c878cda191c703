"""Which parts of one text of an answer may reach its client, and what did the guardrails match in it?"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.guardrails.search import Search
from common.guardrails.table import Block, Guardrail

if TYPE_CHECKING:
    from common.guardrails.holding import TextFilter
    from common.guardrails.json_filter import JsonFilter


class Active(NamedTuple):
    """A guardrail that is active for an answer. ``blocks``: its mode is block, not log."""

    row: Guardrail
    search: Search
    blocks: bool


class GuardedText:
    """One text and its filters.

    Acting filters change the text: each gets what the previous one lets through. Counting filters only count matches.
    """

    def __init__(self, guardrails: Sequence[Active]) -> None:
        self._filters = [(active, _filter(active)) for active in guardrails]
        self._acting = [text_filter for active, text_filter in self._filters if active.blocks]
        self._counting = [text_filter for active, text_filter in self._filters if not active.blocks]
        self.marks_at_signature = 0  # Number of replacements at the last signature.

    def feed(self, text: str) -> str:
        # Hot path: once per delta.
        for text_filter in self._counting:
            text_filter.feed(text)
        for text_filter in self._acting:
            text = text_filter.feed(text)
        return text

    def flush(self) -> str:
        for text_filter in self._counting:
            text_filter.flush()
        text = ""
        for text_filter in self._acting:
            text = text_filter.feed(text) + text_filter.flush()
        return text

    def resume(self, text: str) -> None:
        for _, text_filter in self._filters:
            text_filter.resume(text)

    @property
    def blocked_by(self) -> str | None:
        """The name of the guardrail that ended the text."""
        return next(
            (active.row.name for active, text_filter in self._filters if active.blocks and text_filter.blocking_match), None
        )

    @property
    def marks(self) -> int:
        return sum(text_filter.counts.total() for text_filter in self._acting)

    def counts(self) -> dict[str, Counter[str]]:
        """Return the counts of matches by guardrail."""
        return {active.row.name: text_filter.counts for active, text_filter in self._filters if text_filter.counts}

    def slow_patterns(self) -> set[int]:
        """Return the numbers of expressions that took too long."""
        return {number for _, text_filter in self._filters for number in text_filter.slow}


def _filter(guardrail: Active) -> "TextFilter | JsonFilter":
    # Imported here, so that a worker without guardrails has none of their tables in memory.
    from common.guardrails.holding import TextFilter
    from common.guardrails.json_filter import JsonFilter

    row, search, blocks = guardrail
    if row.block is Block.REPLACE:
        return JsonFilter(lambda: [search.finder(blocks=blocks)])
    return TextFilter([search.finder(blocks=blocks)], ends=blocks)
