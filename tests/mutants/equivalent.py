"""Which mutants are no fault?

`equivalent.toml` lists them: a file, the text of a line of it, the change, and why nobody can tell. Lines have no numbers
there, so an entry stays good when its file grows.
"""

import tomllib
from pathlib import Path

from tests.mutants.mutant import Mutant

LIST = Path(__file__).with_suffix(".toml")


class Equivalents:
    """The entries of the list: file, line and change, each with its reason."""

    def __init__(self, entries: list[dict[str, str]]) -> None:
        self.entries: dict[tuple[str, str, str], str] = {}
        for entry in entries:
            self.entries[entry["file"], entry["line"], entry["change"]] = entry["reason"]

    def has(self, mutant: Mutant) -> bool:
        """Whether a mutant is listed."""
        return (mutant.path, mutant.text, mutant.change) in self.entries

    def outdated(self, mutants: list[Mutant]) -> list[str]:
        """Return the entries that match no mutant any more, because their file or line has changed."""
        return [
            " | ".join(key) for key in self.entries.keys() - {(mutant.path, mutant.text, mutant.change) for mutant in mutants}
        ]


def load() -> Equivalents:
    """Return the list."""
    return Equivalents(tomllib.loads(LIST.read_text(encoding="utf-8")).get("mutant", []))
