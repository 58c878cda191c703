"""How does a process use the database if it may never need it?

SQLAlchemy is imported, and a connection made, on first use only. So a process that does not use the database starts as fast,
and needs as little memory, as without it.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from common.database.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class LazyDatabase:
    """``must_exist``: do not create a missing SQLite file. It is for readers: an empty database would look like an answer."""

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        self._url = url
        self._must_exist = must_exist
        self._engine: AsyncEngine | None = None
        self._is_current = False
        self._opening = asyncio.Lock()

    async def engine(self) -> "AsyncEngine":
        """Return the engine of a database that has our tables. Missing tables are created in SQLite.

        Raises:
            DatabaseUnavailable: it does not answer, or has no tables of ours.
        """
        if self._engine and self._is_current:
            return self._engine
        async with self._opening:
            if self._engine is None:
                # In a thread: it takes a few hundred milliseconds, and tokens must not wait that long.
                self._engine = await asyncio.to_thread(_open, self._url, self._must_exist)
            if not self._is_current:
                from common.database.migrate import ensure_current

                await ensure_current(self._engine)
                self._is_current = True
            return self._engine

    async def close(self) -> None:
        if self._engine:
            await self._engine.dispose()
        self._engine, self._is_current = None, False


def _open(url: str, must_exist: bool) -> "AsyncEngine":
    import common.database.migrate  # noqa: F401 - Imported in this thread too, where nothing waits for it.
    from common.database.engine import is_sqlite, open_database

    engine = open_database(url)
    if must_exist and is_sqlite(engine) and not (file := Path(engine.url.database or "")).exists():
        raise DatabaseUnavailable(
            f"there is no file {file}; a worker creates it when it starts, or run `sluice migrate` (`sluice dev` has a private "
            "database, and prints its URL)"
        )
    return engine
