"""What does ``docs/settings.md`` say? Every setting with its range and default, by group: `make env` writes it."""

from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from cli.env_example import text_of
from common.config.settings import GROUPS, MIB

_HEAD = """\
# Settings

Each is a variable of the environment, a line of `.env`, or a key of `sluice.yaml` (in small letters, without `SLUICE_`); the
former is stronger. `SLUICE_…_FILE` names a file that holds the value. Outside of its range no process starts. Times are seconds
where the name ends in `_S`, milliseconds for `_MS`; sizes are bytes. Keys of providers: [providers.md](providers.md).

This page is written by `make env` from `common/config/groups/`; `.env.example` has the same, ready to be copied.
"""
_SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


def render() -> str:
    """Return the page's text."""
    lines = [_HEAD]
    for group in GROUPS:
        lines += [f"## {group.__doc__}", "", "| variable | default | range | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(name, field) for name, field in group.model_fields.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    default = text_of(field.get_default(call_default_factory=True))
    cells = (f"`SLUICE_{name.upper()}`", f"`{default}`" if default else "", _range(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _range(field: FieldInfo) -> str:
    found = [
        f"{sign} {_number(getattr(bound, attribute))}"
        for kind, attribute, sign in _SIGNS
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    return ", ".join(found) or " or ".join(f"`{word}`" for word in get_args(field.annotation) if isinstance(word, str))


def _number(bound: Any) -> str:
    if isinstance(bound, int) and bound >= MIB and bound % MIB == 0:
        return f"{bound // MIB} MiB"
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


if __name__ == "__main__":
    print(render(), end="")
