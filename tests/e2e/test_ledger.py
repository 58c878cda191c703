"""Is every generation that was taken in the ledger, once, whatever breaks? Real processes, killed for real."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.canonical.errors import ErrorKind
from common.limits.charges import periods
from common.redis import keyspace
from tests.support.clients.ledger_rows import file_of, row_of, rows
from tests.support.fleet import CHAT, KEY, MESSAGES, OTHER_KEY, ROOT, Fleet, RawClient, body_of, fleet, headers_of, until
from tests.support.servers.postgres import PostgresForTests, find_binaries

pytestmark = pytest.mark.timeout(600)

QUICK = {"SLUICE_LEASE_S": "2", "SLUICE_RENEW_S": "0.5", "SLUICE_HEARTBEAT_S": "0.5"}
SECRET = "a long random text of 32 bytes or more"


def keeper_of(found: Fleet) -> Any:
    """The worker that keeps the books, as its log tells."""

    def look() -> Any:
        for worker in found.workers:
            told = [line["event"] for line in worker.lines() if line["event"].startswith("bookkeeping")]
            if worker.is_alive and told and told[-1] == "bookkeeping_begun":
                return worker
        return None

    return until(look, "a worker keeps the books")


def left(found: Fleet) -> tuple[int, int]:
    return found.redis.llen(keyspace.ENDED), sum(1 for _ in found.redis.scan_iter("*:record", count=1000))


def sluice(found: Fleet, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *args]
    told = {**os.environ, **found.env(), **env}
    return subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A fleet that no test breaks."""
    price = {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 2000}
    prices = json.dumps({"demo/demo-n5-d1": price, "openai/demo-n10000-d5": price})
    with fleet(tmp_path_factory.mktemp("one"), workers=2, SLUICE_PRICES=prices, SLUICE_SECRET=SECRET, **QUICK) as found:
        yield found


# What a row tells


@pytest.mark.parametrize("stream", [True, False])
def test_a_completed_generation_has_its_row(one: Fleet, stream: bool):
    answer = one.post(CHAT, body_of(CHAT, "demo/demo-n5-d1", stream=stream, user="u-7"))

    found = row_of(one, answer.headers["x-generation-id"])

    told = {
        name: found[name] for name in ("dialect", "operation", "model", "provider", "outcome", "end_user", "tries", "cache")
    }
    assert told == {
        "dialect": CHAT,
        "operation": "generate",
        "model": "demo/demo-n5-d1",
        "provider": "demo",
        "outcome": "completed",
        "end_user": "u-7",
        "tries": 1,
        "cache": "off",
    }
    assert found["request_id"] == answer.headers["x-request-id"]
    assert bool(found["stream"]) is stream
    assert (found["output_tokens"], found["is_estimated"], found["is_partial"]) == (5, 0, 0)
    assert found["cost_nano_usd"] == found["input_tokens"] * 1_000_000 + 5 * 2_000_000
    assert found["created_ms"] <= found["ended_ms"]
    assert 0 <= found["queue_wait_ms"] <= found["ttft_ms"] <= found["duration_ms"]


@pytest.mark.parametrize(("model", "outcome", "is_partial"), [("demo-e400", "failed", 0), ("demo-cut5", "failed", 1)])
def test_a_failed_generation_has_its_row(one: Fleet, model: str, outcome: str, is_partial: int):
    answer = one.post(CHAT, body_of(CHAT, f"openai/{model}", stream=True))

    found = row_of(one, answer.headers["x-generation-id"])

    assert (found["outcome"], found["is_partial"], bool(found["error_kind"])) == (outcome, is_partial, True)
    assert bool(found["is_estimated"]) is bool(is_partial)
    assert bool(found["output_tokens"]) is bool(is_partial)


def test_a_client_that_leaves_pays_for_what_it_got(one: Fleet):
    with RawClient(one.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, "openai/demo-n10000-d5", stream=True))
        client.read_until(b"data: ", 60)
        generation_id = client.received.partition(b"x-generation-id: ")[2].partition(b"\r")[0].decode()

    found = row_of(one, generation_id)

    assert (found["outcome"], found["error_kind"], found["is_partial"], found["is_estimated"]) == (
        "cancelled",
        "cancelled",
        1,
        1,
    )
    assert 10 < found["output_tokens"] < 5_000
    assert found["input_tokens"] > 0
    assert found["cost_nano_usd"] == found["input_tokens"] * 1_000_000 + found["output_tokens"] * 2_000_000
    for period in periods():  # Its budgets too: nothing else of this fleet's has a price at this provider.
        assert int(one.redis.get(keyspace.spent("provider", "openai", period))) == found["cost_nano_usd"]


def test_counting_tokens_has_a_row_without_usage(one: Fleet):
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    answer = one.client.post(f"{one.url}/v1/messages/count_tokens", json=body, headers=headers_of())

    found = row_of(one, answer.headers["x-generation-id"])

    assert (found["operation"], found["outcome"], found["output_tokens"], found["cost_nano_usd"]) == (
        "count_tokens",
        "completed",
        None,
        None,
    )


# Reports


def test_a_key_sees_its_own_usage_and_no_other(one: Fleet):
    for key, count in ((KEY, 2), (OTHER_KEY, 1)):
        for _ in range(count):
            row_of(one, one.post(CHAT, body_of(CHAT, "demo/demo-n5-d1"), key=key).headers["x-generation-id"])

    mine, others = (
        one.client.get(f"{one.url}/v1/usage?by=model", headers=headers_of(key=key)).json() for key in (KEY, OTHER_KEY)
    )

    assert [line["requests"] for line in others["data"]] == [1]
    assert others["data"][0]["model"] == "demo/demo-n5-d1"
    assert float(others["data"][0]["cost_usd"]) > 0.01
    assert sum(line["requests"] for line in mine["data"]) >= 2


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("by=secret", "by"),
        ("by=key", "by"),
        ("by=", "by"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("limit=0", "limit"),
        ("limit=1e3", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("key=key_other", "key"),
    ],
)
def test_a_bad_parameter_is_named(one: Fleet, query: str, param: str):
    answer = one.client.get(f"{one.url}/v1/usage?{query}", headers=headers_of())

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_usage_needs_a_key(one: Fleet):
    assert one.client.get(f"{one.url}/v1/usage").status_code == 401


def test_the_command_reports_what_was_used(one: Fleet):
    row_of(one, one.post(CHAT, body_of(CHAT, "demo/demo-n5-d1")).headers["x-generation-id"])

    table = sluice(one, "usage", "--by", "model", "--by", "day")
    told = sluice(one, "usage", "--by", "provider", "--format", "json")
    csv = sluice(one, "usage", "--format", "csv")

    assert "demo/demo-n5-d1" in table.stdout, table.stderr
    assert "cost USD" in table.stdout
    assert {line["provider"] for line in json.loads(told.stdout)["data"]} >= {"demo"}
    assert csv.stdout.startswith("key,key_name,requests,input_tokens,")


# The audit log


def test_an_audited_answer_can_be_read_by_the_operator_alone(tmp_path: Path):
    owner = owner_of(KEY)
    tenants = json.dumps({owner: {"audit": True}})
    with fleet(tmp_path, SLUICE_TENANTS=tenants, SLUICE_SECRET=SECRET, **QUICK) as found:
        body = body_of(CHAT, "demo/demo-n5-d1", stream=True, text="Write to bob@example.com")
        audited = found.post(CHAT, body).headers["x-generation-id"]
        other = found.post(CHAT, body, key=OTHER_KEY).headers["x-generation-id"]
        row_of(found, audited), row_of(found, other)
        until(lambda: left(found) == (0, 0), "all is collected")

        shown = sluice(found, "audit", "show", audited)
        with_another_secret = sluice(found, "audit", "show", audited, SLUICE_SECRET="another secret of these tests, 32 bytes")
        not_audited = sluice(found, "audit", "show", other)
        ttl = found.redis.ttl(keyspace.log(audited))

    entry = json.loads(shown.stdout)
    assert entry["request"]["messages"][0]["content"] == "Write to [EMAIL]"
    assert entry["answer"][0][0]["text"]
    assert with_another_secret.returncode == 1
    assert "another SLUICE_SECRET" in with_another_secret.stderr
    assert not_audited.returncode == 1
    assert b"bob@" not in file_of(found).read_bytes()
    assert 0 < ttl <= 60


def test_what_cannot_be_audited_is_refused(tmp_path: Path):
    tenants = json.dumps({owner_of(KEY): {"audit": True}})
    with fleet(tmp_path, SLUICE_TENANTS=tenants) as found:
        refused, others = (found.post(CHAT, body_of(CHAT, "demo-n2"), key=key) for key in (KEY, OTHER_KEY))

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_unavailable")
    assert others.status_code == 200


def owner_of(key: str) -> str:
    """What a static key's principal, and so its tenant, is called."""
    return f"key_{hashlib.sha256(b'sluice principal ' + key.encode()).hexdigest()[:16]}"


# Whatever breaks


class Load:
    """Clients that ask for all kinds of answers; ``ids`` are those of every generation that was taken."""

    def __init__(self, found: Fleet) -> None:
        self.found = found
        self.ids: set[str] = set()
        self.asked = 0

    def one(self, number: int) -> None:
        dialect = (CHAT, MESSAGES)[number % 2]
        kind = ("complete", "complete", "leave", "fail", "cut", "cancel", "whole")[number % 7]
        model = {"fail": "demo-e500", "cut": "demo-cut5", "leave": "demo-n10000-d20", "cancel": "demo-n10000-d20"}.get(kind)
        body = body_of(dialect, f"openai/{model or 'demo-n20-d10'}", stream=kind != "whole")
        disconnect = "stop" if kind == "leave" else "detach"
        try:
            with self.found.client.stream(
                "POST",
                self.found.url + {CHAT: "/v1/chat/completions", MESSAGES: "/v1/messages"}[dialect],
                json=body,
                headers=headers_of(x_disconnect=disconnect),
            ) as answer:
                if "x-generation-id" not in answer.headers:
                    return  # Refused: it is nobody's.
                generation_id = answer.headers["x-generation-id"]
                self.ids.add(generation_id)
                if kind == "cancel":
                    self.found.client.delete(f"{self.found.url}/v1/generations/{generation_id}", headers=headers_of())
                if kind == "leave":
                    next(answer.iter_bytes(), None)
                else:
                    answer.read()
        except httpx.HTTPError:
            pass  # The client's loss; its generation ends one way or the other.

    def run(self, count: int, pool: ThreadPoolExecutor) -> list[Any]:
        self.asked = count
        return [pool.submit(self.one, number) for number in range(count)]


def all_is_in(found: Fleet, load: Load) -> None:
    def is_quiet() -> bool:
        return left(found) == (0, 0) and not found.redis.zcard(keyspace.RUNNING) and not found.redis.zcard(keyspace.ENQUEUED)

    until(is_quiet, "all has ended and is collected")
    in_ledger = [row["id"] for row in rows(found, "id")]
    assert len(in_ledger) == len(set(in_ledger))
    assert load.ids - set(in_ledger) == set(), "lost"
    # A client that was cut off early never learned the id of its generation; there is one for each request at most.
    assert len(in_ledger) <= load.asked
    assert found.redis.llen(keyspace.UNREADABLE) == 0


def test_workers_that_are_killed_lose_nothing(tmp_path: Path):
    with fleet(tmp_path, workers=3, **QUICK) as found, ThreadPoolExecutor(24) as pool:
        load = Load(found)
        asked = load.run(120, pool)
        for _ in range(2):
            keeper = keeper_of(found)
            before = len(rows(found, "id"))
            until(lambda before=before: len(rows(found, "id")) > before, "the books are kept")
            keeper.kill()
            found.start_worker()
        for each in asked:
            each.result()

        all_is_in(found, load)
        assert len(load.ids) > 100
        outcomes = {row["outcome"] for row in rows(found, "outcome")}
    assert outcomes == {"completed", "failed", "cancelled"}


def test_a_redis_that_is_restarted_loses_nothing(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK) as found, ThreadPoolExecutor(16) as pool:
        load = Load(found)
        asked = load.run(60, pool)
        until(lambda: len(load.ids) > 20, "there is load")
        with closing(sqlite3.connect(file_of(found), isolation_level=None)) as locking:
            # So that records are waiting in Redis while it is restarted.
            until(lambda: rows(found, "id"), "the ledger is there")
            locking.execute("BEGIN EXCLUSIVE")
            until(lambda: left(found)[1] > 3, "records wait")
            found.redis_server.stop()
            found.redis_server.start()
            locking.execute("ROLLBACK")
        for each in asked:
            each.result()

        all_is_in(found, load)


def test_a_database_that_is_away_refuses_nobody_and_loses_nothing(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK) as found, ThreadPoolExecutor(16) as pool:
        load = Load(found)
        keeper = keeper_of(found)
        until(lambda: file_of(found).exists() and rows(found, "1", "alembic_version"), "the database is there")
        with closing(sqlite3.connect(file_of(found), isolation_level=None)) as locking:
            locking.execute("BEGIN EXCLUSIVE")
            for each in load.run(60, pool):
                each.result()
            until(lambda: keeper.events("database_away"), "it is noticed")
            assert len(load.ids) == 60
            assert left(found)[1] >= 50
            port = found.worker_ports[found.workers.index(keeper)]
            assert found.metrics(port)["sluice_ledger_uncollected"] >= 50
            locking.execute("ROLLBACK")

        all_is_in(found, load)
        until(lambda: keeper.events("database_back"), "it is told")
        assert len(keeper.events("database_away")) == len(keeper.events("database_back")) == 1


def test_endings_without_a_worker_are_in_the_ledger(tmp_path: Path):
    with fleet(tmp_path, workers=0, SLUICE_QUEUE_WAIT_S="2", **QUICK) as found:
        late = found.post(CHAT, body_of(CHAT, "demo-n5"))
        until(lambda: found.waiting() == 0, "it waits no more")  # Its client is told a moment before.
        with RawClient(found.ports[0]) as client:
            client.post(CHAT, body_of(CHAT, "demo-n5"))
            until(lambda: found.waiting() == 1, "it waits")
        until(lambda: left(found)[1] == 2, "both have ended")
        found.start_worker()
        found.ready()
        until(lambda: left(found) == (0, 0) and len(rows(found)) == 2, "both are collected")

        told = {row["id"]: (row["outcome"], row["error_kind"], row["tries"]) for row in rows(found)}

    assert late.status_code == 504
    assert told.pop(late.headers["x-generation-id"]) == ("failed", ErrorKind.DEADLINE_EXCEEDED, 0)
    assert list(told.values()) == [("cancelled", ErrorKind.CANCELLED, 0)]


@pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL server: install postgresql")
def test_on_postgresql_the_command_is_named_until_it_has_been_run(tmp_path: Path):
    with PostgresForTests() as server, fleet(tmp_path, SLUICE_DATABASE_URL=server.url(), **QUICK) as found:
        answer = found.post(CHAT, body_of(CHAT, "demo-n5"))
        keeper = keeper_of(found)
        (away,) = until(lambda: keeper.events("database_away"), "it is noticed")
        assert "sluice migrate" in away["error"]
        refused = found.client.get(f"{found.url}/v1/usage", headers=headers_of())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        before, done, after = (sluice(found, *args) for args in (["migrate", "--check"], ["migrate"], ["migrate", "--check"]))
        assert [each.returncode for each in (before, done, after)] == [1, 0, 0], done.stderr
        assert "empty to revision" in done.stdout

        until(lambda: left(found) == (0, 0), "it is collected")
        told = json.loads(sluice(found, "usage", "--by", "model", "--format", "json").stdout)
        own = found.client.get(f"{found.url}/v1/usage?by=model", headers=headers_of()).json()

    assert answer.status_code == 200
    assert [(line["model"], line["requests"]) for line in told["data"]] == [("demo-n5", 1)]
    assert own["data"] == told["data"]


def test_a_worker_that_is_told_to_stop_gives_the_lease_back_at_once(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK) as found:
        keeper = keeper_of(found)
        (other,) = [worker for worker in found.workers if worker is not keeper]
        keeper.send(signal.SIGTERM)
        keeper.wait(120)

        until(lambda: other.events("bookkeeping_begun"), "the other keeps the books")
