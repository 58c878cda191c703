"""Ended generations get into the database, each once, whatever happens on the way. On both databases, with a real Redis."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from prometheus_client import CollectorRegistry
from redis.exceptions import ResponseError
from sqlalchemy import text

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind, Opening
from common.channel.redis import RedisChannel
from common.config.settings import MIB, Settings
from common.database.engine import open_database
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase
from common.database.migrate import migrate
from common.database.store import add
from common.ledger import set_aside
from common.ledger.audit import unseal
from common.limits.charges import periods
from common.limits.shared_lua import COUNTERS
from common.metering.attempt_cost import Attempt, pack
from common.records.end import End
from common.records.request_summary import RequestSummary
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pipe import Exchanges
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts
from tests.support.servers.postgres import PostgresForTests, find_binaries
from workers.ledger import restore_budgets
from workers.ledger.bookkeeper import AUDIT_PAUSE_S, AWAY_PAUSES_S, KEYS_PAUSE_S, SCAN_PAUSE_S, Bookkeeper
from workers.ledger.collector import BATCH, LOG_BYTES_MAX, Collector
from workers.ledger.restore_budgets import BudgetRestorer
from workers.ledger.rows import build_row
from workers.metrics import Metrics

ROOT = Path(__file__).parents[3]
SECRET = "a long random text of 32 bytes or more"
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # Where the database makes no difference.
END = {
    "error": None,
    "finish_reason": "stop",
    "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0},
    "estimated": False,
    "provider": "openai",
    "upstream_model": "gpt-4o",
    "continuations": 0,
    "tries": 1,
    "queue_wait_ms": 1,
    "ttft_ms": 2,
    "duration_ms": 3,
    "cost": {"input_usd": "0.001", "output_usd": "0.002", "total_usd": "0.003"},
}


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """One Redis, one database, and bookkeepers as they are asked for."""

    def __init__(self, redis: Client, pulse: Pulse, url: str) -> None:
        self.redis, self.pulse, self.url = redis, pulse, url
        self.clock = Clock()
        self.channel = RedisChannel(redis, tombstone_s=60)
        self.keepers: list[Bookkeeper] = []
        self.metrics: list[Metrics] = []

    def keeper(self, **settings: Any) -> Bookkeeper:
        metrics = Metrics(CollectorRegistry())
        chosen = Settings(**{"database_url": self.url, "secret": SECRET, **settings})
        keeper = Bookkeeper(self.redis, self.pulse, self.channel, chosen, metrics, self.clock)
        self.keepers.append(keeper)
        self.metrics.append(metrics)
        return keeper

    async def holder(self, **settings: Any) -> Bookkeeper:
        keeper = self.keeper(**settings)
        assert await keeper.lease.renew()
        return keeper

    def sample(self, name: str) -> float:
        return sum(metrics.registry.get_sample_value(name) for metrics in self.metrics)

    async def open(self, generation_id: str, *, is_audited: bool = False, **asked: Any) -> None:
        told = RequestSummary(
            "key_a", "acme", None, "req_1", "openai-chat", "generate", True, "demo", 1_000, is_audited=is_audited
        )
        packed = orjson.dumps({**orjson.loads(told.pack()), **asked})
        body = orjson.dumps(
            {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "I am bob@example.com"}]}
        )
        job = Job(generation_id, "req_1", "openai-chat", "demo", True, Policy.STOP, 0.0, 1, body=body)
        await self.channel.open(
            generation_id,
            Opening("key_a", "openai-chat", True, "demo", 1, Policy.STOP, 0, 60, 600, job.pack(), packed, is_audited),
            "",
        )

    async def say(self, generation_id: str, *frames: tuple[FrameKind, bytes]) -> None:
        claim = Claim(generation_id, 1, "token")
        await self.channel.fence(claim, is_handover=False)
        numbered = [Frame(FrameId(1, n), kind, data) for n, (kind, data) in enumerate(frames, 1)]
        await self.channel.append([Append(claim, FrameId(1, 0), numbered)])

    async def end(self, generation_id: str, *, is_listed: bool = True, asked: dict[str, Any] | None = None, **end: Any) -> str:
        """A generation from its opening to its end."""
        await self.open(generation_id, **(asked or {}))
        await self.say(generation_id, (FrameKind.END, orjson.dumps({**END, **end})))
        if is_listed:
            await self.redis.rpush(keyspace.ENDED, generation_id)
        return generation_id

    async def rows(self, columns: str = "id", table: str = "ledger") -> list[Any]:
        engine = open_database(self.url)
        try:
            async with engine.connect() as connection:
                found = (await connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY id"))).all()
        finally:
            await engine.dispose()
        return [row[0] if len(row) == 1 else tuple(row) for row in found]

    async def left(self) -> tuple[int, int]:
        """How many ids are listed, and how many records there are."""
        return await self.redis.llen(keyspace.ENDED), len(await self.redis.keys("*:record"))


@pytest.fixture
async def empty(redis: Client, database_url: str) -> AsyncIterator[World]:
    """Before anybody has migrated the database."""
    pulse = Pulse(redis)
    await pulse.start()
    world = World(redis, pulse, database_url)
    yield world
    for keeper in world.keepers:
        await keeper.stop()
    await pulse.stop()


@pytest.fixture
async def world(empty: World) -> World:
    await migrate(empty.url)
    return empty


# From the list into the database


async def test_what_has_ended_is_written_and_forgotten(world: World):
    ids = [await world.end(f"gen_{n}") for n in range(3)]

    await (await world.holder()).turn()

    assert await world.rows() == ids
    assert await world.left() == (0, 0)
    assert world.sample("sluice_ledger_collected_total") == 3


async def test_a_row_tells_who_what_and_how_much(world: World):
    await world.end("gen_1", asked={"end_user": "u1"})

    await (await world.holder()).turn()

    told = (
        "owner, tenant, end_user, model, provider, upstream_model, outcome, input_tokens, output_tokens, cost_nano_usd, cache"
    )
    assert await world.rows(told.replace("owner", "id, owner")) == [
        ("gen_1", "key_a", "acme", "u1", "demo", "openai", "gpt-4o", "completed", 10, 5, 3_000_000, "miss")
    ]


async def test_a_backlog_is_worked_off_in_batches(world: World):
    count = 2 * BATCH + 5
    for n in range(count):
        await world.end(f"gen_{n}")

    await (await world.holder()).turn()

    assert len(await world.rows()) == count
    assert await world.left() == (0, 0)


async def test_an_id_that_is_listed_twice_or_has_no_record_does_no_harm(world: World):
    await world.end("gen_1")
    await world.redis.rpush(keyspace.ENDED, "gen_1", "gen_unknown")
    keeper = await world.holder()

    await keeper.turn()
    await keeper.turn()

    assert await world.rows() == ["gen_1"]
    assert await world.left() == (0, 0)


async def test_a_record_that_is_not_listed_is_found_by_the_scan(world: World):
    keeper = await world.holder()
    await keeper.turn()
    await world.end("gen_1", is_listed=False)

    await keeper.turn()
    assert await world.rows() == []  # It has just looked.
    world.clock.now += SCAN_PAUSE_S
    await keeper.turn()

    assert await world.rows() == ["gen_1"]
    assert await world.left() == (0, 0)


async def test_what_the_scan_finds_is_written_in_batches(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.ledger.collector.BATCH", 2)
    sizes: list[int] = []

    async def counted(engine: Any, rows: list[Any], audit: list[Any]) -> dict[str, str]:
        sizes.append(len(rows))
        return await add(engine, rows, audit)

    monkeypatch.setattr("common.database.store.add", counted)
    for n in range(5):
        await world.end(f"gen_{n}", is_listed=False)

    await (await world.holder()).turn()

    assert sizes == [2, 2, 1]
    assert await world.left() == (0, 0)


async def test_the_scan_leaves_a_record_to_whoever_must_still_settle_its_job(world: World):
    keeper = await world.holder()
    await keeper.turn()
    await world.end("gen_1", is_listed=False)
    await world.redis.hset(keyspace.JOB + "gen_1", "epoch", "1")  # Its worker was lost between the end and the removal.

    world.clock.now += SCAN_PAUSE_S
    await keeper.turn()
    assert await world.rows() == []

    await world.redis.delete(keyspace.JOB + "gen_1")
    world.clock.now += SCAN_PAUSE_S
    await keeper.turn()
    assert await world.rows() == ["gen_1"]


async def test_a_record_that_came_back_is_not_counted_twice(world: World):
    await world.end("gen_1")
    keeper = await world.holder()
    await keeper.turn()
    record = {"asked": RequestSummary("key_a", "acme", None, "r", "openai-chat", "generate", True, "m", 1).pack(), "end": b"{}"}
    await world.redis.hset(keyspace.record("gen_1"), mapping={**record, "ended_ms": "5"})  # A failover brought it back.
    await world.redis.rpush(keyspace.ENDED, "gen_1")

    await keeper.turn()

    assert await world.rows("id, outcome, model") == [("gen_1", "completed", "demo")]
    assert await world.left() == (0, 0)


@pytest.mark.parametrize(
    "record",
    [
        {"asked": b"", "end": b"{}", "ended_ms": b"1"},
        {"asked": b"{}", "end": b"{}", "ended_ms": b"1"},
        {"asked": b"\xff", "end": b"{}", "ended_ms": b"1"},
        {"end": b"{}"},
        {"asked": RequestSummary("o", "t", None, "r", "d", "o", True, "m", 1).pack(), "end": b"[]", "ended_ms": b"1"},
        {"asked": RequestSummary("o", "t", None, "r", "d", "o", True, "m", 1).pack(), "end": b"{}", "ended_ms": b"soon"},
        {"asked": RequestSummary("o", "t", None, "r", "d", "o", True, "m", 1).pack(), "end": b"{}", "ended_ms": b"9" * 30},
    ],
)
async def test_a_record_that_cannot_be_read_is_set_aside_and_keeps_nobody_waiting(world: World, record: dict[str, bytes]):
    await world.redis.hset(keyspace.record("gen_0"), mapping=record)
    await world.redis.rpush(keyspace.ENDED, "gen_0")
    await world.end("gen_1")

    await (await world.holder()).turn()

    assert await world.rows() == ["gen_1"]
    assert await world.left() == (0, 0)
    (kept,) = [orjson.loads(each) for each in await world.redis.lrange(keyspace.UNREADABLE, 0, -1)]
    assert kept["id"] == "gen_0"
    assert kept["reason"]
    assert 0 < await world.redis.ttl(keyspace.UNREADABLE) <= 30 * 86_400
    assert world.sample("sluice_ledger_unreadable_total") == 1


async def test_the_latest_records_that_cannot_be_read_are_kept_up_to_a_number(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(set_aside, "ENTRIES_MAX", 2)
    for n in range(3):
        await world.redis.hset(keyspace.record(f"gen_{n}"), mapping={"end": b"{}"})
        await world.redis.rpush(keyspace.ENDED, f"gen_{n}")

    await (await world.holder()).turn()

    kept = [set_aside.unpack(raw).id for raw in await world.redis.lrange(keyspace.UNREADABLE, 0, -1)]
    assert kept == ["gen_2", "gen_1"]


@pytest.mark.parametrize("stored", ["a text", "a list"])
async def test_what_is_no_record_is_set_aside_too(world: World, stored: str):
    if stored == "a text":
        await world.redis.set(keyspace.record("gen_0"), "none of ours")
    else:
        await world.redis.rpush(keyspace.record("gen_0"), "none", "of", "ours")
    await world.redis.rpush(keyspace.ENDED, "gen_0")
    await world.end("gen_1")

    await (await world.holder()).turn()

    assert await world.rows() == ["gen_1"]
    assert await world.left() == (0, 0)
    (entry,) = [set_aside.unpack(raw) for raw in await world.redis.lrange(keyspace.UNREADABLE, 0, -1)]
    assert (entry.kind, entry.id) == ("record", "gen_0")
    assert world.sample("sluice_set_aside") == 1


async def test_a_record_that_killed_workers_is_set_aside_without_a_look_into_it(world: World, monkeypatch: pytest.MonkeyPatch):
    await world.end("gen_0", is_listed=False)
    await world.redis.hset(keyspace.record("gen_0"), "set_aside", "3 workers were lost on it")
    await world.redis.rpush(keyspace.ENDED, "gen_0")
    await world.redis.hset(keyspace.followers("gen_0"), mapping={"gen_1": "{}", "gen_2": "{}", "left:gen_2": "5 {}"})
    monkeypatch.setattr(RequestSummary, "unpack", lambda *_: pytest.fail("nobody may look into it"))

    await (await world.holder()).turn()

    assert await world.rows() == []
    assert await world.left() == (0, 0)
    (entry,) = [set_aside.unpack(raw) for raw in await world.redis.lrange(keyspace.UNREADABLE, 0, -1)]
    assert (entry.id, entry.reason) == ("gen_0", "3 workers were lost on it")
    assert sorted(entry.sharers) == ["gen_1", "gen_2"]


@pytest.mark.parametrize("listed", [b"gen_\xff\xfe", b"", b"gen 0 {}*"])
async def test_an_id_that_is_none_keeps_nobody_waiting(world: World, listed: bytes):
    await world.redis.rpush(keyspace.ENDED, listed)
    await world.end("gen_1")

    await (await world.holder()).turn()

    assert await world.rows() == ["gen_1"]
    assert await world.left() == (0, 0)


@pytest.mark.parametrize("part", ["state", "log", "request"])
async def test_what_else_is_left_of_a_generation_may_be_none_of_ours(world: World, part: str):
    key = {"state": keyspace.state, "log": keyspace.log, "request": keyspace.request}[part]("gen_0")
    await world.end("gen_0", asked={"is_audited": True}, usage=None)
    await world.redis.delete(key)
    await world.redis.rpush(key, "none of ours") if part != "request" else await world.redis.sadd(key, "none of ours")
    await world.end("gen_1")

    keeper = await world.holder()
    await keeper.turn()

    assert await world.rows() == ["gen_0", "gen_1"]
    assert await world.left() == (0, 0)
    assert keeper.problem is None


@pytest.mark.parametrize("first", [b"soon", b"9" * 40, b"-1"])
async def test_how_long_the_oldest_waits_is_told_of_those_that_say_it(world: World, first: bytes):
    await world.redis.hset(keyspace.record("gen_0"), "ended_ms", first)
    await world.redis.rpush(keyspace.ENDED, "gen_0")

    await Collector(world.redis, world.channel, Settings(), Metrics(CollectorRegistry())).update_metrics(1)


@ON_SQLITE
@pytest.mark.parametrize("step", ["budgets", "keys"])
async def test_a_step_that_fails_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch, step: str):
    async def fails(*_: object) -> None:
        raise DatabaseUnavailable("OperationalError: integer overflow")

    target = (BudgetRestorer, "load") if step == "budgets" else (Bookkeeper, "_sync_keys")
    monkeypatch.setattr(*target, fails)
    await world.end("gen_1")
    keeper = await world.holder()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await keeper.turn()
            world.clock.now += AWAY_PAUSES_S[-1]

    assert await world.rows() == ["gen_1"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["bookkeeping_failed"]
    assert keeper.problem and "integer overflow" in keeper.problem
    monkeypatch.undo()
    await keeper.turn()
    assert keeper.problem is None


@ON_SQLITE
async def test_a_lease_that_is_none_is_taken(world: World):
    await world.redis.rpush(keyspace.BOOKKEEPER, "none of ours")

    assert await world.keeper().lease.renew()


async def test_text_that_a_database_will_not_have_is_mended(world: World):
    await world.end("gen_1", asked={"model": "a\0b", "end_user": "u\0" * 300})

    await (await world.holder()).turn()

    assert await world.rows("id, model, end_user") == [("gen_1", "ab", "u" * 255)]


async def test_one_refused_row_does_not_keep_out_the_others(world: World):
    asked = RequestSummary("o", "t", None, "r", "d", "o", True, "m", 1)
    rows = [build_row(f"gen_{n}", asked, End.unpack(orjson.dumps(END)), 5) for n in range(3)]
    rows[1] |= {"owner": None, "end_user": "somebody"}
    engine = open_database(world.url)
    try:
        refused = await add(engine, rows)
    finally:
        await engine.dispose()

    assert list(refused) == ["gen_1"]
    assert "somebody" not in refused["gen_1"]  # Of the row, nothing gets into a log.
    assert await world.rows() == ["gen_0", "gen_2"]


# Whoever has the lease


@ON_SQLITE
async def test_one_keeps_the_books_at_a_time(world: World):
    first, second = await world.holder(), world.keeper()
    await world.end("gen_1")

    assert not await second.lease.renew()
    await second.turn()
    assert await world.rows() == []
    await first.turn()
    assert await world.rows() == ["gen_1"]


@ON_SQLITE
async def test_a_lease_that_is_given_back_is_free_at_once(world: World):
    first, second = await world.holder(), world.keeper()

    await first.stop()

    assert await second.lease.renew()
    assert not await first.lease.renew()


@ON_SQLITE
async def test_a_lease_that_nobody_renews_lapses_within_seconds(world: World):
    first, second = await world.holder(), world.keeper()

    assert 0 < await world.redis.pttl(keyspace.BOOKKEEPER) <= 5_000
    await world.redis.delete(keyspace.BOOKKEEPER)  # As its expiry does.

    assert await second.lease.renew()
    assert not await first.lease.renew()
    await first.stop()  # Takes nothing from the other.
    assert await second.lease.renew()


@ON_SQLITE
async def test_two_at_once_do_no_harm(world: World):
    """A frozen process that wakes believes that it has the lease still."""
    first = await world.holder()
    await world.redis.delete(keyspace.BOOKKEEPER)
    second = await world.holder()
    ids = sorted([await world.end(f"gen_{n}") for n in range(500)])

    await asyncio.gather(first.turn(), second.turn())
    await second.turn()

    assert await world.rows() == ids
    assert await world.left() == (0, 0)


# The database is away


async def test_records_wait_for_a_database_that_nobody_has_migrated(empty: World):
    await empty.end("gen_1")
    keeper = await empty.holder()
    with structlog.testing.capture_logs() as logs:
        await keeper.turn()
        for _ in range(5):
            empty.clock.now += AWAY_PAUSES_S[-1]
            await keeper.turn()
        if empty.url.startswith("sqlite"):  # Which is migrated by whoever opens it first.
            assert [line["event"] for line in logs] == ["bookkeeping_begun", "budgets_loaded"]
        else:
            assert await empty.left() == (1, 1)
            (line,) = [line for line in logs if line["log_level"] == "error"]
            assert "run `sluice migrate`" in line["error"]
            await migrate(empty.url)
            empty.clock.now += AWAY_PAUSES_S[-1]
            await keeper.turn()
            assert logs[-1]["event"] == "database_back"

    assert await empty.rows() == ["gen_1"]
    assert await empty.left() == (0, 0)


@ON_SQLITE
async def test_a_locked_sqlite_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("common.database.engine.BUSY_TIMEOUT_S", 0.05)
    keeper = await world.holder()
    engine = open_database(world.url)
    with structlog.testing.capture_logs() as logs:
        async with engine.connect() as locking:
            await locking.exec_driver_sql("BEGIN EXCLUSIVE")
            for n in range(3):  # Minutes of it, by the clock.
                await world.end(f"gen_{n}")
                await keeper.turn()
                world.clock.now += 60
            assert await world.left() == (3, 3)
            assert world.sample("sluice_ledger_uncollected") == 3
            await locking.rollback()
        await engine.dispose()
        await keeper.turn()

    assert await world.rows() == ["gen_0", "gen_1", "gen_2"]
    events = [line["event"] for line in logs]
    assert (events.count("database_away"), events.count("database_back")) == (1, 1)


@pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL server: install postgresql")
async def test_a_postgresql_that_was_stopped_for_minutes_loses_nothing(redis: Client):
    pulse = Pulse(redis)
    await pulse.start()
    with PostgresForTests() as server:
        world = World(redis, pulse, await server.new_database())
        await migrate(world.url)
        keeper = await world.holder()
        try:
            await world.end("gen_0")
            await keeper.turn()
            server.stop()
            for n in range(1, 4):
                await world.end(f"gen_{n}")
                await keeper.turn()
                world.clock.now += 60
            assert await world.left() == (3, 3)
            server.start()
            await keeper.turn()

            assert await world.rows() == ["gen_0", "gen_1", "gen_2", "gen_3"]
            assert await world.left() == (0, 0)
        finally:
            await keeper.stop()
            await pulse.stop()


async def test_it_asks_an_absent_database_less_and_less_often(tmp_path: Path, redis: Client, monkeypatch: pytest.MonkeyPatch):
    pulse = Pulse(redis)
    await pulse.start()
    world = World(redis, pulse, f"sqlite:///{tmp_path}/absent/sluice.db")
    keeper = await world.holder()
    tried_at = []
    attempt = LazyDatabase.engine

    async def engine(database: LazyDatabase) -> Any:
        tried_at.append(world.clock.now)
        return await attempt(database)

    monkeypatch.setattr(LazyDatabase, "engine", engine)
    for _ in range(60):
        await keeper.turn()
        world.clock.now += 0.5
    await keeper.stop()
    await pulse.stop()
    for thread in threading.enumerate():  # aiosqlite's, each of which has a last word for a loop that must be there still.
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)

    pauses = [after - before for before, after in itertools.pairwise(tried_at)]
    assert pauses[:5] == [1.0, 2.0, 5.0, 10.0, 10.0]


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:9/x", "sqlite:////nowhere/at/all.db"])
async def test_a_worker_starts_whatever_its_database_is(empty: World, url: str):
    keeper = empty.keeper(database_url=url)

    await keeper.start()

    assert keeper.lease.is_held


async def test_how_long_the_oldest_has_waited_is_told(empty: World):
    keeper = await empty.holder(database_url="sqlite:////nowhere/at/all.db")
    await empty.end("gen_1")
    await empty.redis.hset(keyspace.record("gen_1"), "ended_ms", empty.pulse.redis_ms - 90_000)

    await keeper.turn()

    assert empty.sample("sluice_ledger_uncollected") == 1
    assert 85 <= empty.sample("sluice_ledger_oldest_seconds") <= 200


# Killed at any point

KILLED = """
import asyncio, os, signal, sys
from prometheus_client import CollectorRegistry
import common.database.store as store
from common.channel.redis import RedisChannel
from common.redis.client import connect
from common.redis.pulse import Pulse
from common.config.settings import Settings
from workers.ledger.collector import Collector
from workers.ledger.bookkeeper import Bookkeeper
from workers.metrics import Metrics

point, url, redis_url = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_after(target, name):
    real = getattr(target, name)
    async def wrapped(*args, **kwargs):
        found = await real(*args, **kwargs)
        die()
        return found
    setattr(target, name, wrapped)

match point:
    case "read": kill_after(Collector, "_read")
    case "in_transaction": kill_after(store, "_insert")
    case "committed": kill_after(store, "add")
    case "forgetting":
        real = Collector._run_commands
        async def ask(self, *commands, **how):
            if any(command[0] == "UNLINK" for command in commands):
                await real(self, *commands[: len(commands) // 3], **how)
                die()
            return await real(self, *commands, **how)
        Collector._run_commands = ask

async def main():
    redis = connect(redis_url)
    pulse = Pulse(redis)
    await pulse.start()
    settings = Settings(database_url=url)
    keeper = Bookkeeper(redis, pulse, RedisChannel(redis, 60), settings, Metrics(CollectorRegistry()))
    assert await keeper.lease.renew()
    await keeper.turn()

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["read", "in_transaction", "committed", "forgetting"])
async def test_killed_at_any_point_nothing_is_lost_and_nothing_twice(world: World, redis_server: Any, point: str):
    ids = [await world.end(f"gen_{n:02}") for n in range(12)]
    command = [sys.executable, "-c", KILLED, point, world.url, redis_server.url]
    killed = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(await world.rows()) in (0, 12)  # All or nothing, as it is one transaction.
    assert await world.left() != (0, 0)

    await world.redis.delete(keyspace.BOOKKEEPER)  # As its expiry does, five seconds later.
    await (await world.holder()).turn()

    assert await world.rows() == ids
    assert await world.left() == (0, 0)
    assert not await world.redis.exists(keyspace.UNREADABLE)


# What broke off


async def test_what_an_api_ended_is_estimated_from_its_log(world: World):
    await world.open("gen_1")
    head = {"provider": "openai", "upstream_model": "gpt-4o", "tries": 2, "continuations": 0, "queue_wait_ms": 7, "ttft_ms": 9}
    chunk = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "word " * 40}}]})
    await world.say("gen_1", (FrameKind.HEAD, orjson.dumps(head)), (FrameKind.DATA, b"data: " + chunk + b"\n\n"))
    await world.channel.end_unowned("gen_1", "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    await world.redis.rpush(keyspace.ENDED, "gen_1")

    await (await world.holder()).turn()

    columns = "id, outcome, is_partial, is_estimated, provider, tries, ttft_ms, output_tokens"
    assert await world.rows(columns) == [("gen_1", "failed", True, True, "openai", 2, 9, 50)]
    ((_, tokens, cost),) = await world.rows("id, input_tokens, cost_nano_usd")
    assert tokens > 5
    assert cost > 50 * 1_000  # GPT-4o costs more than a dollar for a million tokens.


async def test_what_an_api_ended_before_the_first_token_took_the_prompt_of_the_calls_that_were_noted(world: World):
    await world.open("gen_1")
    claim = Claim("gen_1", 1, "token")
    await world.channel.fence(claim, is_handover=False)
    first = Attempt("openai", "gpt-4o", Usage(100, 0), is_estimated=True).apply_prices({})
    await world.channel.heartbeat([claim], [pack([first, Attempt("anthropic", "claude-haiku-4-5")])])
    await world.channel.end_unowned("gen_1", "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    await world.redis.rpush(keyspace.ENDED, "gen_1")

    await (await world.holder()).turn()

    assert await world.rows("id, is_partial, is_estimated, provider, tries") == [("gen_1", False, True, "anthropic", 2)]
    parts = await world.rows("provider, cost_nano_usd", "(SELECT *, generation_id AS id FROM ledger_attempts) AS parts")
    ((_, tokens, cost),) = await world.rows("id, input_tokens, cost_nano_usd")
    assert tokens > 100
    assert dict(parts)["openai"] == 250_000  # 2.50 dollars for a million tokens.
    assert cost == sum(dict(parts).values())


async def test_what_was_ended_while_it_waited_took_nothing(world: World):
    await world.open("gen_1")
    await world.channel.end_unowned("gen_1", "t", Failed(ErrorKind.CANCELLED, "stopped", code="cancelled"))
    await world.redis.rpush(keyspace.ENDED, "gen_1")

    await (await world.holder()).turn()

    columns = "id, outcome, error_code, is_partial, is_estimated, input_tokens, cost_nano_usd"
    assert await world.rows(columns) == [("gen_1", "cancelled", "cancelled", False, False, None, None)]


async def test_a_log_that_is_gone_leaves_the_usage_unknown(world: World):
    await world.end("gen_1", error={"kind": "upstream_timeout", "message": "m"}, usage=None, cost=None)
    await world.redis.delete(keyspace.log("gen_1"), keyspace.state("gen_1"))

    await (await world.holder()).turn()

    assert await world.rows("id, is_partial, is_estimated, output_tokens") == [("gen_1", True, False, None)]


async def test_a_log_that_cannot_be_understood_leaves_the_usage_unknown(world: World):
    await world.open("gen_1", dialect="a newer version's")
    await world.say("gen_1", (FrameKind.HEAD, b"{}"), (FrameKind.DATA, b"?"))
    await world.channel.end_unowned("gen_1", "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    await world.redis.rpush(keyspace.ENDED, "gen_1")

    await (await world.holder()).turn()

    assert await world.rows("id, outcome, output_tokens") == [("gen_1", "failed", None)]


@ON_SQLITE
async def test_a_huge_log_is_read_back_as_far_as_memory_is_meant_for_it(world: World, monkeypatch: pytest.MonkeyPatch):
    await world.open("gen_1")
    await world.say("gen_1", (FrameKind.HEAD, b"{}"))
    await world.channel.end_unowned("gen_1", "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    await world.redis.rpush(keyspace.ENDED, "gen_1")
    piece, reads = b"data: " + bytes(MIB) + b"\n\n", itertools.count(1)

    async def endless(*_: object) -> list[Frame]:
        n = next(reads)
        assert n < 100
        return [Frame(FrameId(1, n), FrameKind.DATA, piece)]

    monkeypatch.setattr(world.channel, "read", endless)
    await (await world.holder()).turn()

    assert next(reads) - 1 == LOG_BYTES_MAX // MIB
    assert await world.rows() == ["gen_1"]


@pytest.mark.parametrize("answered", [(b"LRANGE",), (b"LRANGE", b"LPUSH", b"UNLINK", b"HMGET")])
async def test_a_redis_that_cannot_read_now_takes_nothing_off_the_list(
    world: World, monkeypatch: pytest.MonkeyPatch, answered: tuple[bytes, ...]
):
    await world.end("gen_1")
    keeper = await world.holder()
    real = Exchanges.run

    async def loading(exchanges: Exchanges, commands: Sequence[bytes]) -> list[Any]:
        is_answered = any(name in commands[0] for name in answered)
        error = ResponseError("LOADING Redis is loading the dataset in memory")
        return await real(exchanges, commands) if is_answered else [error for _ in commands]

    monkeypatch.setattr(Exchanges, "run", loading)
    await keeper.turn()
    monkeypatch.setattr(Exchanges, "run", real)
    assert await world.left() == (1, 1)

    await keeper.turn()
    assert await world.rows() == ["gen_1"]


# The audit log


async def audited(world: World, generation_id: str = "gen_1") -> None:
    await world.open(generation_id, is_audited=True)
    chunk = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "Write to alice@example.com."}}]})
    end = orjson.dumps(END)
    await world.say(generation_id, (FrameKind.HEAD, b"{}"), (FrameKind.DATA, b"data: " + chunk + b"\n\n"), (FrameKind.END, end))
    await world.redis.rpush(keyspace.ENDED, generation_id)


async def test_an_audited_generation_is_kept_redacted_and_encrypted(world: World):
    await audited(world)

    await (await world.holder()).turn()

    ((_, sealed, created_ms, expires_ms),) = await world.rows("id, sealed, created_ms, expires_ms", "audit")
    settings = Settings(secret=SECRET)
    entry = unseal(bytes(sealed), "gen_1", settings.secret)
    assert entry["request"]["messages"] == [{"role": "user", "content": "I am [EMAIL]"}]
    assert entry["answer"] == [[{"text": "Write to [EMAIL]."}]]
    assert (entry["owner"], entry["model"], entry["outcome"], entry["error"]) == ("key_a", "demo", "completed", None)
    assert b"EMAIL" not in bytes(sealed)
    assert created_ms == 1_000
    days = (expires_ms - world.pulse.redis_ms) / 86_400_000
    assert 29.9 < days < 30.1
    assert await world.rows() == ["gen_1"]


async def test_what_was_kept_for_the_audit_log_then_expires_as_that_of_others(world: World):
    await audited(world)
    assert await world.redis.ttl(keyspace.log("gen_1")) == -1

    await (await world.holder()).turn()

    assert 0 < await world.redis.pttl(keyspace.log("gen_1")) <= 60_000
    assert 0 < await world.redis.pttl(keyspace.state("gen_1")) <= 60_000
    assert not await world.redis.exists(keyspace.request("gen_1"), keyspace.record("gen_1"))


async def test_the_log_of_a_record_that_cannot_be_read_expires_too(world: World):
    await audited(world)
    await world.redis.hset(keyspace.record("gen_1"), "end", "none of ours")

    await (await world.holder()).turn()

    assert await world.rows() == []
    assert await world.redis.llen(keyspace.UNREADABLE) == 1
    assert 0 < await world.redis.pttl(keyspace.log("gen_1")) <= 60_000
    assert 0 < await world.redis.pttl(keyspace.state("gen_1")) <= 60_000


async def test_without_a_secret_the_ledger_has_its_row_and_the_entry_waits_for_one(world: World):
    await audited(world)
    keeper = await world.holder(secret=None)

    await keeper.turn()

    assert await world.rows() == ["gen_1"]
    assert await world.rows(table="audit") == []
    assert await world.left() == (0, 1)
    await keeper.stop()
    await (await world.holder()).turn()
    assert await world.rows(table="audit") == ["gen_1"]
    assert await world.left() == (0, 0)


async def test_expired_entries_are_deleted(world: World):
    await audited(world, "gen_1")
    await audited(world, "gen_2")
    keeper = await world.holder()
    await keeper.turn()
    engine = open_database(world.url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE audit SET expires_ms = 5 WHERE id = 'gen_1'"))
    await engine.dispose()

    world.clock.now += AUDIT_PAUSE_S
    await keeper.turn()

    assert await world.rows(table="audit") == ["gen_2"]
    assert await world.rows() == ["gen_1", "gen_2"]


# The budgets' counters


async def counters(world: World) -> dict[str, int]:
    names = [name.decode() for name in await world.redis.keys(keyspace.SPENT + "*") if name != keyspace.SPENT_LOADED.encode()]
    return {name.removeprefix(keyspace.SPENT): int(await world.redis.get(name)) for name in sorted(names)}


async def test_lost_counters_are_rebuilt_from_the_ledger(world: World):
    day, month = periods()
    for n in range(3):
        await world.end(f"gen_{n}")
    keeper = await world.holder()
    await keeper.turn()
    await world.redis.flushall()
    await keeper.lease.renew()
    await world.redis.incrby(keyspace.spent("key", "key_a", day), 5)  # What was spent since.

    await keeper.turn()
    await keeper.turn()

    assert await counters(world) == {
        f"key:key_a:{month}": 9_000_000,
        f"key:key_a:{day}": 9_000_005,
        f"provider:openai:{month}": 9_000_000,
        f"provider:openai:{day}": 9_000_000,
        f"tenant:acme:{month}": 9_000_000,
        f"tenant:acme:{day}": 9_000_000,
    }
    assert 2 * 86_400 < await world.redis.ttl(keyspace.spent("key", "key_a", day)) <= 3 * 86_400
    assert 39 * 86_400 < await world.redis.ttl(keyspace.spent("key", "key_a", month)) <= 40 * 86_400
    assert await world.redis.ttl(keyspace.SPENT_LOADED) == -1


async def test_counters_are_rebuilt_whatever_older_versions_have_written(world: World):
    for n in range(5):
        await world.end(f"gen_{n}")
    keeper = await world.holder()
    await keeper.turn()
    engine = open_database(world.url)
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE ledger SET cost_nano_usd = {2**63 - 1}"))
    await engine.dispose()
    await world.redis.flushall()
    await keeper.lease.renew()
    await world.redis.set(keyspace.spent("key", "key_a", periods()[0]), 5)

    await keeper.turn()
    await world.end("gen_new")
    await keeper.turn()

    assert set((await counters(world)).values()) == {9 * 10**18}
    assert await world.redis.get(keyspace.SPENT_LOADED) == b"loaded"
    assert "gen_new" in await world.rows()


async def test_what_waits_in_redis_is_not_among_the_sums(world: World):
    """Its cost is in the counters since it ended: they are loaded before anything is collected."""
    await world.end("gen_1")

    await (await world.holder()).turn()

    assert await world.rows() == ["gen_1"]
    assert await counters(world) == {}


async def test_a_rebuild_that_was_killed_is_begun_anew(world: World):
    await world.end("gen_1")
    keeper = await world.holder()
    await keeper.turn()
    await world.redis.set(keyspace.SPENT_LOADED, "loading 5")

    await keeper.turn()

    assert set((await counters(world)).values()) == {3_000_000}
    assert await world.redis.get(keyspace.SPENT_LOADED) == b"loaded"


async def test_a_rebuild_that_was_overtaken_adds_nothing(world: World):
    await world.end("gen_1")
    keeper = await world.holder()
    await keeper.turn()
    scripts, args = Scripts(world.redis, Path(restore_budgets.__file__).parent, COUNTERS), ["loading 5", 1_000, 60]
    await world.redis.set(keyspace.SPENT_LOADED, "loading 6")

    assert await scripts.run("load_spent", [keyspace.SPENT_LOADED, keyspace.spent("key", "key_a", "202611")], args) == 0

    assert await counters(world) == {}


# The managed keys


async def test_a_key_that_redis_was_not_told_of_is_served_within_seconds(world: World):
    keeper = await world.holder()
    await keeper.turn()
    engine = open_database(world.url)
    async with engine.begin() as connection:
        now_ms = world.pulse.redis_ms
        columns = "id, name, tenant, secret_hash, access, is_disabled, created_ms, updated_ms"
        await connection.execute(
            text(f"INSERT INTO managed_keys ({columns}) VALUES ('k1', 'n', 't', 'h', '{{}}', :no, :now, :now)"),
            {"now": now_ms, "no": False},
        )
    await engine.dispose()

    world.clock.now += KEYS_PAUSE_S
    await keeper.turn()
    assert b'"k1"' in await world.redis.get(keyspace.managed_key("k1"))

    await world.redis.flushall()  # And after Redis was lost.
    await keeper.lease.renew()
    world.clock.now += KEYS_PAUSE_S
    await keeper.turn()
    assert b'"k1"' in await world.redis.get(keyspace.managed_key("k1"))


# What it costs those who do nothing


def test_a_worker_without_the_lease_imports_no_database():
    code = "import sys, workers.main; print({'sqlalchemy', 'alembic', 'asyncpg', 'aiosqlite'} & set(sys.modules))"

    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "set()"
