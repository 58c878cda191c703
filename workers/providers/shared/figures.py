"""Which figures of an upstream's usage report are believable?

An upstream may report anything. One rule holds for every wire: a figure is a whole number from 0 to ``FIGURE_MAX`` (servers
that send floats mean whole numbers), and a part is not larger than its total. Any other figure is not believable, and is
ignored. If it is the figure of the prompt or of the answer, the whole report is ignored. ``is_absurd`` says that this happened.
"""

from collections.abc import Mapping
from typing import Any

from common.canonical.events import COUNTS, FIGURE_MAX, PARTS, Usage
from workers.providers.shared.loose_json import text_of

NAME_CHARS_MAX = 200  # Of a model or tier in a report. A longer name is in no price list.
INDEXES_MAX = 10_000  # Tool calls, blocks and items of one answer.
_TOTAL_OF = {
    "cache_read_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
    **PARTS,
}


def index_of(value: object, below: int = INDEXES_MAX) -> int | None:
    """Return an index of a list; None: the value is none."""
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below
    return value if is_index else None  # type: ignore[return-value]


def clean_name(value: object) -> str:
    name = text_of(value)
    return name if len(name) <= NAME_CHARS_MAX else ""


class Figures:
    """One report. What is missing or null in it is 0."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report
        self._is_unusable = False
        self.is_absurd = False

    def main(self, name: str) -> int:
        """Return the total count of the prompt or of the answer."""
        count, is_believed = self._read((name,))
        self._is_unusable = self._is_unusable or not is_believed
        return count

    def count(self, *path: str) -> int:
        """Return a part, or another priced count. ``path`` leads to it through nested objects."""
        return self._read(path)[0]

    def counts(self, paths: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
        """Return the parts that the report has, by name. ``paths`` are as in ``count``."""
        return {name: self._read(path)[0] for name, path in paths.items() if path[0] in self._report}

    def usage(self, input_tokens: int, output_tokens: int, **other_figures: int | str) -> Usage | None:
        """Return the usage; None: the figure of the prompt or of the answer is not believable.

        ``other_figures``: the other counts, the details, ``model`` and ``service_tier`` of ``Usage``.
        """
        names = clean_name(other_figures.pop("model", "")), clean_name(other_figures.pop("service_tier", ""))
        counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        if self._is_unusable or max(counts.values()) > FIGURE_MAX:
            self.is_absurd = True
            return None
        if any(other_figures.values()):
            self._add_parts(counts, other_figures)
        return Usage.from_figures(counts, *names)

    def _add_parts(self, counts: dict[str, int], other_figures: Mapping[str, int | str]) -> None:
        """Add the counts and details that are not 0, each checked against its total."""
        remaining = dict(counts)  # What is left of each total for further modalities.
        for name in (*COUNTS, *other_figures):
            if name in counts or not isinstance(count := other_figures.get(name), int) or not count:
                continue
            total_name = _TOTAL_OF.get(name, "")
            is_modality = name in PARTS and total_name in remaining
            if total_name and count > (remaining if is_modality else counts).get(total_name, 0):
                self.is_absurd = True
                continue
            counts[name] = count
            if is_modality:
                remaining[total_name] -= count
        if counts.get("cache_read_tokens", 0) + counts.get("cache_write_tokens", 0) > counts["input_tokens"]:
            counts["cache_read_tokens"] = self._disbelieve()  # The cache writes stay: they are more expensive.

    def _read(self, path: tuple[str, ...]) -> tuple[int, bool]:
        """Return a figure, and whether it is believable."""
        value: Any = self._report
        for name in path:
            if not isinstance(value, dict):
                return self._disbelieve(), False
            value = value.get(name)
            if value is None:
                return 0, True
        if type(value) is int and 0 <= value <= FIGURE_MAX:  # The usual case.
            return value, True
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (int(value), True) if is_number and 0 <= value <= FIGURE_MAX else (self._disbelieve(), False)

    def _disbelieve(self) -> int:
        self.is_absurd = True
        return 0
