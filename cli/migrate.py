"""Does the database have the tables of this version, and if not, how does it get them?"""

import asyncio

import click

from common.config.groups.ledger import LedgerSettings
from common.config.settings import Settings
from common.database.errors import DatabaseUnavailable
from common.database.migrate import HEAD, migrate, read_revision
from common.process.redaction import shown_url


def run(settings: Settings, *, check: bool) -> int:
    """Migrate, or (``check``) only say whether it is needed. Return the exit status: 1 if something is left to do."""
    where = shown_url(settings.database_url)
    try:
        return asyncio.run(_check(settings, where) if check else _migrate(settings, where))
    except DatabaseUnavailable as error:
        click.echo(
            f"The database {where} cannot be used: {error}. Check SLUICE_DATABASE_URL, and that the database is running.",
            err=True,
        )
        return 1


async def _check(settings: LedgerSettings, where: str) -> int:
    revision = await read_revision(settings.database_url)
    if revision is not None and revision >= HEAD:
        click.echo(f"{where} is at revision {revision}; this version needs {HEAD}: nothing to do.")
        return 0
    state = f"at revision {revision}" if revision else "empty"
    click.echo(f"{where} is {state}; this version needs {HEAD}. Run `sluice migrate`.")
    return 1


async def _migrate(settings: LedgerSettings, where: str) -> int:
    revisions = await migrate(settings.database_url)
    if revisions.before == revisions.after:
        click.echo(f"{where} was at revision {revisions.after} already.")
    else:
        before = f"revision {revisions.before}" if revisions.before else "empty"
        click.echo(f"{where} went from {before} to revision {revisions.after}.")
    return 0
