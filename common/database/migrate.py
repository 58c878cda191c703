"""Does the database have the tables that this version needs, and how does it get them?

Revisions are numbered: 0001, 0002… This version also works with a newer database, because migrations only add. So processes
can be replaced one at a time after ``sluice migrate``. The first process that opens an SQLite file migrates it, because the
file belongs to one machine. PostgreSQL is migrated by the command only, because often another user may change tables there.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.database.engine import database_errors, is_sqlite, open_database
from common.database.errors import DatabaseUnavailable
from common.database.revisions import FOLDER, is_sqlite_url, sqlite_revision
from common.database.revisions import HEAD as HEAD

_LOCK = 0x511CE  # The number of our advisory lock in PostgreSQL. Nobody else uses locks in our own database.
_WAL_ATTEMPTS, _WAL_PAUSE_S = 100, 0.05


@dataclass(frozen=True, slots=True)
class Migrated:
    """The revisions before (None: there were no tables of ours) and after a migration."""

    before: str | None
    after: str


async def migrate(url: str) -> Migrated:
    """Migrate a database to this version. Several processes may call it at once: one migrates, the others wait.

    Raises:
        DatabaseUnavailable: it cannot be reached, or does not allow it.
    """
    engine = open_database(url)
    try:
        return await migrate_engine(engine)
    finally:
        await engine.dispose()


async def migrate_engine(engine: AsyncEngine) -> Migrated:
    with database_errors():
        async with engine.connect() as connection:
            await _lock(connection)
            before = await connection.run_sync(_revision)
            if _is_behind(before):
                await connection.run_sync(_upgrade)
            await connection.commit()
            return Migrated(before, max(before or HEAD, HEAD))


async def revision(engine: AsyncEngine) -> str | None:
    """Return the present revision of a database. None: it has no tables of ours.

    Raises:
        DatabaseUnavailable: it cannot be reached.
    """
    with database_errors():
        async with engine.connect() as connection:
            return await connection.run_sync(_revision)


async def read_revision(url: str) -> str | None:
    """Return the same for a database's URL. A missing SQLite file is not created."""
    if is_sqlite_url(url):
        return sqlite_revision(url)
    engine = open_database(url)
    try:
        return await revision(engine)
    finally:
        await engine.dispose()


async def is_current(url: str) -> bool:
    """Return whether a database has all the tables of this version.

    Raises:
        DatabaseUnavailable: it cannot be reached.
    """
    return not _is_behind(await read_revision(url))


async def ensure_current(engine: AsyncEngine) -> None:
    """Return once the tables exist. In SQLite, missing tables are created.

    Raises:
        DatabaseUnavailable: it cannot be reached, or is PostgreSQL with an old revision. The text names the command to run.
    """
    present = await revision(engine)
    if not _is_behind(present):
        return
    if is_sqlite(engine):
        await migrate_engine(engine)
    else:
        where = f"at revision {present}, this version needs {HEAD}" if present else "without Sluice's tables"
        raise DatabaseUnavailable(f"the database is {where}: run `sluice migrate`")


def _is_behind(present: str | None) -> bool:
    return present is None or present < HEAD


async def _lock(connection: AsyncConnection) -> None:
    """Prevent other migrations until the transaction ends."""
    if connection.dialect.name != "sqlite":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        return
    for attempts_left in reversed(range(_WAL_ATTEMPTS)):
        try:
            # With WAL, readers do not wait for the writer. The file keeps this mode. No timeout applies to changing it.
            await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            break
        except OperationalError:
            await connection.rollback()
            if not attempts_left:
                raise
            await asyncio.sleep(_WAL_PAUSE_S)
    await connection.rollback()
    await connection.exec_driver_sql("BEGIN IMMEDIATE")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command  # Imported here, because opening a current database does not need it.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
