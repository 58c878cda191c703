"""How does an operator make, change and delete managed keys from a terminal?

The commands talk to the database and to Redis themselves, so they work while no API runs. Both must be those of the APIs.
"""

import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli import keys_output

ID_SHOWN_MAX = 20

if TYPE_CHECKING:
    from pydantic import SecretStr

    from common.access.key_records import KeyRecord
    from common.access.key_ring import Change, KeyRing
    from common.access.principal import Access
    from common.config.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])
Answer = TypeVar("Answer")

LIST_MAX = 10_000
_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group()
def keys() -> None:
    """Make, show, rotate, disable and delete managed keys.

    A key is shown once, when it is made or rotated: only a hash of it is kept. Needs SLUICE_SECRET, SLUICE_DATABASE_URL and
    SLUICE_REDIS_URL as the APIs have them. Each command takes --json.

    \b
    sluice keys create --name "the web shop" --model 'gpt-*' --requests 60 --month-usd 50
    sluice keys rotate 4f7k2m9qwxyz --overlap 1h
    sluice keys disable 4f7k2m9qwxyz
    """


def _span_s(text: str) -> int:
    """Return a span of time such as 90s, 10m, 12h, 30d or 2w in seconds."""
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None:
        raise click.BadParameter("must be like 90s, 10m, 12h, 30d or 2w")
    return int(match[1]) * _UNIT_S[match[2]]


def _overlap(_: click.Context, __: click.Parameter, text: str | None) -> int:
    return _span_s(text) if text else 0


def _moment(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    """Return the moment in ms that an expiry names: in so much time, or a date, of UTC unless it says otherwise."""
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
    click.option("--model", "models", multiple=True, help="A model it may name, or provider/model; with * and ?. Repeatable."),
    click.option("--provider", "providers", multiple=True, help="A provider that may answer it. Repeatable."),
    click.option("--dialect", "dialects", multiple=True, help="A dialect that it may speak. Repeatable."),
    click.option("--origin", "origins", multiple=True, help="A page that may use it, https://app.example. Repeatable."),
    click.option("--disconnect", help="When its client leaves: stop, grace=SECONDS or detach."),
    click.option("--class", "highest_class", help="The highest class of its requests: interactive or background."),
    click.option("--requests", type=int, help="Most requests per window."),
    click.option("--tokens", type=int, help="Most tokens per window, of prompts and answers together."),
    click.option("--concurrent", type=int, help="Most generations at a time."),
    click.option("--window", "window_s", type=float, help="The window in seconds; 60 where it is not said."),
    click.option(
        "--day-usd", help="Most US dollars per day of UTC; what runs when it is spent runs on, so set --concurrent too."
    ),
    click.option("--month-usd", help="Most US dollars per month of UTC."),
    click.option("--guardrail", "guardrails", multiple=True, help="pii=block, injection=log, …; see docs/guardrails.md."),
    click.option("--audit/--no-audit", default=None, help="Keep its requests and answers, encrypted."),
]
# Where an access has what an option says, and how the option is called where that is not its parameter's name.
_PLACES: dict[str, tuple[str, ...]] = {
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
    "audit": ("audit",),
}
_OPTIONS = {
    "models": "model",
    "providers": "provider",
    "dialects": "dialect",
    "origins": "origin",
    "highest_class": "class",
    "window_s": "window",
    "guardrails": "guardrail",
}
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def _access_options(function: Function) -> Function:
    for option in reversed(_ACCESS_OPTIONS):
        function = option(function)
    return function


@keys.command()
@click.option("--name", default="", help="What it is for; for people.")
@click.option("--tenant", default="", help="Whose budget, turns and rules it shares; its own if not said.")
@click.option("--expires", callback=_moment, help="In so much time (30d), or at a date of UTC (2027-01-31).")
@_access_options
@_JSON
def create(name: str, tenant: str, expires: int | str | None, as_json: bool, **said: Any) -> None:
    """Make a key, and show it this once.

    \b
    sluice keys create --name "the web shop" --model 'gpt-*' --requests 60 --month-usd 50
    sluice keys create --name trial --expires 30d --guardrail pii=block --json
    """
    from common.access.principal import Access

    access = _access(Access(), said)
    _check_names(name, tenant)
    _warn_doubtful(access)

    async def make(ring: "KeyRing") -> Any:
        from common.access.key_ring import NewKey

        return await ring.create(NewKey(name, tenant, access, expires if isinstance(expires, int) else None))

    keys_output.show_minted(_run(make, must_exist=False), as_json, "Key {id} was made. This is the only time that it is shown:")


@keys.command("list")
@click.option("--tenant", help="Of this tenant only.")
@_JSON
def list_(tenant: str | None, as_json: bool) -> None:
    """List the keys.

    \b
    sluice keys list
    sluice keys list --tenant acme --json
    """

    async def read(ring: "KeyRing") -> "list[KeyRecord]":
        found: list[KeyRecord] = []
        while batch := await ring.list(tenant, found[-1].id if found else ""):
            found += batch
            if len(found) >= LIST_MAX:
                break
        return sorted(found, key=lambda record: record.created_ms)

    found = _run(read)
    if as_json:
        click.echo(json.dumps([keys_output.told_of(record) for record in found], indent=2))
        return
    rows = [("id", "name", "tenant", "state", "expires"), *(keys_output.row_of(record) for record in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("id_", metavar="ID")
@_JSON
def show(id_: str, as_json: bool) -> None:
    """Show what a key may, but never the key.

    \b
    sluice keys show 4f7k2m9qwxyz
    """
    keys_output.show(_run(lambda ring: ring.find(id_)), as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@click.option("--overlap", "overlap_s", callback=_overlap, help="For how long the key before is good, too: 90s, 10m, 24h.")
@_JSON
def rotate(id_: str, overlap_s: int, as_json: bool) -> None:
    """Give a key a new secret. Its id, its usage and its generations stay what they are.

    \b
    sluice keys rotate 4f7k2m9qwxyz --overlap 1h      # the old one is good for an hour more
    """
    from common.access.key_ring import OVERLAP_S_MAX

    if overlap_s > OVERLAP_S_MAX:
        raise click.UsageError(f"--overlap must be at most {OVERLAP_S_MAX // 86_400}d")
    keys_output.show_minted(
        _run(lambda ring: ring.rotate(id_, overlap_s)), as_json, "Key {id} was rotated. The new one, shown this once:"
    )


@keys.command()
@click.argument("id_", metavar="ID")
@_JSON
def disable(id_: str, as_json: bool) -> None:
    """Let a key in no more, everywhere within two seconds. What it has begun runs on.

    \b
    sluice keys disable 4f7k2m9qwxyz
    """
    _update(id_, lambda _: {"is_disabled": True}, as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@_JSON
def enable(id_: str, as_json: bool) -> None:
    """Let a disabled key in again.

    \b
    sluice keys enable 4f7k2m9qwxyz
    """
    _update(id_, lambda _: {"is_disabled": False}, as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@click.option("--name", help="What it is for.")
@click.option("--tenant", help="Whose budget, turns and rules it shares.")
@click.option("--expires", callback=_moment, help="In so much time (30d), at a date of UTC (2027-01-31), or never.")
@click.option("--clear", multiple=True, help="Forget a limit: models, origins, day-usd, …. Repeatable.")
@_access_options
@_JSON
def update(
    id_: str,
    name: str | None,
    tenant: str | None,
    expires: int | str | None,
    clear: tuple[str, ...],
    as_json: bool,
    **said: Any,
) -> None:
    """Change what a key may. What is not named stays; lists are replaced. Without options: tell Redis of the key again.

    \b
    sluice keys update 4f7k2m9qwxyz --requests 120 --expires never
    sluice keys update 4f7k2m9qwxyz --clear models
    """
    _check_names(name or "", tenant or "")
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = name
    if tenant:
        changes["tenant"] = tenant
    if expires is not None:
        changes["expires_ms"] = None if expires == keys_output.NEVER else expires
    has_access = bool(clear) or any(value is not None and value != () for value in said.values())
    _update(id_, lambda old: {**changes, "access": _access(old.access, said, clear)} if has_access else changes, as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@click.confirmation_option("--yes", prompt="Delete it for good? Disabling it can be undone.")
@_JSON
def delete(id_: str, as_json: bool) -> None:
    """Delete a key for good. Its usage stays on record.

    \b
    sluice keys delete 4f7k2m9qwxyz --yes
    """
    if not _run(lambda ring: ring.delete(id_)):
        click.echo("! Redis did not answer: the key is disabled in the database alone. Run the command again.", err=True)
        sys.exit(1)
    click.echo(json.dumps({"id": id_, "deleted": True}) if as_json else f"Key {id_} is deleted.")


def _update(id_: str, change: "Change", as_json: bool) -> None:
    changed = _run(lambda ring: ring.update(id_, change))
    _warn_doubtful(changed.record.access)
    keys_output.show(changed.record, as_json)
    keys_output.warn_unserved(changed.record, is_served=changed.is_served)


def _access(old: "Access", said: dict[str, Any], clear: tuple[str, ...] = ()) -> "Access":
    """Return what the options say, on top of what was."""
    from pydantic import ValidationError

    from cli.settings import what_is_wrong
    from common.access.principal import Access

    fields = old.model_dump(mode="json", exclude_defaults=True)
    for name in clear:
        place = _PLACES.get(name.strip("-").replace("-", "_")) or _PLACES.get(f"{name.strip('-')}s") or _PLACES.get(f"{name}_s")
        if place is None:
            raise click.UsageError(f"--clear {name}: choose from {', '.join(each.replace('_', '-') for each in _PLACES)}")
        _set(fields, place, None)
    for name, value in said.items():
        if value is not None and value != ():
            _set(fields, _PLACES[name], _guardrails(value) if name == "guardrails" else value)
    try:
        return Access.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise click.UsageError(f"{_option_of(first['loc'])}: {what_is_wrong(first, Access.model_json_schema())}") from error


def _option_of(place: tuple[int | str, ...]) -> str:
    """Return the option that a place in an access is set by."""
    name = next((name for name, each in _PLACES.items() if place[: len(each)] == each), str(place[0]))
    return "--" + _OPTIONS.get(name, name).replace("_", "-")


def _warn_doubtful(access: "Access") -> None:
    """Tell of what a key is allowed and cannot be meant: it would be of no use, or narrower than its maker believes."""
    from cli.settings import load_settings
    from common.config.setting_doubts import doubts_of_access

    for what, mend in doubts_of_access(access, load_settings()):
        click.echo(f"! It is allowed {what}. {mend}", err=True)


def _set(fields: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Set one field of an access, or take it away: None."""
    *outer, last = place
    for name in outer:
        fields = fields.setdefault(name, {})
    fields.pop(last, None)
    if value is not None:
        fields[last] = value


def _guardrails(said: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in said]
    if any(not mark for _, mark, _ in pairs):
        raise click.UsageError("--guardrail must be like pii=block")
    return {name: mode for name, _, mode in pairs}


def _check_names(name: str, tenant: str) -> None:
    from common.access.key_ring import NAME_MAX, TENANT_MAX

    if len(name) > NAME_MAX or not name.isprintable():
        raise click.UsageError(f"--name must be at most {NAME_MAX} printable characters")
    if tenant and (len(tenant) > TENANT_MAX or not re.fullmatch(r"[A-Za-z0-9._@-]+", tenant)):
        raise click.UsageError(f"--tenant must be at most {TENANT_MAX} letters, digits and . _ @ -")


# Doing


def _run(work: Callable[["KeyRing"], Awaitable[Answer]], *, must_exist: bool = True) -> Answer:
    """``must_exist``: the database, of which only the first key may make one."""
    import asyncio  # Here, as all that a help page does without.

    from cli.settings import load_settings

    settings = load_settings()
    if settings.secret is None:
        raise click.UsageError(
            "Managed keys need SLUICE_SECRET, the same for all processes: make one with `openssl rand -hex 32`."
        )
    with _failures():
        return asyncio.run(_with_ring(settings, settings.secret, work, must_exist))


async def _with_ring(
    settings: "Settings", secret: "SecretStr", work: Callable[["KeyRing"], Awaitable[Answer]], must_exist: bool
) -> Answer:
    from common.access.key_ring import KeyRing
    from common.database.lazy import LazyDatabase
    from common.redis.client import connect

    database, redis = LazyDatabase(settings.database_url, must_exist=must_exist), connect(settings.redis_url)
    try:
        return await work(KeyRing(await database.engine(), redis, secret))
    finally:
        await redis.aclose()
        await database.close()


@contextmanager
def _failures() -> Iterator[None]:
    from common.access.key_ring import Busy, UnknownKey
    from common.database.engine import DatabaseUnavailable, RowRefused

    try:
        yield
    except UnknownKey as error:
        id_ = str(error)
        shown = id_ if len(id_) <= ID_SHOWN_MAX else "of this id (is it the key itself?)"  # Then it is a secret.
        raise click.ClickException(f"There is no key {shown}. `sluice keys list` shows those that there are.") from error
    except (DatabaseUnavailable, RowRefused) as error:
        raise click.ClickException(
            f"The database: {error}. Is SLUICE_DATABASE_URL right? `sluice doctor` tells more."
        ) from error
    except Busy as error:
        raise click.ClickException("Others change the same key just now. Try again.") from error
