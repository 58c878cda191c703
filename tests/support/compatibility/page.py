"""What does docs/compatibility.md say? Run as a module it prints the page, which is what ``make compatibility`` does."""

import sys
from collections.abc import Iterable

from common.dialects import DIALECTS
from common.vendors.table import Vendor
from tests.support.compatibility.cells import FEATURES, REMOTE, cell_of
from tests.support.compatibility.request_fields import CHAT_VENDORS, FIELDS, TARGETS, deployment_on, dropped_by, fate_of
from workers.providers import WIRES

_START = """# What works between which client and which provider

Written by `make compatibility`, which tries every cell and every field of this page. The tests do the same, and fail where
the page says otherwise ([cells.py](../tests/support/compatibility/cells.py),
[request_fields.py](../tests/support/compatibility/request_fields.py)).
A *yes* means: the client's request is parsed, built for the provider, and holds what was asked for; the provider's answer,
streamed and whole, is read by the dialect's own clients (the `openai` and `anthropic` SDKs, strict readers for the other two),
and text, calls and usage are what the provider said. Whether a model can do what it is asked is for its provider to say, whose
refusal is passed on.

The answers tried here are the shortest of their kind. What providers really send was recorded, and goes through every dialect
in [tests/contracts](../tests/contracts/test_recordings_in_every_dialect.py). Which clients were run is in
[clients.md](clients.md), what vendors know otherwise in [providers.md](providers.md).
"""
_FIELDS_START = """## What becomes of each field

By wire; [providers.md](providers.md) says which provider speaks which. A dialect on its own wire passes the body as it came.

- **carried**: the provider gets it, in its own words and within its own limits.
- **dropped**: left out, because an answer without it is still the one asked for; named in the header `x-sluice-dropped`.
- **refused**: 400 that names the field, because it would be missed.
- **Sluice**: served by Sluice itself, whichever the provider is.

Fields that a dialect does not define are ignored. A model may take less than those that are tried here ({models}):
what a model is known to refuse is dropped by name too.
"""


def page() -> str:
    parts = [_START, *(_dialect(name) for name in DIALECTS)]
    models = ", ".join(f"`{model}`" for model in dict.fromkeys(model for _, model in TARGETS.values()))
    parts += [_FIELDS_START.format(models=models), *(_fields(name) for name in DIALECTS), _vendors()]
    return "\n".join(parts)


def row_of(dialect: str, vendor: Vendor) -> list[str]:
    """Return the cells of a provider: "yes", or why not."""
    return [cell_of(dialect, vendor, feature) or "yes" for feature in FEATURES]


def _dialect(dialect: str) -> str:
    rows = {vendor.id: row_of(dialect, vendor) for vendor in REMOTE}
    whys = list(dict.fromkeys(cell for row in rows.values() for cell in row if cell != "yes"))
    shown = [
        [f"`{name}`", *(cell if cell == "yes" else f"no ({whys.index(cell) + 1})" for cell in row)]
        for name, row in rows.items()
    ]
    notes = "".join(f"\n{number}. No: {why}." for number, why in enumerate(whys, 1))
    return f"## {dialect}\n\n{_table(['provider', *(feature.name for feature in FEATURES)], shown)}{notes}\n"


def fates_of(dialect: str) -> dict[str, list[str]]:
    """Return what becomes of each field of a dialect on each wire."""
    return {each.name: [fate_of(each, dialect, deployment_on(wire)) for wire in WIRES] for each in FIELDS[dialect]}


def _fields(dialect: str) -> str:
    rows = [
        [f"`{name}`", *("Sluice" if fate == "own" else fate for fate in fates)] for name, fates in fates_of(dialect).items()
    ]
    return f"### {dialect}\n\n{_table(['field', *WIRES], rows)}\n"


def _vendors() -> str:
    rows = [[f"`{vendor}`", ", ".join(f"`{name}`" for name in dropped_by(vendor)) or "nothing"] for vendor in CHAT_VENDORS]
    start = (
        "### Vendors of the openai-chat wire\n\nOf what an openai-chat client sends, they are not sent (dropped, by name):\n\n"
    )
    return start + _table(["provider", "fields"], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
