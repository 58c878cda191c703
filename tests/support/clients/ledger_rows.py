"""The rows of a fleet's ledger, as they are in its database."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.fleet import Fleet, until


def file_of(found: Fleet) -> Path:
    return found.folder / "sluice.db"


def rows(found: Fleet, columns: str = "*", table: str = "ledger") -> list[dict[str, Any]]:
    if not file_of(found).exists():
        return []
    with closing(sqlite3.connect(f"file:{file_of(found)}?mode=ro", uri=True, timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(f"SELECT {columns} FROM {table}")]
        except sqlite3.OperationalError:
            return []  # Before its first migration.


def row_of(found: Fleet, generation_id: str) -> dict[str, Any]:
    """Return the row of a generation, as soon as it is there."""

    def find() -> dict[str, Any] | None:
        return next((row for row in rows(found) if row["id"] == generation_id), None)

    return until(find, f"{generation_id} is in the ledger")
