"""Which part of a text that is still being said can be passed on?

All but what could be the beginning of a match: that is held until it is a match, or none. A match that is cut across
pieces at any place is found as if the text had come whole; text that cannot be part of one is never held, and there is no
timer. What may be held is bounded: past ``MATCH_CHARS_MAX`` a match that is already whole counts as far as it goes, and one
that is not is given up, so its beginning is passed on.

What has been passed on stays known for a while as context: for patterns that look behind, and to find a match that began
before a seam (see ``flush`` and ``resume``).
"""

from collections import Counter
from collections.abc import Sequence

from common.guardrails.expressions import IMPOSSIBLE_CHAR
from common.guardrails.finding import CONTEXT_CHARS, MATCH_CHARS_MAX, Finder, Match


class TextFilter:
    """One text on its way. ``counts`` says what was found; ``blocked`` what ended it: nothing is passed on from there.

    ``ends``: the first match ends the text. Else each is replaced by its mark.
    """

    def __init__(self, finders: Sequence[Finder], *, ends: bool = False) -> None:
        self._finders, self._ends = finders, ends
        self._text = ""  # Context, then what is held.
        self._start = 0  # Where a match may begin.
        self._out = 0  # Up to where it has been passed on; past ``_start`` only behind a seam.
        self.counts: Counter[str] = Counter()
        self.blocking_match: Match | None = None

    def feed(self, text: str) -> str:
        """Return what can be passed on now that ``text`` has come."""
        # Hot path: once per delta.
        if self.blocking_match:
            return ""
        self._text += text.replace(IMPOSSIBLE_CHAR, "\ufffd")
        return self._advance(self._viable(self._start))

    def flush(self) -> str:
        """Return what is held, after a last look: the text ends here. A match that goes on behind the seam is found there."""
        if self.blocking_match or not self._text:
            return ""
        seam = self._viable(self._start)
        return self._advance(len(self._text), seam)

    def resume(self, said: str) -> None:
        """Go on behind what somebody else has passed on of the same text."""
        self._text = said[-(MATCH_CHARS_MAX + CONTEXT_CHARS) :]
        self._start = CONTEXT_CHARS if len(self._text) < len(said) else 0
        self._advance(self._viable(self._start))
        self.flush()
        self._out = len(self._text)
        self.counts.clear()  # The other has counted them.
        self.blocking_match = None

    @property
    def slow(self) -> list[int]:
        return [number for finder in self._finders for number in finder.slow]

    @property
    def held_chars(self) -> int:
        return len(self._text) - self._out

    def _viable(self, start: int) -> int:
        """Where that begins which could become a match."""
        text = self._text
        starts = [at for finder in self._finders if (at := finder.find_possible_start(text, start)) is not None]
        hold = min(starts, default=len(text))
        oldest = len(text) - MATCH_CHARS_MAX
        if hold >= oldest:
            return hold
        # Too much to hold. What is a match already counts as far as it goes; the rest of it is text like any other.
        found = self._find(start)
        if found and found.start <= hold:
            return found.start + 1
        return self._viable(oldest)

    def _find(self, start: int) -> Match | None:
        matches = [match for finder in self._finders if (match := finder.find(self._text, start))]
        # The first of those that begin at one place is the one whose finder is first.
        return min(matches, key=lambda match: (not match.is_forced, match.start), default=None)

    def _advance(self, hold: int, seam: int | None = None) -> str:
        """Pass on what begins before ``hold``, matches replaced."""
        pieces = []
        # What is held already is not looked through again for whole matches: none can begin before it.
        while hold > self._start and (found := self._find(self._start)) and (found.start < hold or found.is_forced):
            pieces.append(self._text[self._out : found.start])
            self.counts[found.name] += 1
            if self._ends:
                self.blocking_match = found
                self._text, self._start, self._out = "", 0, 0
                return "".join(pieces)
            pieces.append(found.mark)
            self._start = found.end
            self._out = max(self._out, found.end)
            if hold < found.end:  # What was to be held was a part of this.
                hold = self._viable(found.end) if seam is None else len(self._text)
        pieces.append(self._text[self._out : hold])
        self._out = max(self._out, hold)
        self._start = max(self._start, hold if seam is None else seam)
        self._forget()
        return "".join(pieces)

    def _forget(self) -> None:
        known = min(self._start, self._out) - CONTEXT_CHARS
        if known > 0:
            self._text = self._text[known:]
            self._start -= known
            self._out -= known
