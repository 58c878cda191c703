"""What does every guardrail that looks for something in text have in common?

A finder tells two things: where the first whole match is, and from where on the text could still become one, should it go
on. The second is what a stream must hold back, and all that it must.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

MATCH_CHARS_MAX = 8_192  # The longest match that is surely found in a stream; no more than this is ever held back.
CONTEXT_CHARS = 64  # How far a pattern may look behind its match: \b, ^ and lookbehinds.


@dataclass(frozen=True, slots=True)
class Match:
    """One match. ``name`` is what the log and a refusal call it, and quotes nothing. ``mark`` takes its place, where its
    guardrail replaces.

    ``is_forced``: there was no time to look, so it counts as found here.
    """

    start: int
    end: int
    name: str
    mark: str = ""
    is_forced: bool = False


class Finder(Protocol):
    """What looks through one text, or one stream."""

    slow: Sequence[int] = ()  # Numbers of the operator's expressions that took too long.

    def find(self, text: str, start: int) -> Match | None:
        """Return the first whole match that begins at ``start`` or later."""
        ...

    def find_possible_start(self, text: str, start: int) -> int | None:
        """Return the first position, from ``start`` on, from which the rest of ``text`` could be the beginning of a match."""
        ...


@dataclass(slots=True)
class Redacted:
    """A text without what was found in it, and how many of each there were."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)


def replace_matches(finder: Finder, text: str) -> Redacted:
    """Return a text with everything that a finder finds in it replaced by its mark."""
    done, pieces, counts = 0, [], Counter[str]()
    while match := finder.find(text, done):
        pieces += [text[done : match.start], match.mark]
        counts[match.name] += 1
        done = match.end
    return Redacted("".join([*pieces, text[done:]]) if counts else text, counts)
