"""How do rows get into the database, each once?

Both databases pass over a row whose id they have, so whoever does not know whether a row was written writes it again.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.database.engine import database_errors, is_sqlite
from common.database.errors import RowRefused
from common.database.tables import AuditRow, Base, LedgerAttempt, LedgerRow

Row = dict[str, Any]  # By the columns' names.


async def add(engine: AsyncEngine, ledger: Sequence[Row], audit: Sequence[Row] = ()) -> dict[str, str]:
    """Write all rows in one transaction; it is on the disk when this returns.

    A ledger's row may have ``attempts``, rows of their own: see ``LedgerAttempt``.

    Returns:
        Why the database refused rows, by their ids; all others are in. Nearly always empty.
    Raises:
        DatabaseUnavailable: whether anything was written is unknown.
    """
    try:
        await _add(engine, ledger, audit)
    except RowRefused:
        return await _add_each(engine, ledger, audit)
    return {}


async def _add(engine: AsyncEngine, ledger: Sequence[Row], audit: Sequence[Row]) -> None:
    with database_errors():
        async with engine.begin() as connection:
            await _insert(connection, LedgerRow, [_without_attempts(row) for row in ledger], sqlite_is_used=is_sqlite(engine))
            attempts = [attempt for row in ledger for attempt in row.get("attempts", ())]
            await _insert(connection, LedgerAttempt, attempts, sqlite_is_used=is_sqlite(engine))
            await _insert(connection, AuditRow, audit, sqlite_is_used=is_sqlite(engine))


async def _insert(connection: AsyncConnection, table: type[Base], rows: Sequence[Row], *, sqlite_is_used: bool) -> None:
    if rows:
        insert = sqlite.insert(table) if sqlite_is_used else postgresql.insert(table)
        await connection.execute(insert.on_conflict_do_nothing(), list(rows))


def _without_attempts(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "attempts"}


async def _add_each(engine: AsyncEngine, ledger: Sequence[Row], audit: Sequence[Row]) -> dict[str, str]:
    """One row that the database will not have must not keep the others out."""
    refused = {}
    audit_rows = {row["id"]: row for row in audit}
    for row in ledger:
        try:
            await _add(engine, [row], [audit_rows[row["id"]]] if row["id"] in audit_rows else [])
        except RowRefused as error:
            refused[row["id"]] = str(error)
    return refused


async def delete_expired_audit(engine: AsyncEngine, now_ms: int) -> int:
    """Delete what the audit log has kept for long enough; returns how many entries that were.

    Raises:
        DatabaseUnavailable
    """
    with database_errors():
        async with engine.begin() as connection:
            result = await connection.execute(delete(AuditRow).where(AuditRow.expires_ms < now_ms))
            return result.rowcount
