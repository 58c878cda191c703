"""Has the database the tables of this version, and if not, how does it get them?"""

import asyncio

import click

from common.config.groups.ledger import LedgerSettings
from common.config.settings import Settings
from common.database.errors import DatabaseUnavailable
from common.database.migrate import HEAD, migrate, read_revision
from common.process.redaction import shown_url


def run(settings: Settings, *, check: bool) -> int:
    """Migrate, or only (``check``) say whether it is needed; returns the exit status, 1 where something is left to do."""
    where = shown_url(settings.database_url)
    try:
        return asyncio.run(_check(settings, where) if check else _migrate(settings, where))
    except DatabaseUnavailable as error:
        click.echo(
            f"The database {where} cannot be used: {error}. Check SLUICE_DATABASE_URL, and that it is running.", err=True
        )
        return 1


async def _check(settings: LedgerSettings, where: str) -> int:
    found = await read_revision(settings.database_url)
    if found is not None and found >= HEAD:
        click.echo(f"{where} is at revision {found}; this version needs {HEAD}: nothing to do.")
        return 0
    click.echo(f"{where} is {f'at revision {found}' if found else 'empty'}; this version needs {HEAD}. Run `sluice migrate`.")
    return 1


async def _migrate(settings: LedgerSettings, where: str) -> int:
    done = await migrate(settings.database_url)
    if done.before == done.after:
        click.echo(f"{where} was at revision {done.after} already.")
    else:
        click.echo(f"{where} went from {f'revision {done.before}' if done.before else 'empty'} to revision {done.after}.")
    return 0
