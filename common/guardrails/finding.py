"""What do all guardrails that search text have in common?

A finder answers two questions: where is the first complete match, and from which position could the text still become a match
if more text follows? A stream must hold back the text from that second position on, and nothing else.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

MATCH_CHARS_MAX = 8_192  # The longest match that is always found in a stream. At most this much text is held back.
CONTEXT_CHARS = 64  # How many characters before its match a pattern may look at: \b, ^ and lookbehinds.


@dataclass(frozen=True, slots=True)
class Match:
    """One match. ``name`` is its name in the log and in a refusal; it quotes no text. ``mark`` replaces the match if the
    guardrail replaces.

    ``is_forced``: the search timed out, so a match at this position is assumed.
    """

    start: int
    end: int
    name: str
    mark: str = ""
    is_forced: bool = False


class Finder(Protocol):
    """Searches one text, or one stream."""

    slow: Sequence[int] = ()  # Numbers of the operator's expressions that timed out.

    def find(self, text: str, start: int) -> Match | None:
        """Return the first complete match that begins at ``start`` or later."""
        ...

    def find_possible_start(self, text: str, start: int) -> int | None:
        """Return the first position, from ``start`` on, where the rest of ``text`` could be the beginning of a match."""
        ...


@dataclass(slots=True)
class Redacted:
    """A text with its matches replaced, and the number of matches by name."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)


def replace_matches(finder: Finder, text: str) -> Redacted:
    """Return a text with every match of a finder replaced by its mark."""
    position, pieces, counts = 0, [], Counter[str]()
    while match := finder.find(text, position):
        pieces += [text[position : match.start], match.mark]
        counts[match.name] += 1
        position = match.end
    return Redacted("".join([*pieces, text[position:]]) if counts else text, counts)
