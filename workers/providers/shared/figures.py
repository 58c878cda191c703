"""Which figures of an upstream's usage report can be believed?

An upstream may report anything. One bound holds for every wire: a figure is a whole number from 0 to ``FIGURE_MAX`` (servers
that send floats mean whole numbers), and a part is not larger than what includes it. A figure beyond that counts as not
reported: without its prompt and answer a report is none at all, without a part it is read as if it had not named it. Either
way ``is_absurd`` says so, for whoever marks, measures and estimates.
"""

from collections.abc import Mapping
from typing import Any

from common.canonical.events import COUNTS, FIGURE_MAX, PARTS, Usage
from workers.providers.shared.loose_json import text_of

NAME_CHARS_MAX = 200  # Of a model or a tier that an upstream names; a longer name is in no price list.
INDEXES_MAX = 10_000  # Tool calls, blocks and items of one answer.
_WHOLE = {
    "cache_read_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
    **PARTS,
}


def index_of(value: object, below: int = INDEXES_MAX) -> int | None:
    """Return a place in a list, None where it cannot be one."""
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below
    return value if is_index else None  # type: ignore[return-value]


def name_of(value: object) -> str:
    name = text_of(value)
    return name if len(name) <= NAME_CHARS_MAX else ""


class Figures:
    """One report. What is missing or null in it is 0."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report
        self._is_none = False
        self.is_absurd = False

    def main(self, name: str) -> int:
        """Return a count of all that was asked or answered."""
        count, is_believed = self._read((name,))
        self._is_none = self._is_none or not is_believed
        return count

    def count(self, *path: str) -> int:
        """Return a part, or anything else that is priced; ``path`` leads to it through nested objects."""
        return self._read(path)[0]

    def counts(self, paths: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
        """Return the parts of which the report says something, by name; ``paths`` are as ``count`` takes them."""
        return {name: self._read(path)[0] for name, path in paths.items() if path[0] in self._report}

    def usage(self, input_tokens: int, output_tokens: int, **more: int | str) -> Usage | None:
        """Return the usage that the figures amount to; None where prompt or answer cannot be believed.

        ``more`` are the other counts, the details, ``model`` and ``service_tier`` of ``Usage``.
        """
        names = name_of(more.pop("model", "")), name_of(more.pop("service_tier", ""))
        counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        if self._is_none or max(counts.values()) > FIGURE_MAX:
            self.is_absurd = True
            return None
        if any(more.values()):
            self._add_parts(counts, more)
        return Usage.from_figures(counts, *names)

    def _add_parts(self, counts: dict[str, int], more: Mapping[str, int | str]) -> None:
        """Add the counts and details that are not 0, each checked against what includes it."""
        left = dict(counts)  # Of each modality's whole.
        for name in (*COUNTS, *more):
            if name in counts or not isinstance(count := more.get(name), int) or not count:
                continue
            whole = _WHOLE.get(name, "")
            is_modality = name in PARTS and whole in left
            if whole and count > (left if is_modality else counts).get(whole, 0):
                self.is_absurd = True
                continue
            counts[name] = count
            if is_modality:
                left[whole] -= count
        if counts.get("cache_read_tokens", 0) + counts.get("cache_write_tokens", 0) > counts["input_tokens"]:
            counts["cache_read_tokens"] = self._disbelieve()  # What remains is the dearer one.

    def _read(self, path: tuple[str, ...]) -> tuple[int, bool]:
        """Return a figure, and whether it can be believed."""
        value: Any = self._report
        for name in path:
            if not isinstance(value, dict):
                return self._disbelieve(), False
            value = value.get(name)
            if value is None:
                return 0, True
        if type(value) is int and 0 <= value <= FIGURE_MAX:  # Nearly every one.
            return value, True
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (int(value), True) if is_number and 0 <= value <= FIGURE_MAX else (self._disbelieve(), False)

    def _disbelieve(self) -> int:
        self.is_absurd = True
        return 0
