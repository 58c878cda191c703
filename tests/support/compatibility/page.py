"""What does docs/compatibility.md say? ``make compatibility`` runs this module, which prints the page."""

import sys
from collections.abc import Iterable

from common.dialects import DIALECTS
from common.vendors.table import Vendor
from tests.support.compatibility.cells import FEATURES, REMOTE, cell_of
from tests.support.compatibility.request_fields import CHAT_VENDORS, FIELDS, TARGETS, deployment_on, dropped_by, fate_of
from workers.providers import WIRES

_START = """# Compatibility: what works between which client and which provider

`make compatibility` writes this page. It tests every cell and every field of the page. The test suite does the same, and fails
if the page says something else ([cells.py](../tests/support/compatibility/cells.py),
[request_fields.py](../tests/support/compatibility/request_fields.py)).

*yes* means two things. The client's request is parsed and built for the provider, and contains what the client requested. The
provider's answer, streamed and whole, is read by the dialect's own clients (the `openai` and `anthropic` SDKs, strict readers
for the other two dialects), and text, calls and usage are what the provider sent. Whether a model supports a feature is
decided by its provider, whose refusal is passed on.

The answers in these tests are the shortest of their kind. Recorded answers of real providers go through every dialect
in [tests/contracts](../tests/contracts/test_recordings_in_every_dialect.py). [clients.md](clients.md) lists the clients that
were run, [providers.md](providers.md) the differences between vendors.
"""
_FIELDS_START = """## What happens to each field

The tables are by wire; [providers.md](providers.md) says which provider speaks which wire. If a dialect meets its own wire, the
body passes unchanged.

- **carried**: the provider gets the field, in its own form and within its own limits.
- **dropped**: the field is left out, because the answer is still the requested one without it. The header `x-sluice-dropped`
  names it.
- **refused**: 400 that names the field, because the answer would be wrong without it.
- **Sluice**: Sluice itself provides the feature, whichever the provider is.

Fields that a dialect does not define are ignored. Some models support fewer fields than the tested ones ({models}):
a field that a model is known to refuse is also dropped and named.
"""


def page() -> str:
    parts = [_START, *(_dialect(name) for name in DIALECTS)]
    models = ", ".join(f"`{model}`" for model in dict.fromkeys(model for _, model in TARGETS.values()))
    parts += [_FIELDS_START.format(models=models), *(_fields(name) for name in DIALECTS), _vendors()]
    return "\n".join(parts)


def row_of(dialect: str, vendor: Vendor) -> list[str]:
    """Return the cells of a provider: "yes", or the reason why not."""
    return [cell_of(dialect, vendor, feature) or "yes" for feature in FEATURES]


def _dialect(dialect: str) -> str:
    rows = {vendor.id: row_of(dialect, vendor) for vendor in REMOTE}
    reasons = list(dict.fromkeys(cell for row in rows.values() for cell in row if cell != "yes"))
    shown = [
        [f"`{name}`", *(cell if cell == "yes" else f"no ({reasons.index(cell) + 1})" for cell in row)]
        for name, row in rows.items()
    ]
    notes = "".join(f"\n{number}. No: {why}." for number, why in enumerate(reasons, 1))
    return f"## {dialect}\n\n{_table(['provider', *(feature.name for feature in FEATURES)], shown)}{notes}\n"


def fates_of(dialect: str) -> dict[str, list[str]]:
    """Return what happens to each field of a dialect on each wire."""
    return {field.name: [fate_of(field, dialect, deployment_on(wire)) for wire in WIRES] for field in FIELDS[dialect]}


def _fields(dialect: str) -> str:
    rows = [
        [f"`{name}`", *("Sluice" if fate == "own" else fate for fate in fates)] for name, fates in fates_of(dialect).items()
    ]
    return f"### {dialect}\n\n{_table(['field', *WIRES], rows)}\n"


def _vendors() -> str:
    rows = [[f"`{vendor}`", ", ".join(f"`{name}`" for name in dropped_by(vendor)) or "nothing"] for vendor in CHAT_VENDORS]
    start = (
        "### Vendors of the openai-chat wire\n\nThey do not get these fields of an openai-chat client (dropped and named):\n\n"
    )
    return start + _table(["provider", "fields"], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
