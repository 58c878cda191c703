"""What is a mutant?"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault in one file.

    ``path`` is relative to the repository, ``lines`` are those of the statement that holds the fault (from 1), ``line`` is the
    one where it begins, ``text`` that line without indentation, ``change`` says what became what, and ``mutate`` returns the
    file with the fault in it.
    """

    path: str
    lines: range
    line: int
    text: str
    change: str
    mutate: Callable[[], str]

    def diff(self, source: str) -> str:
        """Return what changes, as a unified diff without its header."""
        lines = difflib.unified_diff(source.splitlines(), self.mutate().splitlines(), n=1, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def one_line(code: str) -> str:
    """Return code on one line, so that it can be compared and printed."""
    return " ".join(code.split())
