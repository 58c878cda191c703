"""How are rows written to the database, each exactly once?

Both databases ignore a row whose id exists. So a caller that does not know whether a row was written writes it again.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.database.engine import database_errors, is_sqlite
from common.database.errors import RowRefused
from common.database.tables import AuditRow, Base, LedgerAttempt, LedgerRow

Row = dict[str, Any]  # Column name to value.


async def add(engine: AsyncEngine, ledger: Sequence[Row], audit: Sequence[Row] = ()) -> dict[str, str]:
    """Write all rows in one transaction. They are on the disk when this returns.

    A row of the ledger may have ``attempts``, which are rows of another table: see ``LedgerAttempt``.

    Returns:
        Row id to the reason why the database refused the row. All other rows are written. Usually empty.
    Raises:
        DatabaseUnavailable: it is unknown whether anything was written.
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
    """Write the rows one by one, so that a row that the database refuses does not hold up the others."""
    refused = {}
    audit_rows = {row["id"]: row for row in audit}
    for row in ledger:
        try:
            await _add(engine, [row], [audit_rows[row["id"]]] if row["id"] in audit_rows else [])
        except RowRefused as error:
            refused[row["id"]] = str(error)
    return refused


async def delete_expired_audit(engine: AsyncEngine, now_ms: int) -> int:
    """Delete the audit log's expired entries. Returns how many there were.

    Raises:
        DatabaseUnavailable
    """
    with database_errors():
        async with engine.begin() as connection:
            result = await connection.execute(delete(AuditRow).where(AuditRow.expires_ms < now_ms))
            return result.rowcount
