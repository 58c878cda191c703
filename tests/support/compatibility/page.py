"""What does docs/compatibility.md say? ``make compatibility`` runs this module, which prints the page."""

import sys
from collections.abc import Iterable

from common.dialects import DIALECTS
from common.vendors.table import Vendor
from tests.support.compatibility.cells import FEATURES, REMOTE, cell_of
from tests.support.compatibility.request_fields import CHAT_VENDORS, FIELDS, TARGETS, deployment_on, dropped_by, fate_of
from tests.support.compatibility.strict_cells import MODELS_OF, WISHES, outcome
from tests.support.compatibility.strict_failures import EXCEPTIONS, FAILURES, exceptions, failures
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
_STRICT_START = """
## What each generation of models accepts

Vendors refuse requests that they took a generation ago. Here a strict judge stands for each vendor: it refuses what the
vendor's own pages, and reports of its answers, say is refused ([strict](../tests/support/upstreams/strict/__init__.py)).
{wishes} wishes of clients, in all dialects that can express them, are sent to a model of each generation.

*yes*: the judge accepts all requests of this kind, from every dialect. A number is a note below: some of them are refused.
Requests of a vendor's own clients that the vendor would refuse without Sluice as well do not count.
"""
_NOT_LISTED = "The vendor refuses some of them, for a reason that no list has"
_SLUICE_REFUSES = "Sluice itself refuses some of them, with a 400 that names the field"
# The kinds of wishes, by the beginning of their names.
_KINDS = {
    "texts": ("plain", "a whole", "several", "two users", "an empty"),
    "system messages": ("system", "two systems", "developer"),
    "tools": ("tools", "one call"),
    "Claude Code, Codex": ("Claude Code", "Codex"),
    "tool loops": ("a tool loop", "a result", "an id", "a long id"),
    "forced tools": ("forced",),
    "names and schemas of tools": ("long tool", "tool name", "tool with"),
    "thinking": ("thinking", "effort"),
    "JSON schema": ("JSON",),
    "images, PDFs": ("image", "PDF"),
    "prefill": ("prefill",),
    "sampling": ("temperature", "top_p"),
    "limits": ("stop", "six stops", "many tokens", "one token"),
}


def page() -> str:
    parts = [_START, *(_dialect(name) for name in DIALECTS), _generations()]
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


def _generations() -> str:
    notes = [*FAILURES, *EXCEPTIONS, _SLUICE_REFUSES, _NOT_LISTED]
    targets = [f"{vendor}/{model}" for vendor, models in MODELS_OF.items() for model in models]
    cells = {target: [_numbers(target, kind, notes) for kind in _KINDS] for target in targets}
    rows = [[f"`{target}`", *row] for target, row in cells.items()]
    listed = "".join(f"\n{number}. {note}." for number, note in enumerate(notes, 1) if note != _NOT_LISTED)
    return f"{_STRICT_START.format(wishes=len(WISHES)).lstrip()}\n{_table(['model', *_KINDS], rows)}{listed}\n"


def _numbers(target: str, kind: str, notes: list[str]) -> str:
    reasons = {**failures(), **exceptions()}
    found: set[str] = set()
    for wish in (wish for wish in WISHES if wish.startswith(_KINDS[kind])):
        for dialect in DIALECTS:
            result = outcome(dialect, target, wish)
            if result and result.verdict == "refused by Sluice":
                found.add(_SLUICE_REFUSES)
            elif result and result.verdict == "refused":
                found.add(reasons.get((dialect, target, wish), _NOT_LISTED))
    return ", ".join(str(number) for number in sorted(notes.index(reason) + 1 for reason in found)) or "yes"


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
