"""How does an operator make, change and delete managed keys from a terminal?

The commands use the database and Redis directly, so they work even if no API runs. Both must be the same as those of the APIs.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.keys import output as keys_output
from cli.keys.options import JSON_OPTION, access_of, access_options, check_names, parse_expiry, parse_overlap
from cli.table import aligned

ID_SHOWN_MAX = 20

if TYPE_CHECKING:
    from pydantic import SecretStr

    from common.access.key_records import KeyRecord
    from common.access.key_ring import Change, KeyRing
    from common.access.principal import Access
    from common.config.settings import Settings

Answer = TypeVar("Answer")

LIST_MAX = 10_000


@click.group()
def keys() -> None:
    """Make, show, rotate, disable and delete managed keys.

    A key is shown only once, when it is made or rotated: Sluice keeps only a hash of it. The commands need SLUICE_SECRET,
    SLUICE_DATABASE_URL and SLUICE_REDIS_URL with the same values as the APIs. Every command accepts --json.

    \b
    sluice keys create --name "the web shop" --model 'gpt-*' --requests 60 --month-usd 50
    sluice keys rotate 4f7k2m9qwxyz --overlap 1h
    sluice keys disable 4f7k2m9qwxyz
    """


@keys.command()
@click.option("--name", default="", help="A name that says what the key is for.")
@click.option("--tenant", default="", help="The tenant whose budget, queue turns and rules it shares. Default: its own.")
@click.option("--expires", callback=parse_expiry, help="When it expires: after a time (30d), or on a date in UTC (2027-01-31).")
@access_options
@JSON_OPTION
def create(name: str, tenant: str, expires: int | str | None, as_json: bool, **access_values: Any) -> None:
    """Make a key, and show it. It cannot be shown again.

    \b
    sluice keys create --name "the web shop" --model 'gpt-*' --requests 60 --month-usd 50
    sluice keys create --name trial --expires 30d --guardrail pii=block --json
    """
    from common.access.principal import Access

    access = access_of(Access(), access_values)
    check_names(name, tenant)
    _warn_doubtful(access)

    async def make(ring: "KeyRing") -> Any:
        from common.access.key_ring import NewKey

        return await ring.create(NewKey(name, tenant, access, expires if isinstance(expires, int) else None))

    keys_output.show_minted(_run(make, must_exist=False), as_json, "Key {id} was made. It is shown only this once:")


@keys.command("list")
@click.option("--tenant", help="List only the keys of this tenant.")
@JSON_OPTION
def list_(tenant: str | None, as_json: bool) -> None:
    """List the keys.

    \b
    sluice keys list
    sluice keys list --tenant acme --json
    """

    async def read_all(ring: "KeyRing") -> "list[KeyRecord]":
        records: list[KeyRecord] = []
        while batch := await ring.list(tenant, records[-1].id if records else ""):
            records += batch
            if len(records) >= LIST_MAX:
                break
        return sorted(records, key=lambda record: record.created_ms)

    records = _run(read_all)
    if as_json:
        click.echo(json.dumps([keys_output.to_dict(record) for record in records], indent=2))
        return
    rows = [("id", "name", "tenant", "state", "expires"), *(keys_output.row_of(record) for record in records)]
    click.echo("\n".join(aligned(rows, len(rows[0]))))


@keys.command()
@click.argument("id_", metavar="ID")
@JSON_OPTION
def show(id_: str, as_json: bool) -> None:
    """Show what a key may do, but never the key itself.

    \b
    sluice keys show 4f7k2m9qwxyz
    """
    keys_output.show(_run(lambda ring: ring.find(id_)), as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@click.option("--overlap", "overlap_s", callback=parse_overlap, help="For how long the old key still works: 90s, 10m, 24h.")
@JSON_OPTION
def rotate(id_: str, overlap_s: int, as_json: bool) -> None:
    """Give a key a new secret. Its id, usage and generations stay the same.

    \b
    sluice keys rotate 4f7k2m9qwxyz --overlap 1h      # the old key still works for an hour
    """
    from common.access.key_ring import OVERLAP_S_MAX

    if overlap_s > OVERLAP_S_MAX:
        raise click.UsageError(f"--overlap must be at most {OVERLAP_S_MAX // 86_400}d")
    keys_output.show_minted(
        _run(lambda ring: ring.rotate(id_, overlap_s)), as_json, "Key {id} was rotated. The new key, shown only this once:"
    )


@keys.command()
@click.argument("id_", metavar="ID")
@JSON_OPTION
def disable(id_: str, as_json: bool) -> None:
    """Disable a key. Every API refuses it within two seconds. Generations that it has started run on.

    \b
    sluice keys disable 4f7k2m9qwxyz
    """
    _update(id_, lambda _: {"is_disabled": True}, as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@JSON_OPTION
def enable(id_: str, as_json: bool) -> None:
    """Enable a disabled key again.

    \b
    sluice keys enable 4f7k2m9qwxyz
    """
    _update(id_, lambda _: {"is_disabled": False}, as_json)


@keys.command()
@click.argument("id_", metavar="ID")
@click.option("--name", help="A name that says what the key is for.")
@click.option("--tenant", help="The tenant whose budget, queue turns and rules it shares.")
@click.option("--expires", callback=parse_expiry, help="After a time (30d), on a date in UTC (2027-01-31), or never.")
@click.option("--clear", multiple=True, help="Remove a limit: models, origins, day-usd, …. Repeatable.")
@access_options
@JSON_OPTION
def update(
    id_: str,
    name: str | None,
    tenant: str | None,
    expires: int | str | None,
    clear: tuple[str, ...],
    as_json: bool,
    **access_values: Any,
) -> None:
    """Change what a key may do. Fields that are not named stay. Lists are replaced. Without options: resend it to Redis.

    \b
    sluice keys update 4f7k2m9qwxyz --requests 120 --expires never
    sluice keys update 4f7k2m9qwxyz --clear models
    """
    check_names(name or "", tenant or "")
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = name
    if tenant:
        changes["tenant"] = tenant
    if expires is not None:
        changes["expires_ms"] = None if expires == keys_output.NEVER else expires
    has_access = bool(clear) or any(value is not None and value != () for value in access_values.values())
    _update(
        id_, lambda old: {**changes, "access": access_of(old.access, access_values, clear)} if has_access else changes, as_json
    )


@keys.command()
@click.argument("id_", metavar="ID")
@click.confirmation_option("--yes", prompt="Delete it for good? (You can enable a disabled key again, but not a deleted one.)")
@JSON_OPTION
def delete(id_: str, as_json: bool) -> None:
    """Delete a key for good. Its usage stays in the ledger.

    \b
    sluice keys delete 4f7k2m9qwxyz --yes
    """
    if not _run(lambda ring: ring.delete(id_)):
        click.echo("! Redis did not answer: the key is disabled in the database only. Run the command again.", err=True)
        sys.exit(1)
    click.echo(json.dumps({"id": id_, "deleted": True}) if as_json else f"Key {id_} is deleted.")


def _update(id_: str, change: "Change", as_json: bool) -> None:
    changed = _run(lambda ring: ring.update(id_, change))
    _warn_doubtful(changed.record.access)
    keys_output.show(changed.record, as_json)
    keys_output.warn_unserved(changed.record, is_served=changed.is_served)


def _warn_doubtful(access: "Access") -> None:
    """Warn about rules that cannot be meant: the key would be useless, or narrower than its maker believes."""
    from cli.settings import load_settings
    from common.config.setting_doubts import find_access_doubts

    for rules, fix in find_access_doubts(access, load_settings()):
        click.echo(f"! It is allowed {rules}. {fix}", err=True)


# Running


def _run(work: Callable[["KeyRing"], Awaitable[Answer]], *, must_exist: bool = True) -> Answer:
    """Run ``work`` with a key ring. ``must_exist``: the database must exist already. Only the first key may make one."""
    import asyncio  # Imported here, like everything that a help page does not need.

    from cli.settings import load_settings, where_settings_are

    settings = load_settings()
    if settings.secret is None:
        raise click.UsageError(
            f"{where_settings_are()}Managed keys need SLUICE_SECRET, the same for all processes: make one with "
            "`openssl rand -hex 32`."
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
    from cli.settings import where_settings_are
    from common.access.key_ring import UnknownKey
    from common.database.errors import Busy, DatabaseUnavailable, RowRefused

    try:
        yield
    except UnknownKey as error:
        id_ = str(error)
        shown = id_ if len(id_) <= ID_SHOWN_MAX else "with this id (is it the key itself?)"  # A long id may be a secret.
        raise click.ClickException(f"There is no key {shown}. `sluice keys list` shows all keys.") from error
    except (DatabaseUnavailable, RowRefused) as error:
        raise click.ClickException(
            f"{where_settings_are()}The database: {error}. Is SLUICE_DATABASE_URL right? `sluice doctor` tells more."
        ) from error
    except Busy as error:
        raise click.ClickException("Others are changing the same key at the moment. Try again.") from error
