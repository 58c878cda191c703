"""Which part of a text that is still arriving can be passed on?

Everything except what could be the beginning of a match. That part is held until it is a match, or cannot become one. A match
is found wherever it is split across pieces, as if the text had arrived at once. Text that cannot be part of a match is never
held, and there is no timer. The held text is bounded: past ``MATCH_CHARS_MAX``, a match that is complete already counts as it
is; one that is not complete is given up, and its beginning is passed on.

Passed text is kept for a while as context: for patterns with lookbehinds, and to find a match that began before a seam (see
``flush`` and ``resume``).
"""

from collections import Counter
from collections.abc import Sequence

from common.guardrails.expressions import IMPOSSIBLE_CHAR
from common.guardrails.finding import CONTEXT_CHARS, MATCH_CHARS_MAX, Finder, Match


class TextFilter:
    """Filters one text while it streams. ``counts`` are the matches by name.

    ``ends``: the first match ends the text: it becomes ``blocking_match``, and nothing after it is passed on. Otherwise each
    match is replaced by its mark.
    """

    def __init__(self, finders: Sequence[Finder], *, ends: bool = False) -> None:
        self._finders, self._ends = finders, ends
        self._text = ""  # Passed context, then the held text.
        self._start = 0  # The first position where a match may begin.
        self._passed_end = 0  # The text before it has been passed on. Greater than ``_start`` only after a seam.
        self.counts: Counter[str] = Counter()
        self.blocking_match: Match | None = None

    def feed(self, text: str) -> str:
        """Add text, and return what can be passed on now."""
        # Hot path: runs once per delta.
        if self.blocking_match:
            return ""
        self._text += text.replace(IMPOSSIBLE_CHAR, "\ufffd")
        return self._advance(self._hold_from(self._start))

    def flush(self) -> str:
        """Search once more and return the held text: the text ends here. A match across this seam is found later."""
        if self.blocking_match or not self._text:
            return ""
        seam = self._hold_from(self._start)
        return self._advance(len(self._text), seam)

    def resume(self, passed_text: str) -> None:
        """Continue after the part of the same text that another filter has passed on."""
        self._text = passed_text[-(MATCH_CHARS_MAX + CONTEXT_CHARS) :]
        self._start = CONTEXT_CHARS if len(self._text) < len(passed_text) else 0
        self._advance(self._hold_from(self._start))
        self.flush()
        self._passed_end = len(self._text)
        self.counts.clear()  # The other filter has counted them.
        self.blocking_match = None

    @property
    def slow(self) -> list[int]:
        return [number for finder in self._finders for number in finder.slow]

    @property
    def held_chars(self) -> int:
        return len(self._text) - self._passed_end

    def _hold_from(self, start: int) -> int:
        """Return the position of the first text that must be held, because it could become a match."""
        text = self._text
        starts = [first for finder in self._finders if (first := finder.find_possible_start(text, start)) is not None]
        hold = min(starts, default=len(text))
        oldest = len(text) - MATCH_CHARS_MAX
        if hold >= oldest:
            return hold
        # Too much to hold. A match that is complete already counts as it is; what follows it is ordinary text.
        match = self._find(start)
        if match and match.start <= hold:
            return match.start + 1
        return self._hold_from(oldest)

    def _find(self, start: int) -> Match | None:
        matches = [match for finder in self._finders if (match := finder.find(self._text, start))]
        # If several matches begin at the same position, the first finder wins.
        return min(matches, key=lambda match: (not match.is_forced, match.start), default=None)

    def _advance(self, hold: int, seam: int | None = None) -> str:
        """Return the text that begins before ``hold``, with matches replaced."""
        pieces = []
        # If everything from ``_start`` on is held, no match can begin before ``hold``: no search is needed.
        while hold > self._start and (match := self._find(self._start)) and (match.start < hold or match.is_forced):
            pieces.append(self._text[self._passed_end : match.start])
            self.counts[match.name] += 1
            if self._ends:
                self.blocking_match = match
                self._text, self._start, self._passed_end = "", 0, 0
                return "".join(pieces)
            pieces.append(match.mark)
            self._start = match.end
            self._passed_end = max(self._passed_end, match.end)
            if hold < match.end:  # The held text was part of this match.
                hold = self._hold_from(match.end) if seam is None else len(self._text)
        pieces.append(self._text[self._passed_end : hold])
        self._passed_end = max(self._passed_end, hold)
        self._start = max(self._start, hold if seam is None else seam)
        self._forget()
        return "".join(pieces)

    def _forget(self) -> None:
        """Drop passed text that is no longer needed as context."""
        surplus = min(self._start, self._passed_end) - CONTEXT_CHARS
        if surplus > 0:
            self._text = self._text[surplus:]
            self._start -= surplus
            self._passed_end -= surplus
