"""Does an engine that was disposed of leave anything to an event loop that ends?"""

import asyncio
import sqlite3
import threading
from typing import Any

import pytest
from sqlalchemy import text

from common.database.engine import open_database
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase


class Held:
    """A call that takes until ``may_end`` is set, in a thread of the driver's."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, *_: Any, **__: Any) -> None:
        self.has_begun.set()
        self.may_end.wait()

    async def until_begun(self) -> None:
        await asyncio.to_thread(self.has_begun.wait)


@pytest.fixture
def held():
    call = Held()
    yield call
    call.may_end.set()


@pytest.fixture
def new_threads():
    """Returns the threads that a test has started and that still run."""
    before = set(threading.enumerate())
    return lambda: [each for each in set(threading.enumerate()) - before if "_connection_worker" in each.name]


async def test_a_connection_cancelled_while_it_is_made_ends_before_its_engine(tmp_path, monkeypatch, held, new_threads):
    engine = open_database(f"sqlite:///{tmp_path}/x.db")
    monkeypatch.setattr(sqlite3, "connect", held)
    connecting = asyncio.create_task(engine.connect().start())
    await held.until_begun()
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    assert new_threads()

    asyncio.get_running_loop().call_later(0.05, held.may_end.set)
    await engine.dispose()

    assert not new_threads()


async def test_a_query_cancelled_while_it_runs_ends_before_its_engine(tmp_path, held, new_threads):
    engine = open_database(f"sqlite:///{tmp_path}/x.db")

    async def query() -> None:
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            await raw.create_function("held", 0, held)
            await connection.execute(text("SELECT held()"))

    task = asyncio.create_task(query())
    await held.until_begun()
    while not task.done():  # The first ends the query, another the connection's graceful end.
        task.cancel()
        await asyncio.sleep(0)
    assert new_threads()

    asyncio.get_running_loop().call_later(0.05, held.may_end.set)
    await engine.dispose()

    left = new_threads()
    for thread in left:  # Else the driver would wait for ever while the loop is closed.
        await asyncio.to_thread(thread.join)
    assert not left


async def test_a_connection_that_is_refused_ends_before_its_engine(new_threads):
    database = LazyDatabase("sqlite:////no/such/folder/x.db")

    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await database.engine()
        await database.close()

        assert not new_threads()
