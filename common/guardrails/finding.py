"""What does every guardrail that looks for something in text have in common?

A finder tells two things: where the first whole match is, and from where on the text could still become one, should it go
on. The second is what a stream must hold back, and all that it must.
"""

from dataclasses import dataclass
from typing import Protocol

MATCH_CHARS_MAX = 8_192  # The longest match that is surely found in a stream; no more than this is ever held back.
CONTEXT_CHARS = 64  # How far a pattern may look behind its match: \b, ^ and lookbehinds.


@dataclass(frozen=True, slots=True)
class Found:
    """One match. ``mark`` is what it is replaced by; None: it is not to be said at all. ``name`` says which, never what.

    ``is_forced``: there was no time to look, so it counts as found here.
    """

    start: int
    end: int
    name: str
    mark: str | None = None
    is_forced: bool = False


class Finder(Protocol):
    def find(self, text: str, start: int) -> Found | None:
        """Return the first whole match that begins at ``start`` or later."""
        ...

    def viable(self, text: str, start: int) -> int | None:
        """Return the first position, from ``start`` on, from which the rest of ``text`` could be the beginning of a match."""
        ...
