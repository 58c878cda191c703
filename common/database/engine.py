"""How do we connect to the database, and which errors does it raise?

SQLite for one machine, PostgreSQL for several. Every failure of a driver becomes ``DatabaseUnavailable``: callers wait, or
answer 503. A row that the database does not accept is ``RowRefused``: waiting would not help.
"""

import asyncio
import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import aiosqlite
import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from common.database.errors import DatabaseUnavailable as DatabaseUnavailable
from common.database.errors import RowRefused as RowRefused

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
BUSY_TIMEOUT_S = 5.0  # How long a writer of SQLite waits for another one.
THREADS_END_S = BUSY_TIMEOUT_S + 1.0  # A thread's last command may wait for another writer.
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
# Data exceptions and violated constraints. Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REFUSED_CLASSES = ("22", "23")


def database_url(text: str) -> URL:
    """Return a URL with the driver that we use.

    Raises:
        ValueError: it is neither SQLite in a file nor PostgreSQL.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError("SLUICE_DATABASE_URL must be like sqlite:///FILE or postgresql://user:password@host/name") from error
    driver = DRIVERS.get(url.drivername) or (url.drivername if url.drivername in DRIVERS.values() else None)
    if driver is None:
        raise ValueError("SLUICE_DATABASE_URL must begin with sqlite:/// or postgresql://")
    if driver == DRIVERS["sqlite"] and url.database in (None, "", ":memory:"):
        raise ValueError("SLUICE_DATABASE_URL must name a file: sqlite:///FILE. All processes share it.")
    return url.set(drivername=driver)


def is_sqlite(engine: AsyncEngine) -> bool:
    return engine.dialect.name == "sqlite"


class SqliteEngine(AsyncEngine):
    """An engine whose ``dispose`` also waits for the driver's threads.

    aiosqlite has one thread per connection. After a refused or cancelled connection its thread ends a moment later by itself,
    and calls the event loop once more. If the loop is closed by then, the thread fails (aiosqlite 0.22.1).
    """

    def __init__(self, url: URL) -> None:
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        arguments = {"timeout": BUSY_TIMEOUT_S, "async_creator_fn": self._connection}
        super().__init__(create_async_engine(url, connect_args=arguments).sync_engine)

    def _connection(self, *args: Any, **options: Any) -> aiosqlite.Connection:
        connection = aiosqlite.connect(*args, **options)
        thread = connection._thread
        thread.daemon = True  # As SQLAlchemy does it: an open connection does not keep the process alive.
        self._threads.add(thread)
        return connection

    async def dispose(self, close: bool = True) -> None:
        await super().dispose(close)
        await asyncio.to_thread(_join, list(self._threads))


def _join(threads: list[threading.Thread]) -> None:
    deadline = time.monotonic() + THREADS_END_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def open_database(text: str) -> AsyncEngine:
    """Return an engine. It does not connect yet."""
    url = database_url(text)
    if url.drivername.startswith("postgresql"):
        arguments = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S}
        return create_async_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True, connect_args=arguments)
    engine = SqliteEngine(url)

    @event.listens_for(engine.sync_engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")  # Records are deleted from Redis afterwards, so they must be on the disk.
        cursor.close()

    return engine


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn what drivers raise into our two errors."""
    try:
        yield
    except OverflowError as error:  # SQLite's error for a number that is too large for any column.
        raise RowRefused(_error_text(error)) from error
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error, OSError, TimeoutError) as error:
        if _is_refused(error):
            raise RowRefused(_error_text(error)) from error
        raise DatabaseUnavailable(_error_text(error)) from error


def _is_refused(error: Exception) -> bool:
    if isinstance(error, DataError | IntegrityError):
        return True
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "sqlstate", "") or "").startswith(_REFUSED_CLASSES)
    return isinstance(error, StatementError)  # The driver cannot send a value.


def _error_text(error: Exception) -> str:
    """Return the error in one line, without users' data. SQLAlchemy's own text quotes the parameters, and further lines of
    PostgreSQL's text quote the row.
    """
    cause = error.orig if isinstance(error, StatementError) and error.orig else error
    first_line, _, _ = str(cause).partition("\n")
    return f"{type(cause).__name__}: {first_line}"[:300]
