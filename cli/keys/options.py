"""Which options say what a key may do, and how are their values parsed?"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.keys import output as keys_output

if TYPE_CHECKING:
    from common.access.principal import Access

Function = TypeVar("Function", bound=Callable[..., Any])

_SPAN = re.compile(r"(\d{1,6})([smhdw])")

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _span_s(text: str) -> int:
    """Return a span of time such as 90s, 10m, 12h, 30d or 2w in seconds."""
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None:
        raise click.BadParameter("must be like 90s, 10m, 12h, 30d or 2w")
    return int(match[1]) * _UNIT_S[match[2]]


def parse_overlap(_: click.Context, __: click.Parameter, text: str | None) -> int:
    return _span_s(text) if text else 0


def _parse_ttl(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    return None if text is None else 0 if text.strip() == "0" else _span_s(text)


def parse_expiry(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    """Return the moment of an expiry in ms: after some time, or at a date, which is in UTC unless it says otherwise."""
    if text is None or text == keys_output.NEVER:
        return text
    if _SPAN.fullmatch(text.strip().lower()):
        return time.time_ns() // 1_000_000 + _span_s(text) * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter("must be like 30d, 12h, 2027-01-31, 2027-01-31T18:00 or never") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


_ACCESS_OPTIONS = [
    click.option(
        "--model",
        "models",
        multiple=True,
        help="A model that it may use, or provider/model; * and ? are wildcards. Repeatable.",
    ),
    click.option("--provider", "providers", multiple=True, help="A provider that it may use. Repeatable."),
    click.option("--dialect", "dialects", multiple=True, help="A dialect that it may use. Repeatable."),
    click.option("--origin", "origins", multiple=True, help="A page that may use it: https://app.example. Repeatable."),
    click.option("--disconnect", help="What happens when its client leaves: stop, grace=SECONDS or detach."),
    click.option("--class", "highest_class", help="The highest class of its requests: interactive or background."),
    click.option("--requests", type=int, help="The most requests per window."),
    click.option("--tokens", type=int, help="The most tokens per window, of prompts and answers together."),
    click.option("--concurrent", type=int, help="The most generations at the same time."),
    click.option("--window", "window_s", type=float, help="The window in seconds. Default: 60."),
    click.option(
        "--day-usd", help="The most US dollars per day (UTC). Running answers may exceed it, so set --concurrent too."
    ),
    click.option("--month-usd", help="The most US dollars per month (UTC)."),
    click.option("--guardrail", "guardrails", multiple=True, help="pii=block, injection=log, …; see docs/guardrails.md."),
    click.option(
        "--cache-ttl", callback=_parse_ttl, help="How long answers to its requests are used again: 90s, 10m, 2h. 0: never."
    ),
    click.option("--cache-policy", help="Which requests are cached: deterministic (temperature 0) or all."),
    click.option("--cache-scope", help="Who gets its cached answers: the same key, or its tenant."),
    click.option("--audit/--no-audit", default=None, help="Keep its requests and answers, encrypted."),
]

# The field of an access that each option sets, by the name of the option's parameter.
_FIELDS: dict[str, tuple[str, ...]] = {
    "models": ("models",),
    "providers": ("providers",),
    "dialects": ("dialects",),
    "origins": ("cors_origins",),
    "disconnect": ("disconnect",),
    "highest_class": ("highest_class",),
    "requests": ("limits", "requests"),
    "tokens": ("limits", "tokens"),
    "concurrent": ("limits", "concurrent"),
    "window_s": ("limits", "window_s"),
    "day_usd": ("budget", "day_usd"),
    "month_usd": ("budget", "month_usd"),
    "guardrails": ("guardrails",),
    "cache_ttl": ("cache", "ttl_s"),
    "cache_policy": ("cache", "policy"),
    "cache_scope": ("cache", "scope"),
    "audit": ("audit",),
}

# Names of options that differ from the names of their parameters.
_OPTION_NAMES = {
    "models": "model",
    "providers": "provider",
    "dialects": "dialect",
    "origins": "origin",
    "highest_class": "class",
    "window_s": "window",
    "guardrails": "guardrail",
}

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def access_options(function: Function) -> Function:
    for option in reversed(_ACCESS_OPTIONS):
        function = option(function)
    return function


def access_of(old: "Access", access_values: dict[str, Any], clear: tuple[str, ...] = ()) -> "Access":
    """Return the old access with the changes that the options make."""
    from pydantic import ValidationError

    from cli.settings import explain_error
    from common.access.principal import Access

    fields = old.model_dump(mode="json", exclude_defaults=True)
    for name in clear:
        place = _FIELDS.get(name.strip("-").replace("-", "_")) or _FIELDS.get(f"{name.strip('-')}s") or _FIELDS.get(f"{name}_s")
        if place is None:
            choices = ", ".join(option.replace("_", "-") for option in _FIELDS)
            raise click.UsageError(f"--clear {name}: choose from {choices}")
        _set(fields, place, None)
    for name, value in access_values.items():
        if value is not None and value != ():
            _set(fields, _FIELDS[name], _guardrails(value) if name == "guardrails" else value)
    try:
        return Access.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise click.UsageError(f"{_option_of(first['loc'])}: {explain_error(first, Access.model_json_schema())}") from error


def _option_of(place: tuple[int | str, ...]) -> str:
    """Return the option that sets a field of an access."""
    name = next((name for name, field in _FIELDS.items() if place[: len(field)] == field), str(place[0]))
    return "--" + _OPTION_NAMES.get(name, name).replace("_", "-")


def _set(fields: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Set one field of an access, or (None) remove it."""
    *outer, last = place
    for name in outer:
        fields = fields.setdefault(name, {})
    fields.pop(last, None)
    if value is not None:
        fields[last] = value


def _guardrails(values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if any(not mark for _, mark, _ in pairs):
        raise click.UsageError("--guardrail must be like pii=block")
    return {name: mode for name, _, mode in pairs}


def check_names(name: str, tenant: str) -> None:
    from common.access.key_ring import NAME_MAX, TENANT_MAX

    if len(name) > NAME_MAX or not name.isprintable():
        raise click.UsageError(f"--name must be at most {NAME_MAX} printable characters")
    if tenant and (len(tenant) > TENANT_MAX or not re.fullmatch(r"[A-Za-z0-9._@-]+", tenant)):
        raise click.UsageError(f"--tenant must be at most {TENANT_MAX} letters, digits and . _ @ -")
