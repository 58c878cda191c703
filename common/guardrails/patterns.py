"""Which of the operator's own expressions match a text?

Python's regular expressions, run by the ``regex`` package, as that can tell what could become a match and can be stopped.
An expression of somebody else's making must not stall a process that serves thousands: each search has a time limit.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from common.guardrails.finding import UNSAYABLE, Found

PATTERNS_MAX = 50
PATTERN_CHARS_MAX = 1_000
# Of the process's own time. An expression that does not run away takes microseconds for what a stream brings, and for long
# texts a few tenths of this.
SEARCH_TIMEOUT_S, SEARCH_TIMEOUT_S_PER_CHAR = 0.1, 1e-6
_ASSERTIONS = "bB"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One expression, twice: as it is, and as what could be its beginning."""

    whole: regex.Pattern[str]
    begun: regex.Pattern[str]


def compiled(sources: Sequence[str]) -> tuple[Pattern, ...]:
    """Return the expressions, ready to be used.

    Raises:
        ValueError: one of them is none, or matches everywhere; the message counts them from 1 and says what to do.
    """
    if len(sources) > PATTERNS_MAX:
        raise ValueError(f"there are {len(sources)} patterns, and {PATTERNS_MAX} at most are taken: join some with |")
    return tuple(_compiled(source, f"pattern {number}") for number, source in enumerate(sources, 1))


def _compiled(source: str, name: str) -> Pattern:
    if len(source) > PATTERN_CHARS_MAX:
        raise ValueError(f"{name} has {len(source)} characters, and {PATTERN_CHARS_MAX} at most are taken")
    try:
        with warnings.catch_warnings(action="error"):
            as_python = re.compile(source)  # What only the other package knows (fuzzy matches, recursion) is not offered.
            relaxed = _relaxed(source)
            whole = regex.compile(source)
            end = "\n" if as_python.flags & re.VERBOSE else ""  # A comment may be open.
            begun = regex.compile(f"(?:{relaxed}{end}){UNSAYABLE}")
            matches_nothing = whole.search("", timeout=SEARCH_TIMEOUT_S)
    except (re.error, regex.error, Warning, OverflowError, RecursionError, TimeoutError) as error:
        raise ValueError(f"{name} is not a regular expression that can be used: {error}") from error
    if matches_nothing:
        raise ValueError(f"{name} matches an empty text, so it would match everywhere: let it need a character at least")
    return Pattern(whole, begun)


def _relaxed(source: str) -> str:
    r"""Return an expression without its ``\b`` and ``\B``: at the end of what has come so far nobody knows whether they hold.

    Raises:
        re.error: a brace that is no count, which means something else to ``regex``.
    """
    kept, i, in_set = [], 0, False
    while i < len(source):
        char = source[i]
        size = 2 if char == "\\" else 1
        piece = source[i : i + size]
        if char == "\\" and piece[1:] == "N":
            size = source.find("}", i) + 1 - i
            piece = source[i : i + size]
        elif char == "\\" and piece[1:] in _ASSERTIONS and not in_set:
            piece = "(?:)"
        elif char == "[" and not in_set:
            in_set = True
            if source[i + 1 : i + 2] == "^":
                size, piece = 2, "[^"
            if source[i + size : i + size + 1] == "]":  # The first one is a member.
                size, piece = size + 1, piece + "]"
        elif char == "]":
            in_set = False
        elif char == "{" and not in_set and not re.match(r"\{\d*,?\d*\}", source[i:]):
            raise re.error("a brace that is no count must be written as \\{", source, i)
        kept.append(piece)
        i += size
    return "".join(kept)


class PatternFinder:
    """See ``Finder``; one per text or stream. ``name`` of what is found is its pattern's number, from 1.

    ``is_closed``: what takes too long counts as found; else it is left out from then on. ``slow`` holds the numbers of either.
    """

    def __init__(self, patterns: Sequence[Pattern], *, is_closed: bool) -> None:
        self._left = dict(enumerate(patterns, 1))
        self._is_closed = is_closed
        self.slow: list[int] = []

    def find(self, text: str, start: int) -> Found | None:
        if self.slow and self._is_closed:
            return Found(start, start, str(self.slow[0]), is_forced=True)
        first: Found | None = None
        for number, pattern in list(self._left.items()):
            match = self._search(number, pattern.whole, text, start, partial=False)
            if self.slow and self._is_closed:
                return Found(start, start, str(number), is_forced=True)
            if match and (first is None or match.start() < first.start):
                mark = None if self._is_closed else ""
                first = Found(match.start(), match.end(), str(number), mark)
        return first

    def viable(self, text: str, start: int) -> int | None:
        starts = []
        for number, pattern in list(self._left.items()):
            match = self._search(number, pattern.begun, text, start, partial=True)
            if match and match.start() < len(text):
                starts.append(match.start())
        return min(starts, default=None)

    def _search(
        self, number: int, pattern: regex.Pattern[str], text: str, start: int, *, partial: bool
    ) -> regex.Match[str] | None:
        timeout_s = SEARCH_TIMEOUT_S + (len(text) - start) * SEARCH_TIMEOUT_S_PER_CHAR
        try:
            # The interpreter's lock is given back meanwhile: a long text is looked through beside the loop.
            match = pattern.search(text, start, partial=partial, timeout=timeout_s, concurrent=True)
            while match and match.start() == match.end() < len(text):  # A lookahead alone is nothing that could be said.
                match = pattern.search(text, match.end() + 1, partial=partial, timeout=timeout_s, concurrent=True)
        except TimeoutError:
            self.slow.append(number)
            del self._left[number]
            return None
        return match if match and match.end() > match.start() else None
