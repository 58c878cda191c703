"""What clients see while Redis is away, and when it comes back with less than it had: a real server, stopped and frozen.

The outages of 1 s and 10 s are those of the rule, with the default lease of 6 s. The one of 60 s is scaled down: what
makes it different is that it outlasts what workers may buffer, here 3 s instead of 30.
"""

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from demo_provider.script import answer
from tests.support.clients.streams import ChatStream
from tests.support.fleet import CHAT, DIALECTS, MESSAGES, Fleet, body_of, fleet, headers_of, until

pytestmark = pytest.mark.timeout(600)

BOTH_WAYS = pytest.mark.parametrize("how", ["frozen", "restarted"])
AWAY = {CHAT: (503, "store_unavailable"), MESSAGES: (529, "overloaded_error")}


@contextmanager
def outage(found: Fleet, how: str) -> Any:
    server = found.redis_server
    if how == "frozen":
        server.process.send_signal(signal.SIGSTOP)  # Slow is worse than dead: connections stay, and nothing answers.
    else:
        server.stop()
    try:
        yield
    finally:
        if how == "frozen":
            server.process.send_signal(signal.SIGCONT)
        else:
            server.start()


def breaker_is_open(found: Fleet) -> bool:
    return bool(found.apis[0].events("redis_away"))


def pass_seconds(seconds: float) -> None:
    threading.Event().wait(seconds)


def asked(found: Fleet, dialect: str) -> tuple[httpx.Response, float]:
    """Return the answer to a request, and the least time in seconds that one of three took: the machine may be busy."""
    times = []
    for _ in range(3):
        began_at = time.monotonic()
        response = found.post(dialect, body_of(dialect, "demo-n1", stream=True))
        times.append(time.monotonic() - began_at)
    return response, min(times)


@BOTH_WAYS
def test_an_outage_of_a_second_is_not_noticed(tmp_path: Path, how: str):
    with fleet(tmp_path, workers=2) as found:
        client = ChatStream(found, "demo-n150-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        with outage(found, how):
            pass_seconds(1)

        client.finished()
        assert client.text == answer(150)
        assert client.events[-1] == "[DONE]"
        assert found.takeovers() == 0


@BOTH_WAYS
def test_an_outage_of_ten_seconds_costs_no_token_and_no_takeover(tmp_path: Path, how: str):
    with fleet(tmp_path, workers=2) as found:
        flowing = ChatStream(found, "demo-n500-d20")
        silent = ChatStream(found, "demo-n20-d1-f8000")  # Its upstream begins during the outage.
        until(lambda: len(flowing.text) > 20, "tokens flow")
        until(lambda: found.stats()["open"] == 2, "both upstreams are called")

        with outage(found, how):
            until(lambda: breaker_is_open(found), "the breaker is open")
            began_at = time.monotonic()
            for dialect in DIALECTS:
                response, took_s = asked(found, dialect)
                status, word = AWAY[dialect]
                assert response.status_code == status
                assert 1 <= int(response.headers["retry-after"]) <= 5
                assert word in response.text
                assert took_s < 0.25
            generation = f"{found.url}/v1/generations/{flowing.headers['x-generation-id']}"
            assert found.client.get(generation, headers=headers_of()).status_code == 503
            assert found.client.delete(generation, headers=headers_of()).status_code == 503
            assert found.client.get(f"{found.url}/livez").status_code == 200
            assert found.client.get(f"{found.url}/readyz").status_code == 200  # It is not this process that is wrong.
            assert found.client.get(f"{found.url}/health").status_code == 503
            pass_seconds(10 - (time.monotonic() - began_at))

        for client, count in [(flowing, 500), (silent, 20)]:
            client.finished()
            assert client.text == answer(count)
            assert client.events[-1] == "[DONE]"
        assert found.takeovers() == 0
        for process in [*found.apis, *found.workers]:
            until(lambda process=process: process.events("redis_back"), "the breaker is closed")
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
        for process in [*found.apis, *found.workers]:
            assert len(process.events("redis_away")) == len(process.events("redis_back")) == 1, "once per change of state"


@BOTH_WAYS
def test_an_outage_longer_than_what_can_be_held_ends_in_the_error_event(tmp_path: Path, how: str):
    with fleet(tmp_path, SLUICE_WORKER_BUFFER_S="3", SLUICE_LEASE_S="2", SLUICE_RENEW_S="0.5") as found:
        client = ChatStream(found, "demo-n2000-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        with outage(found, how):
            until(lambda: found.stats()["open"] == 0, "the upstream is closed")
            pass_seconds(1)

        client.finished()
        assert client.error
        assert "[DONE]" not in client.events
        assert answer(2000).startswith(client.text)
        until(lambda: found.running() == 0, "its lease is given back")
        until(lambda: found.apis[0].events("redis_back"), "the breaker is closed")
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)


@pytest.mark.parametrize("worker_gone", [False, True])
def test_a_breaker_opens_within_two_seconds(tmp_path: Path, worker_gone: bool):
    with fleet(tmp_path, workers=0 if worker_gone else 1) as found, outage(found, "frozen"):
        began_at = time.monotonic()

        until(lambda: breaker_is_open(found), "the breaker is open")

        # Half a second for the log to be read, on a machine that does other things too.
        assert time.monotonic() - began_at < 2.5


# What a failover to a replica that lags, or a disk that was not asked to sync, does to acknowledged writes.


def restart_with_less(found: Fleet, keep_bytes: int) -> None:
    """Stop Redis, and start it with only the first bytes of what it had."""
    found.redis_server.process.kill()
    found.redis_server.process.wait()
    log = log_file(found)
    os.truncate(log, min(keep_bytes, log.stat().st_size))
    found.redis_server.start()


def log_file(found: Fleet) -> Path:
    """The append-only file: one file before Redis 7, from then on the increment of several."""
    folder = Path(urlsplit(found.redis_server.url).path).parent
    increments = sorted(folder.glob("appendonlydir/*.incr.aof"))
    return increments[-1] if increments else folder / "appendonly.aof"


def log_size(found: Fleet) -> int:
    return log_file(found).stat().st_size


def test_frames_that_redis_lost_are_appended_again(tmp_path: Path):
    with fleet(tmp_path) as found:
        client = ChatStream(found, "demo-n300-d20")
        until(lambda: len(client.text) > 100, "tokens flow")
        kept = log_size(found)
        seen = len(client.text)
        until(lambda: len(client.text) > seen + 200, "more of them")

        restart_with_less(found, kept)

        client.finished()
        assert client.text == answer(300)
        assert client.events[-1] == "[DONE]"
        assert found.workers[0].events("log_lost_frames")[0]["held"]


def test_frames_that_nobody_holds_any_more_end_in_the_error_event(tmp_path: Path):
    with fleet(tmp_path) as found:
        client = ChatStream(found, "demo-n2000-d20")
        until(lambda: len(client.text) > 100, "tokens flow")
        kept = log_size(found)
        pass_seconds(7)  # The worker holds what was acknowledged in the last 5 s.

        restart_with_less(found, kept)

        client.finished()
        assert client.error and client.error["code"] == "frames_lost"
        assert "[DONE]" not in client.events
        assert answer(2000).startswith(client.text)
        until(lambda: found.stats()["open"] == 0, "the upstream is closed")


def test_a_log_that_is_gone_altogether_ends_in_the_error_event(tmp_path: Path):
    with fleet(tmp_path) as found:
        client = ChatStream(found, "demo-n2000-d20")
        until(lambda: len(client.text) > 100, "tokens flow")

        restart_with_less(found, 0)

        client.finished()
        assert client.error and client.error["code"] in ("log_lost", "frames_lost")
        assert "[DONE]" not in client.events
        until(lambda: found.stats()["open"] == 0, "the upstream is closed")
        until(lambda: found.post(CHAT, body_of(CHAT, "demo-n1")).status_code == 200, "requests are answered")
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
