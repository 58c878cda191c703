"""How is the database reached?"""

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
BUSY_TIMEOUT_S = 5.0  # How long a writer of SQLite waits for another.
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0


def database_url(text: str) -> URL:
    """Return a URL with the driver that we use.

    Raises:
        ValueError: neither SQLite nor PostgreSQL.
    """
    url = make_url(text)
    driver = DRIVERS.get(url.drivername) or (url.drivername if url.drivername in DRIVERS.values() else None)
    if driver is None:
        raise ValueError("SLUICE_DATABASE_URL must begin with sqlite:/// or postgresql://")
    return url.set(drivername=driver)


def open_database(text: str) -> AsyncEngine:
    """Return an engine; no connection is made yet."""
    url = database_url(text)
    if url.drivername.startswith("postgresql"):
        arguments = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S}
        return create_async_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True, connect_args=arguments)
    engine = create_async_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine.sync_engine, "connect")
    def _set_up(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # DB-API has no types.
        cursor.execute("PRAGMA journal_mode=WAL")  # Readers do not wait for the writer.
        cursor.execute("PRAGMA synchronous=FULL")  # What is taken out of Redis must be on the disk.
        cursor.close()

    return engine
