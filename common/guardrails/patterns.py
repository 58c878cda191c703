"""Which of the operator's own expressions match a text?

They are Python regular expressions, run by the ``regex`` package: it supports partial matches and can be stopped. An
operator's expression must not block a process that serves thousands of clients, so each search has a time limit.
"""

from collections.abc import Sequence
from typing import Protocol

import regex

from common.guardrails.expressions import SEARCH_TIMEOUT_S, SEARCH_TIMEOUT_S_PER_CHAR, Pattern, compile_patterns
from common.guardrails.finding import Finder, Match
from common.guardrails.search import Search
from common.guardrails.table import Side


class Expressions(Protocol):
    """The settings that this guardrail needs."""

    guardrail_patterns_in: tuple[str, ...]
    guardrail_patterns_out: tuple[str, ...]


def prepare(settings: Expressions, side: Side) -> Search | None:
    sources = settings.guardrail_patterns_in if side == "input" else settings.guardrail_patterns_out
    return PatternSearch(compile_patterns(sources)) if sources else None


class PatternSearch(Search):
    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns

    def finder(self, *, blocks: bool) -> "PatternFinder":
        return PatternFinder(self._patterns, is_closed=blocks)


class PatternFinder(Finder):
    """See ``Finder``; one per text or stream. A match's ``name`` is "pattern" and its number, from 1.

    ``is_closed``: a timeout counts as a match. Otherwise the expression is not used any more. ``slow`` has the numbers of
    expressions that timed out, in both cases.
    """

    def __init__(self, patterns: Sequence[Pattern], *, is_closed: bool) -> None:
        self._active = dict(enumerate(patterns, 1))
        self._is_closed = is_closed
        self.slow: list[int] = []

    def find(self, text: str, start: int) -> Match | None:
        if self.slow and self._is_closed:
            return Match(start, start, _name(self.slow[0]), is_forced=True)
        first: Match | None = None
        for number, pattern in list(self._active.items()):
            match = self._search(number, pattern.full, text, start, partial=False)
            if self.slow and self._is_closed:
                return Match(start, start, _name(number), is_forced=True)
            if match and (first is None or match.start() < first.start):
                first = Match(match.start(), match.end(), _name(number))
        return first

    def find_possible_start(self, text: str, start: int) -> int | None:
        starts = []
        for number, pattern in list(self._active.items()):
            match = self._search(number, pattern.beginning, text, start, partial=True)
            if match and match.start() < len(text):
                starts.append(match.start())
        return min(starts, default=None)

    def _search(
        self, number: int, pattern: regex.Pattern[str], text: str, start: int, *, partial: bool
    ) -> regex.Match[str] | None:
        timeout_s = SEARCH_TIMEOUT_S + (len(text) - start) * SEARCH_TIMEOUT_S_PER_CHAR
        try:
            # ``concurrent`` releases the GIL: a thread can search a long text while the event loop runs.
            match = pattern.search(text, start, partial=partial, timeout=timeout_s, concurrent=True)
            while match and match.start() == match.end() < len(text):  # Skip empty matches, as of a bare lookahead.
                match = pattern.search(text, match.end() + 1, partial=partial, timeout=timeout_s, concurrent=True)
        except TimeoutError:
            self.slow.append(number)
            del self._active[number]
            return None
        return match if match and match.end() > match.start() else None


def _name(number: int) -> str:
    return f"pattern {number}"
