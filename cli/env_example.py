"""What does ``.env.example`` contain? Every setting, its meaning and its default, by group. `make env` writes it."""

import re
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from common.config.settings import GROUPS
from common.vendors.table import VENDORS

_HEAD = """\
# All settings of Sluice, with their defaults. Copy the ones that you change into .env, or set them in the environment.
# SLUICE_…_FILE and …_API_KEY_FILE name a file with the value instead, such as a container's secret.
# `make env` writes this file from common/config/groups/; docs/settings.md has the ranges. Names of times end in _S (seconds)
# or _MS (milliseconds), names of sizes in _BYTES_MAX.
"""


def render() -> str:
    """Return the file's text."""
    lines = [
        _HEAD,
        "# Providers: a key turns a provider on. Of several comma-separated keys, the next one is used when one is refused.",
    ]
    for vendor in VENDORS.values():
        if vendor.key_is_needed:
            base_url = re.sub(r"\{(\w+)\}", lambda word: word[1].upper(), vendor.base_url or "")
            lines += [f"# {vendor.env}_API_KEY=", f"# {vendor.env}_BASE_URL={base_url}"]
    lines.append("# Your own servers with OpenAI's chat completions API: an address turns a server on.")
    lines += [f"# {vendor.env}_BASE_URL=" for vendor in VENDORS.values() if not vendor.key_is_needed and vendor.id != "demo"]
    lines.append("")
    for group in GROUPS:
        lines += [f"# == {group.__doc__} ==", ""]
        for name, field in group.model_fields.items():
            lines += [
                f"# {field.description}",
                f"# SLUICE_{name.upper()}={text_of(field.get_default(call_default_factory=True))}",
            ]
        lines.append("")
    return "\n".join(lines)


def text_of(default: Any) -> str:
    if default is None or default is PydanticUndefined or default == ():
        return ""
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    if isinstance(default, dict | list | tuple):
        return orjson.dumps(default).decode()
    return f"{default:g}" if isinstance(default, float) and default < 1e6 else str(default)


if __name__ == "__main__":
    print(render(), end="")
