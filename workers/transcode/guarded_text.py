"""What of one text of an answer may reach its client, and what is found in it?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class GuardedText:
    """One text: filters for what is done, each given what the one before lets through, and filters for what is counted."""

    def __init__(self, modes: Mapping[str, str], patterns: Sequence[Any]) -> None:
        # Loaded here, so that a worker without guardrails has none of their tables in memory.
        from common.guardrails.holding import TextFilter
        from common.guardrails.json_filter import JsonFilter
        from common.guardrails.patterns import PatternFinder
        from common.guardrails.pii import PiiFinder

        self._acting: list[TextFilter | JsonFilter] = []
        self._watching: list[TextFilter | JsonFilter] = []
        if "patterns" in modes:
            is_closed = modes["patterns"] == "block"
            self.patterns = PatternFinder(patterns, is_closed=is_closed)
            (self._acting if is_closed else self._watching).append(TextFilter([self.patterns]))
        if "pii" in modes:
            pii = JsonFilter(lambda: [PiiFinder()])
            (self._acting if modes["pii"] == "block" else self._watching).append(pii)
        self.marks_told = 0  # How much was replaced when the last signature came by.

    def feed(self, text: str) -> str:
        # Hot path: once per delta.
        for each in self._watching:
            each.feed(text)
        for each in self._acting:
            text = each.feed(text)
        return text

    def flush(self) -> str:
        for each in self._watching:
            each.flush()
        text = ""
        for each in self._acting:
            text = each.feed(text) + each.flush()
        return text

    def resume(self, said: str) -> None:
        for each in (*self._acting, *self._watching):
            each.resume(said)

    @property
    def is_blocked(self) -> bool:
        return any(each.blocked for each in self._acting)

    @property
    def marks(self) -> int:
        return sum(each.counts.total() for each in self._acting)

    def counts(self) -> Counter[str]:
        return sum((each.counts for each in (*self._acting, *self._watching)), Counter[str]())
