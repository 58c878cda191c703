"""How does the operator read the audit log: requests and their answers?"""

import asyncio

import click
import orjson
from sqlalchemy import select

from common.config.groups.ledger import LedgerSettings
from common.config.settings import Settings
from common.database.engine import database_errors
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase
from common.database.tables import AuditRow
from common.ledger.audit import unseal


def show(settings: Settings, generation_id: str) -> None:
    """Print one entry as JSON.

    Raises:
        ClickException: there is no such entry, or it cannot be read.
    """
    if settings.secret is None:
        raise click.ClickException("SLUICE_SECRET is not set. Entries are encrypted with a key that is derived from it.")
    try:
        sealed = asyncio.run(_find(settings, generation_id))
    except DatabaseUnavailable as error:
        raise click.ClickException(f"the database cannot be used: {error}") from error
    if sealed is None:
        raise click.ClickException(
            f"there is no entry for {generation_id!r}: its key is not audited, it has not ended, or the entry has expired"
        )
    try:
        entry = unseal(sealed, generation_id, *settings.secrets)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(orjson.dumps(entry, option=orjson.OPT_INDENT_2).decode())


async def _find(settings: LedgerSettings, generation_id: str) -> bytes | None:
    database = LazyDatabase(settings.database_url, must_exist=True)
    try:
        engine = await database.engine()
        with database_errors():
            async with engine.connect() as connection:
                return (await connection.execute(select(AuditRow.sealed).where(AuditRow.id == generation_id))).scalar()
    finally:
        await database.close()
