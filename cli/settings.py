"""What is wrong with the settings? A message names a setting as its writer did, says what it may be, and quotes no secret."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from cli.table import printable
from common.config.foreign_variables import find_variable
from common.config.setting_doubts import meant, nearest, unknown_keys
from common.config.setting_sources import (
    ENV_FILE,
    FILE_SUFFIX,
    PREFIX,
    YAML_FILE,
    Inputs,
    NotJson,
    UnreadableSettings,
    env_file,
    environment,
    full_path,
    is_nothing_given,
    provider_variable,
    yaml_file,
    yaml_values,
)
from common.config.settings import Settings
from common.live.live_settings import SettingsRefused
from common.process.redaction import Redactor, redact_tracebacks
from common.vendors.table import VENDORS

VALUE_CHARS_MAX = 80
_Node = Mapping[str, Any]
_Place = tuple[int | str, ...]


def load_settings(inputs: Inputs | None = None, **options: Any) -> Settings:
    """Return the settings, or end with status 2 and one line per error. ``options`` are those of a command; None: not given.

    ``inputs`` gets what the environment and the files say.
    """
    try:
        settings = read_settings(inputs or Inputs(), **options)
    except SettingsRefused as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    redact_tracebacks(Redactor.from_settings(settings))
    return settings


def read_settings(inputs: Inputs, **options: Any) -> Settings:
    """Return the settings, and keep in ``inputs`` what the environment and the files say.

    Raises:
        SettingsRefused: with one line per error.
    """
    given_options = {name: value for name, value in options.items() if value is not None}
    try:
        env_file()  # First, because pydantic's own reader of that file reports errors in other words.
        problems = [_unknown_key(name, near) for name, near in unknown_keys()]
        settings = Settings(**given_options, inputs=inputs)
        if not problems:
            return settings
    except UnreadableSettings as error:
        problems = [str(error)]
    except ValidationError as error:
        schema = Settings.model_json_schema()
        errors = error.errors(include_url=False)
        problems += dict.fromkeys(_problem(item, schema, given_options) for item in errors)
    raise SettingsRefused(problems)


def where_settings_are() -> str:
    """Return a sentence for a command that lacks a setting, if this folder and the environment have none at all; else ""."""
    if not is_nothing_given():
        return ""
    return (
        f"There is no {ENV_FILE} and no {YAML_FILE} in {Path.cwd()}, and no {PREFIX} variable is set: start the command in the "
        "folder of the gateway's settings (with systemd: cd /etc/sluice). "
    )


def _unknown_key(name: str, near: str | None) -> str:
    return f"{Redactor()(name)} in {full_path(yaml_file())}: there is no such setting. {meant(near)}"


def _problem(error: Any, schema: _Node, options: Mapping[str, Any]) -> str:
    """Return one line for one of pydantic's errors. An error about several settings names the first one in its context."""
    place: _Place = tuple(part for part in error["loc"] if part != "[key]") or (error["ctx"]["setting"],)
    name, text = _name(place, options), explain_error({**error, "loc": error["loc"] or place}, schema)
    if error["loc"] and str(error["input"]).startswith("tcp://"):
        text += " Kubernetes sets it for a Service of that name: set enableServiceLinks: false for the pod."
    is_unknown = error["type"] == "extra_forbidden" or error["loc"][-1:] == ("[key]",)
    name = Redactor()(name) if is_unknown else name  # A secret may stand where a name should be.
    is_the_setting = str(place[0]).upper() in name.upper() and not is_unknown  # Not a provider's variable.
    return f"{name}: {text} {_example(schema['properties'].get(place[0], {})) if is_the_setting else ''}".rstrip()


def _example(setting: _Node) -> str:
    """Return the example of a setting that is JSON, which says more than the kinds of its parts."""
    found = re.search(r"\{.*\}", setting.get("description", ""))
    return f"For example: {found[0]}" if found else ""


def explain_error(error: Any, schema: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors means, in sentences that quote no secret. ``schema`` is the model's JSON schema."""
    place: _Place = tuple(error["loc"])
    is_about_name = place[-1] == "[key]"
    place = place[:-1] if is_about_name else place
    node, parent, value = _node(schema, place), _node(schema, place[:-1]), error["input"]
    if isinstance(value, NotJson):
        text = f"it must be JSON, but is not: {value.problem}"
    elif error["type"] == "extra_forbidden" or is_about_name:
        return Redactor()(f"there is no {place[-1]!r} here. {_choice(str(place[-1]), _names(parent))}")
    elif error["type"] == "missing":
        text = f"it is missing, and must be {_allowed(node, schema)}"
    elif error["type"] == "value_error" or error["type"] not in get_args(ErrorType):
        text = error["msg"].removeprefix("Value error, ").rstrip(".")
    else:
        text = f"it must be {_allowed(node, schema)}"
    return Redactor()(f"{text}{_shown(value, node, schema)}.")


def _shown(value: Any, node: _Node, schema: _Node) -> str:
    """Return the value as a line may quote it: no secret, shortened, and without the login part of a URL."""
    is_secret = "password" in (node.get("format"), _resolved(node.get("items", {}), schema).get("format"))
    may_hold_secret = isinstance(value, NotJson) and "api_keys" in value
    if is_secret or may_hold_secret or not node or not isinstance(value, str | int | float):
        return ""
    head, mark, tail = str(value).rpartition("@")
    text = f"…@{tail}" if mark and ("/" in head or ":" in head) else str(value)
    if "://" in text:
        text = text.partition("?")[0]
    shortened = text[:VALUE_CHARS_MAX] + ("…" if len(text) > VALUE_CHARS_MAX else "")
    return f" (it is '{printable(shortened)}')"


# Where a value was set


def _name(place: _Place, options: Mapping[str, Any]) -> str:
    """Return the name that a value's writer used: ``SLUICE_PORT``, ``limits.key.requests in sluice.yaml``, ``--port``."""
    setting, *inner = map(str, place)
    path = "".join(f".{part}" for part in inner)
    variable = f"{PREFIX}{setting.upper()}"
    if setting in options:
        return "--" + ("port" if setting == "worker_port" else setting).replace("_", "-")
    for variables, where in ((os.environ, ""), (env_file(), f" in {full_path(ENV_FILE)}")):
        names = {name.upper(): name for name, value in variables.items() if value}
        for ending in ("", FILE_SUFFIX):
            if variable + ending in names:
                return f"{names[variable + ending]}{path}{where}"
            if setting == "providers" and (provider := _provider_variable(inner) + ending) in variables:
                return f"{provider}{where}"
    if setting in yaml_values():
        return f"{setting}{path} in {full_path(yaml_file())}"
    return (find_variable(setting, environment()) or variable) + path


def _provider_variable(inner: list[str]) -> str:
    vendor = VENDORS.get(inner[0]) if len(inner) > 1 else None
    return provider_variable(vendor.env, inner[1]) if vendor else ""


# What a value may be, according to the settings' JSON schema


def _node(schema: _Node, place: _Place) -> _Node:
    """Return the part of the schema that describes a place; {} if there is none."""
    node: _Node = schema
    for part in place:
        node = _resolved(node, schema)
        fields, any_field = node.get("properties", {}), node.get("additionalProperties")
        node = fields.get(part) or (any_field if isinstance(any_field, dict) else None) or node.get("items") or {}
    return _resolved(node, schema)


def _resolved(node: _Node, schema: _Node) -> _Node:
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        else:
            node = next(option for option in node["anyOf"] if option.get("type") != "null")
    return node


def _names(node: _Node) -> list[str]:
    """Return the fields that a place may have."""
    return list(node.get("properties", {})) or list(map(str, node.get("propertyNames", {}).get("enum", [])))


def _allowed(node: _Node, schema: _Node) -> str:
    kind = node.get("type")
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(node)
    if kind == "array":
        return "a list" + (f" of {node['minItems']} or more" if node.get("minItems") else "")
    if kind == "object":
        names = _names(node)
        return f"JSON with {', '.join(names)}" if names else "JSON in braces"
    if kind == "boolean":
        return "true or false"
    return f"text such as {node['examples'][0]}" if "examples" in node else "text"


def _range(node: _Node) -> str:
    least, above = node.get("minimum"), node.get("exclusiveMinimum")
    most, below = node.get("maximum"), node.get("exclusiveMaximum")
    low = f"from {_number(least)}" if least is not None else f"above {_number(above)}" if above is not None else ""
    high = f"to {_number(most)}" if most is not None else f"below {_number(below)}" if below is not None else ""
    return "".join(f" {part}" for part in (low, high) if part)


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _choice(name: str, names: Iterable[str]) -> str:
    choices = list(names)
    near = nearest(name, choices)
    return (f"Did you mean {near}? " if near else "") + (f"There are: {', '.join(choices)}." if choices else "Names are text.")
