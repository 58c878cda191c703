"""One step of the collector at a time: what it reads from Redis, what it gives to the database, and what it deletes.

The database is scripted. The whole way into a real one is in tests/workers/ledger/test_collector.py.
"""

import asyncio
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from structlog.testing import capture_logs

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind, Opening
from common.channel.redis import RedisChannel
from common.config.settings import Settings
from common.ledger import set_aside
from common.ledger.audit import unseal
from common.metering.attempt_cost import Attempt, pack
from common.records.request_summary import RequestSummary
from common.redis import keyspace
from workers.ledger.collector import Collector
from workers.metrics import Metrics

SETTINGS = Settings(secret="a long random text of 32 bytes or more", audit_retention_days=2)
BODY = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
USAGE = {"input_tokens": 10, "output_tokens": 5}
END = {"error": None, "finish_reason": "stop", "usage": USAGE, "provider": "openai", "upstream_model": "gpt-4o", "tries": 1}
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'


class Lab:
    """A collector on a real Redis. ``batches`` are the rows that the database got, ``refused`` what it takes no row of."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.channel = RedisChannel(redis, tombstone_s=60)
        self.metrics = Metrics(CollectorRegistry())
        self.collector = Collector(redis, self.channel, settings, self.metrics)
        self.batches: list[list[dict[str, Any]]] = []
        self.audit: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}

    async def add(self, engine: object, rows: list[dict[str, Any]], audit: list[dict[str, Any]]) -> dict[str, str]:
        self.batches.append([row for row in rows if row["id"] not in self.refused])
        self.audit += audit
        return {row["id"]: self.refused[row["id"]] for row in rows if row["id"] in self.refused}

    async def open(self, generation_id: str, *, is_audited: bool = False) -> Claim:
        summary = RequestSummary("key_a", "acme", "ann", "req_1", "openai-chat", "generate", True, "demo", 1_000, is_audited)
        job = Job(generation_id, "req_1", "openai-chat", "demo", True, Policy.STOP, 0.0, 1, body=orjson.dumps(BODY))
        opening = Opening(
            "key_a", "openai-chat", True, "demo", 1, Policy.STOP, 0, 60, 600, job.pack(), summary.pack(), is_audited
        )
        await self.channel.open(generation_id, opening, "")
        claim = Claim(generation_id, 1, "t")
        await self.channel.fence(claim, is_handover=False)
        return claim

    async def end(self, generation_id: str, *, is_listed: bool = True, is_audited: bool = False, **end: Any) -> None:
        claim = await self.open(generation_id, is_audited=is_audited)
        data = [(FrameKind.HEAD, b"{}"), (FrameKind.DATA, TEXT % b"good day"), (FrameKind.END, orjson.dumps({**END, **end}))]
        frames = [Frame(FrameId(1, n), kind, each) for n, (kind, each) in enumerate(data, 1)]
        await self.channel.append([Append(claim, FrameId(1, 0), frames)])
        if is_listed:
            await self.redis.rpush(keyspace.ENDED, generation_id)

    async def collect(self) -> int:
        return await self.collector.collect(None)  # type: ignore[arg-type]  # The database is scripted.

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)

    async def records(self) -> list[str]:
        return sorted(key.decode() for key in await self.redis.keys("*:record"))

    async def set_aside(self) -> dict[str, str]:
        entries = [set_aside.unpack(raw) for raw in await self.redis.lrange(keyspace.UNREADABLE, 0, -1)]
        return {entry.id: entry.reason for entry in entries}


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Lab:
    lab = Lab(redis, getattr(request, "param", SETTINGS))
    monkeypatch.setattr("common.database.store.add", lab.add)
    return lab


# Batches


async def test_the_list_is_collected_batch_by_batch(lab, monkeypatch):
    monkeypatch.setattr("workers.ledger.collector.BATCH", 2)
    for n in range(5):
        await lab.end(f"gen_{n}")

    sizes = [await lab.collect() for _ in range(4)]

    assert sizes == [2, 2, 1, 0]
    assert [[row["id"] for row in batch] for batch in lab.batches] == [["gen_0", "gen_1"], ["gen_2", "gen_3"], ["gen_4"]]
    assert await lab.records() == []
    assert lab.metric("sluice_ledger_collected_total") == 5


async def test_nothing_is_written_where_nothing_is_listed(lab):
    assert await lab.collect() == 0
    assert lab.batches == []


async def test_what_comes_meanwhile_stays_listed(lab, monkeypatch):
    await lab.end("gen_0")

    async def add_slowly(*args: Any) -> dict[str, str]:
        await lab.end("gen_1")
        await lab.redis.rpush(keyspace.ENDED, "gen_0")
        return await lab.add(*args)

    monkeypatch.setattr("common.database.store.add", add_slowly)
    await lab.collect()

    assert await lab.redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_1", b"gen_0"]
    assert await lab.records() == ["{gen_1}:record"]


async def test_a_scan_goes_over_all_keys_step_by_step(lab, monkeypatch):
    monkeypatch.setattr("workers.ledger.collector.SCAN_COUNT", 1)
    for n in range(20):
        await lab.end(f"gen_{n}", is_listed=False)
    steps = 1
    while not await lab.collector.scan(None):  # type: ignore[arg-type]
        steps += 1

    assert steps > 1
    assert sorted(row["id"] for batch in lab.batches for row in batch) == sorted(f"gen_{n}" for n in range(20))


async def test_a_scan_leaves_what_has_a_job_or_is_no_record(lab):
    await lab.end("gen_0", is_listed=False)
    await lab.end("gen_1", is_listed=False)
    await lab.redis.hset(keyspace.JOB + "gen_0", "epoch", "1")

    assert await lab.collector.scan(None)  # type: ignore[arg-type]

    assert [row["id"] for batch in lab.batches for row in batch] == ["gen_1"]


# What cannot be stored


async def test_what_the_database_refuses_is_set_aside_and_not_counted(lab):
    for n in range(3):
        await lab.end(f"gen_{n}")
    lab.refused = {"gen_1": "a value is out of range"}

    await lab.collect()

    assert [row["id"] for row in lab.batches[0]] == ["gen_0", "gen_2"]
    assert await lab.set_aside() == {"gen_1": "a value is out of range"}
    assert lab.metric("sluice_ledger_collected_total") == 2
    assert lab.metric("sluice_ledger_unreadable_total") == 1
    assert await lab.records() == []


async def test_a_reason_is_the_error_s_name_and_the_beginning_of_its_text(lab, monkeypatch):
    await lab.end("gen_0")
    await lab.end("gen_1")

    def breaks(packed: bytes) -> None:
        raise LookupError("x" * 500)

    monkeypatch.setattr("workers.ledger.collector.RequestSummary.unpack", breaks)
    with capture_logs() as logs:
        await lab.collect()

    reason = ("LookupError: " + "x" * 500)[:200]
    assert await lab.set_aside() == {"gen_0": reason, "gen_1": reason}
    assert [line["reason"] for line in logs if line["event"] == "ledger_record_unreadable"] == [reason] * 2
    assert 0 < await lab.redis.ttl(keyspace.UNREADABLE) <= set_aside.RETENTION_S


@pytest.mark.parametrize("error", [StoreUnavailable("away"), asyncio.CancelledError()])
async def test_a_store_that_is_away_sets_nothing_aside(lab, monkeypatch, error):
    await end_unowned(lab)

    async def away(*_: Any) -> None:
        raise error

    monkeypatch.setattr(lab.channel, "read", away)
    with pytest.raises(type(error)):
        await lab.collect()

    assert await lab.set_aside() == {}
    assert await lab.records() == ["{gen_0}:record"]
    assert await lab.redis.llen(keyspace.ENDED) == 1


async def test_a_record_that_killed_workers_keeps_its_reason(lab):
    await lab.end("gen_0")
    await lab.redis.hset(keyspace.record("gen_0"), "set_aside", "it kills its workers")

    await lab.collect()

    assert await lab.set_aside() == {"gen_0": "it kills its workers"}
    assert lab.batches == []
    assert lab.metric("sluice_ledger_collected_total") == 0


# Metrics


@pytest.mark.parametrize(("now_after_ms", "waited_s"), [(2_500, 2.5), (-1, 0)])
async def test_how_many_records_wait_and_since_when_is_measured(lab, now_after_ms, waited_s):
    await lab.end("gen_0")
    await lab.end("gen_1")
    await lab.redis.lpush(keyspace.UNREADABLE, "one", "two", "three")
    record = await lab.channel.record("gen_0")

    await lab.collector.update_metrics(record.ended_ms + now_after_ms)

    names = ("sluice_ledger_uncollected", "sluice_ledger_oldest_seconds", "sluice_set_aside")
    assert [lab.metric(name) for name in names] == [2, waited_s, 3]


@pytest.mark.parametrize(("digits", "waited_s"), [(17, pytest.approx(1)), (18, 0)])
async def test_a_moment_that_is_too_long_to_be_one_is_none(lab, digits, waited_s):
    ended_ms = "9" * digits
    await lab.redis.hset(keyspace.record("gen_0"), "ended_ms", ended_ms)
    await lab.redis.rpush(keyspace.ENDED, "gen_0")

    await lab.collector.update_metrics(int(ended_ms) + 1_000)

    assert lab.metric("sluice_ledger_oldest_seconds") == waited_s


async def test_an_empty_list_has_waited_for_nothing(lab):
    await lab.collector.update_metrics(1_000_000)

    assert [lab.metric(name) for name in ("sluice_ledger_uncollected", "sluice_ledger_oldest_seconds")] == [0, 0]


# Usage that nobody measured


async def end_unowned(lab: Lab, generation_id: str = "gen_0") -> None:
    claim = await lab.open(generation_id)
    head = {"provider": "openai", "upstream_model": "gpt-4o", "tries": 2, "ttft_ms": 9}
    frames = [
        Frame(FrameId(1, 1), FrameKind.HEAD, orjson.dumps(head)),
        Frame(FrameId(1, 2), FrameKind.DATA, TEXT % b"good day"),
    ]
    await lab.channel.append([Append(claim, FrameId(1, 0), frames)])
    await lab.channel.end_unowned(generation_id, "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    await lab.redis.rpush(keyspace.ENDED, generation_id)


async def test_an_answer_that_no_worker_ended_is_estimated_and_priced(lab):
    await end_unowned(lab)

    await lab.collect()

    (row,) = lab.batches[0]
    assert (row["outcome"], row["output_tokens"], row["is_estimated"], row["is_partial"]) == ("failed", 2, True, True)
    assert (row["provider"], row["tries"], row["has_brought_key"]) == ("openai", 2, False)
    assert row["cost_nano_usd"] > 0


async def test_a_log_that_cannot_be_estimated_leaves_a_row_without_usage(lab, monkeypatch):
    await end_unowned(lab)

    def breaks(*_: Any) -> None:
        raise RuntimeError("nested too deeply")

    monkeypatch.setattr("workers.ledger.collector.read_partial", breaks)
    with capture_logs() as logs:
        await lab.collect()

    (row,) = lab.batches[0]
    assert (row["id"], row["output_tokens"]) == ("gen_0", None)
    assert [line["event"] for line in logs] == ["usage_not_estimated"]


async def test_without_its_log_a_generation_keeps_what_is_known_of_it(lab):
    await end_unowned(lab)
    await lab.redis.delete(keyspace.log("gen_0"), keyspace.request("gen_0"))

    await lab.collect()

    (row,) = lab.batches[0]
    assert (row["id"], row["owner"], row["output_tokens"]) == ("gen_0", "key_a", None)


# The audit log


async def test_an_entry_has_the_whole_row_and_expires_after_its_days(lab):
    await lab.end("gen_0", is_audited=True)
    record = await lab.channel.record("gen_0")

    await lab.collect()

    (entry,) = lab.audit
    assert {name: entry[name] for name in ("id", "owner", "created_ms", "expires_ms")} == {
        "id": "gen_0",
        "owner": "key_a",
        "created_ms": 1_000,
        "expires_ms": record.ended_ms + 2 * 86_400_000,
    }
    assert unseal(entry["sealed"], "gen_0", SETTINGS.secret) == {
        "owner": "key_a",
        "tenant": "acme",
        "end_user": "ann",
        "request_id": "req_1",
        "dialect": "openai-chat",
        "model": "demo",
        "provider": "openai",
        "created_ms": 1_000,
        "ended_ms": record.ended_ms,
        "outcome": "completed",
        "request": BODY,
        "answer": [[{"text": "good day"}]],
        "error": None,
    }


@pytest.mark.parametrize("stored", ["none of ours", None])
async def test_an_entry_without_its_request_has_the_answer(lab, stored):
    await lab.end("gen_0", is_audited=True)
    await lab.redis.delete(keyspace.request("gen_0"))
    if stored:
        await lab.redis.set(keyspace.request("gen_0"), stored)

    await lab.collect()

    opened = unseal(lab.audit[0]["sealed"], "gen_0", SETTINGS.secret)
    assert (opened["request"], opened["answer"]) == (None, [[{"text": "good day"}]])


@pytest.mark.parametrize("lab", [Settings()], indirect=True)
async def test_a_missing_secret_is_logged_once(lab):
    for n in range(2):
        await lab.end(f"gen_{n}", is_audited=True)

    with capture_logs() as logs:
        await lab.collect()

    assert [line["event"] for line in logs] == ["audit_without_secret"]
    assert len(lab.batches[0]) == 2
    assert (lab.audit, await lab.records()) == ([], ["{gen_0}:record", "{gen_1}:record"])


async def test_only_the_keys_of_audited_generations_get_an_expiry_from_the_collector(lab):
    await lab.end("gen_0", is_audited=True)
    await lab.end("gen_1")
    await lab.redis.pexpire(keyspace.log("gen_1"), 5_000)

    await lab.collect()

    assert 30_000 < await lab.redis.pttl(keyspace.log("gen_0")) <= 60_000
    assert 30_000 < await lab.redis.pttl(keyspace.state("gen_0")) <= 60_000
    assert 0 < await lab.redis.pttl(keyspace.log("gen_1")) <= 5_000
    assert await lab.redis.exists(keyspace.request("gen_0")) == 0


@pytest.mark.parametrize(("is_clients", "keys"), [(False, [True, False]), (True, [True, True])])
async def test_who_paid_for_an_attempt_is_known_by_attempt_or_for_all_of_them(lab, is_clients, keys):
    claim = await lab.open("gen_0")
    attempts = [Attempt("openai", "gpt-4o", Usage(9, 1), has_brought_key=True), Attempt("openai", "gpt-4o", Usage(5, 0))]
    await lab.channel.heartbeat([claim], [pack(attempts)])
    await lab.channel.end_unowned("gen_0", "t", Failed(ErrorKind.WORKER_LOST, "lost"))
    end = orjson.loads(await lab.redis.hget(keyspace.record("gen_0"), "end"))
    await lab.redis.hset(keyspace.record("gen_0"), "end", orjson.dumps({**end, "brought_key": is_clients}))
    await lab.redis.rpush(keyspace.ENDED, "gen_0")

    await lab.collect()

    (row,) = lab.batches[0]
    assert [part["has_brought_key"] for part in row["attempts"]] == keys
    assert [part["input_tokens"] for part in row["attempts"]] == [9, 5]
    assert row["has_brought_key"] is is_clients


# Generations that shared a log


async def test_each_generation_that_shared_a_log_has_a_row_and_only_the_first_one_pays(lab):
    await lab.end("gen_log", cost={"input_usd": "0.001", "output_usd": "0.002", "total_usd": "0.003"})
    stored = orjson.loads(await lab.redis.hget(keyspace.record("gen_log"), "asked"))
    await lab.redis.hset(keyspace.record("gen_log"), "asked", orjson.dumps({**stored, "row_id": "gen_a"}))
    parted = orjson.dumps({"error": Failed(ErrorKind.CANCELLED, "stopped", code="cancelled").to_dict()})
    others = {name: orjson.dumps({**stored, "owner": f"key_{name}", "cache": "join"}) for name in ("gen_b", "gen_c")}
    left = {"left:gen_c": b"1234 " + parted}
    await lab.redis.hset(keyspace.followers("gen_log"), mapping={"gen_a": b"", **others, **left})

    await lab.collect()

    rows = {row["id"]: row for row in lab.batches[0]}
    assert set(rows) == {"gen_a", "gen_b", "gen_c"}
    assert [rows[name]["owner"] for name in sorted(rows)] == ["key_a", "key_gen_b", "key_gen_c"]
    assert [rows[name]["cost_nano_usd"] for name in sorted(rows)] == [3_000_000, 0, 0]
    assert [rows[name]["outcome"] for name in sorted(rows)] == ["completed", "completed", "cancelled"]
    assert rows["gen_c"]["ended_ms"] == 1234
    assert await lab.records() == []
    assert lab.metric("sluice_ledger_collected_total") == 1
