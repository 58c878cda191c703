"""Real processes: whatever a provider's connection, proxy or answer does, client and operator are told what it was."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cli.dev.embedded_redis import EmbeddedRedis
from tests.support.fleet import CHAT, MESSAGES, ROOT, Fleet, body_of
from tests.support.upstreams.raw_upstream import CLOSE, RawUpstream, Request, ok, raw_upstream
from tests.support.upstreams.wire_answers import STREAMS, WHOLES, AnswerSpec

SAYS = AnswerSpec(text="whole answer")
STREAM, WHOLE = STREAMS["openai-chat"](SAYS), WHOLES["openai-chat"](SAYS)
ANSWERS: dict[str, list[bytes]] = {
    "untyped-stream": [ok(STREAM, "text/plain")],
    "mistyped-stream": [ok(STREAM, "application/json")],
    "whole": [ok(WHOLE, "application/json")],
    "mistyped-whole": [ok(WHOLE, "text/event-stream")],
    "on-fire": [ok(b'{"error": {"message": "the engine is on fire", "code": "engine_fire"}}', "text/event-stream")],
    "limited": [ok(b'{"error": {"message": "slower", "code": 429}}', "application/json", "Retry-After: 0.01\r\n")],
    "page": [ok(b"<!DOCTYPE html><h1>Welcome</h1>", "text/html")],
    "redirect": [b"HTTP/1.1 308 R\r\nLocation: https://new.example/v1/chat?key=secret\r\nContent-Length: 0\r\n\r\n"],
    "header": [ok(STREAM, headers=f"X-Trace: {'z' * 70_000}\r\n")],
    "cut": [b"HTTP/1.1 200 OK\r\n", CLOSE],
}


async def answer(request: Request) -> list[bytes]:
    model = json.loads(request.body)["model"]
    if model == "two-keys" and b"first-key" in request.head:
        return [ok(b'{"error": {"message": "no such key", "code": 401}}', "application/json")]
    return ANSWERS.get(model, [ok(STREAM)])


@contextmanager
def in_thread(answer: Callable[[Request], object]) -> Iterator[RawUpstream]:
    """A raw upstream on a loop of its own."""
    loop, is_over, is_up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: list[RawUpstream] = []

    async def serve() -> None:
        async with raw_upstream(answer) as upstream:  # type: ignore[arg-type]
            found.append(upstream)
            is_up.set()
            await is_over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert is_up.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(is_over.set)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with in_thread(answer) as found:
        yield found


@pytest.fixture(scope="module")
def fleet(upstream, tmp_path_factory) -> Iterator[Fleet]:
    with EmbeddedRedis() as redis:
        settings = {
            "OPENAI_BASE_URL": f"{upstream.url}v1",
            "OPENAI_API_KEY": "first-key,second-key",
            "SLUICE_STATUS_HOLD_S": "30",
        }
        made = Fleet(tmp_path_factory.mktemp("fleet"), redis, settings).start()
        yield made
        made.stop()


@pytest.mark.parametrize("model", ["untyped-stream", "mistyped-stream", "whole", "mistyped-whole", "two-keys"])
@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_an_answer_is_taken_for_what_it_is(fleet, dialect, model, stream):
    reply = fleet.post(dialect, body_of(dialect, f"openai/{model}", stream=stream))

    assert reply.status_code == 200, reply.text
    assert "whole answer" in reply.text
    assert reply.headers["content-type"].startswith("text/event-stream" if stream else "application/json")


TOLD = {
    "on-fire": (502, "the engine is on fire", "answer"),
    "limited": (429, "slower", "answer"),
    "page": (502, "HTML page, not an answer; check the provider's base URL", "answer"),
    "redirect": (502, "redirects to https://new.example/v1/chat (status 308)", "redirect"),
    "header": (502, "headers that are too large", "headers"),
    "cut": (502, "closed the connection before it answered", "closed"),
}


@pytest.mark.parametrize(("model", "told"), TOLD.items(), ids=TOLD)
def test_each_failure_has_words_of_its_own_for_client_and_log(fleet, upstream, model, told):
    reply = fleet.post(CHAT, body_of(CHAT, f"openai/{model}", stream=True))

    status, words, cause = told
    assert (reply.status_code, words in reply.text) == (status, True), reply.text
    lines = [line for line in fleet.workers[0].events("try_failed") if line["model"] == model]
    assert {(line["provider"], line["cause"]) for line in lines} == {("openai", cause)}
    assert all(len(line["key"]) == 4 for line in lines)
    calls = [request for request in upstream.requests if json.loads(request.body)["model"] == model]
    assert len(lines) == len(calls)
    if model in ("redirect", "header"):  # Once for each key: what has come is not asked for again.
        assert len(calls) == 2
    assert "secret" not in json.dumps(lines) + reply.text


async def proxied(request: Request) -> list[bytes]:
    return [ok(STREAM)] if request.head.startswith(b"POST http://provider.invalid/") else [ok(b"{}", "application/json")]


def test_worker_and_doctor_go_through_the_same_proxy(tmp_path):
    with in_thread(proxied) as proxy, EmbeddedRedis() as redis:
        ways = {"http_proxy": f"http://me:secret-word@127.0.0.1:{proxy.port}", "no_proxy": "127.0.0.1"}
        fleet = Fleet(tmp_path, redis, {"OPENAI_BASE_URL": "http://provider.invalid/v1", **ways}).start()
        try:
            reply = fleet.post(CHAT, body_of(CHAT, "openai/m", stream=True))
            doctor = subprocess.run(
                [sys.executable, "-m", "cli.main", "doctor"],
                env={**os.environ, **fleet.env()},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=50,
            )
            logs = "".join(process.log.read_text() for process in [*fleet.apis, *fleet.workers])
        finally:
            fleet.stop()

    assert "whole answer" in reply.text
    assert f"Provider openai answers at http://provider.invalid/v1, through the proxy 127.0.0.1:{proxy.port}." in doctor.stdout
    assert {request.head.split(b" ")[0] for request in proxy.requests} >= {b"POST", b"GET"}
    assert all(b"proxy-authorization: basic" in request.head.lower() for request in proxy.requests)
    assert "secret-word" not in doctor.stdout + doctor.stderr + logs
