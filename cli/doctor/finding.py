"""What does one line of the report of `sluice doctor` consist of?"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "doubt", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``fix`` says what to do about it."""

    level: Level
    summary: str
    fix: str = ""
