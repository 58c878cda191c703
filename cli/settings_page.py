"""What does ``docs/settings.md`` contain? Every setting with its range and default, by group. `make env` writes it."""

from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from cli.env_example import text_of
from common.config.settings import GROUPS, MIB
from common.live.reloadable import RELOADABLE

_HEAD = """\
# Settings

You can set each one as an environment variable, in `.env`, or in `sluice.yaml` (in small letters, without `SLUICE_`). The
environment is stronger than `.env`, and `.env` is stronger than `sluice.yaml`. `SLUICE_…_FILE` names a file with the value.
With a value outside its range, no process starts. Times are in seconds if the name ends in `_S`, in milliseconds if it ends in
`_MS`. Sizes are in bytes. The keys of providers are in [providers.md](providers.md).

Settings with "yes" under "reload" can change while Sluice runs: [configuration.md](configuration.md).

`make env` writes this page from `common/config/groups/`. `.env.example` has the same settings, ready to copy.
"""
_SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


_HEADING = ("| variable | default | range | reload | meaning |", "| --- | --- | --- | --- | --- |")


def render() -> str:
    """Return the page's text."""
    lines = [_HEAD]
    for group in GROUPS:
        lines += [f"## {group.__doc__}", "", *_HEADING]
        lines += [_row(name, field) for name, field in group.model_fields.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    default = text_of(field.get_default(call_default_factory=True))
    reload = "yes" if name in RELOADABLE else ""
    cells = (f"`SLUICE_{name.upper()}`", f"`{default}`" if default else "", _range(field), reload, field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _range(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_number(getattr(bound, attribute))}"
        for kind, attribute, sign in _SIGNS
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    return ", ".join(bounds) or " or ".join(f"`{word}`" for word in get_args(field.annotation) if isinstance(word, str))


def _number(bound: Any) -> str:
    if isinstance(bound, int) and bound >= MIB and bound % MIB == 0:
        return f"{bound // MIB} MiB"
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


if __name__ == "__main__":
    print(render(), end="")
