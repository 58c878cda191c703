"""What becomes of a request that comes to an overloaded API? On a socket, before an application that must not hear of it."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from api.metrics import ApiMetrics
from api.overload.answers import RefusalResponses, overloaded
from api.overload.gate import Gate
from api.overload.limit import OVER_S
from api.overload.shares import credential_of
from common.access.principal import Access, Principal
from common.canonical.errors import GatewayError
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.process.loop_lag import TICK_S
from common.queue.jobs import JobClass
from common.queue.load import QueueLoad, Reading
from tests.support.servers.echoing_api import serving

BODY = b'{"model": "x"}'
PATHS = {
    "/v1/chat/completions": "openai-chat",
    "/v1/messages": "anthropic-messages",
    "/v1/messages/count_tokens": "anthropic-messages",
    "/v1/responses": "openai-responses",
    "/v1/generations": "openai-chat",
    "/v1/chat": "unified",
    "/api/demo": "agentary",
}


class Shut(Gate):
    """A gate through which nothing comes, or with ``waiting`` nothing that must not wait."""

    def __init__(self, *, waiting: int = 0, clock: Callable[[], float] = time.monotonic, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        self.load = QueueLoad(None)  # type: ignore[arg-type]  # It is told, and asks nobody.
        chosen = Settings(**settings)
        super().__init__(chosen, self.load, ApiMetrics(self.registry), RefusalResponses(["retry-after"]), clock)
        if waiting:
            for second in (0, 1):
                self.load.record(Reading(second * 1000, second, waiting, 1, {"acme": waiting}, running=1, slots=1))
        else:
            self.starting = chosen.starting_max

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


def head(path: str = "/v1/chat/completions", *more: bytes, method: str = "POST", length: int = len(BODY)) -> bytes:
    lines = [f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}".encode(), *more, b"", b""]
    return b"\r\n".join(lines)


CLOSE = b"connection: close"
LAST = head("/livez", CLOSE, method="GET", length=0)


def statuses(received: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.mark.parametrize("path", PATHS)
async def test_a_refusal_has_the_shape_of_its_dialect(path: str):
    dialect, gate = DIALECTS[PATHS[path]], Shut()
    async with serving(gate=gate) as server:
        received = await server.exchange(head(path, CLOSE, b"x-request-id: mine") + BODY)
    lines, _, body = received.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n")[1:])
    seconds = int(headers[b"retry-after"])
    refused = overloaded(seconds)

    assert statuses(received) == [dialect.status(refused)]
    assert json.loads(body) == json.loads(dialect.error_body(refused, "mine"))
    assert len(body) == int(headers[b"content-length"])
    assert headers[b"x-request-id"] == headers[b"request-id"] == b"mine"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert gate.count("sluice_shed_total", reason="starting") == 1


@pytest.mark.parametrize("seconds", [1, 2, 86399])
def test_a_refusal_says_when_to_come_back(seconds: int):
    response = RefusalResponses().refusal(
        "/v1/chat/completions", [(b"x-request-id", b"mine")], seconds, origin=b"", is_last=True
    )

    assert response.endswith(DIALECTS["openai-chat"].error_body(overloaded(seconds), "mine"))


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/v1/models", "/v1/generations/gen_1"])
async def test_who_reads_is_never_refused(path: str):
    async with serving(gate=Shut()) as server:
        received = await server.exchange(head(path, CLOSE, method="GET", length=0))

    assert statuses(received) == [200]


@pytest.mark.parametrize("path", ["/admin/keys", "/v1/responses/resp_1/cancel", "/v1/unknown"])
async def test_what_starts_no_generation_is_never_refused(path: str):
    async with serving(gate=Shut()) as server:
        assert statuses(await server.exchange(head(path, CLOSE) + BODY)) == [200]


# The connection


async def test_a_connection_goes_on_behind_a_refusal_wherever_its_packets_are_cut():
    raw = head() + BODY + LAST
    for cut in (0, 20, len(head()) - 1, len(head()), len(head()) + 3, len(head()) + len(BODY)):
        async with serving(gate=Shut()) as server:
            received = await server.exchange(*(part for part in (raw[:cut], raw[cut:]) if part))

        assert statuses(received) == [503, 200], cut
        assert received.endswith(b"GET /livez |")


async def test_refusals_in_a_pipeline_come_in_turn_however_many_they_are():
    async with serving(gate=Shut()) as server:
        received = await server.exchange((head() + BODY) * 3_000 + LAST)

    assert statuses(received) == [503] * 3_000 + [200]


FRAMINGS = [b"content-length: 30000000", b"transfer-encoding: chunked", b"expect: 100-continue"]


@pytest.mark.parametrize("framing", FRAMINGS, ids=["large", "chunked", "not-sent-yet"])
async def test_a_body_that_is_large_or_not_sent_yet_is_not_waited_for(framing: bytes):
    more = (framing,) if not framing.startswith(b"expect") else (framing, b"content-length: 14")
    request = b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1\r\nhost: x", *more, b"", b""])
    async with serving(gate=Shut()) as server:
        received = await server.exchange(request)

    assert statuses(received) == [503]
    assert b"connection: close" in received


async def test_a_client_that_is_still_sending_reads_its_refusal():
    async with serving(gate=Shut()) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head(length=10_000_000))
        for _ in range(20):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.001)
        received = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    assert statuses(received) == [503]


async def test_a_client_that_sends_the_rest_of_what_was_refused_byte_by_byte_is_let_go():
    async with serving(gate=Shut(), keep_alive_s=60, request_read_timeout_s=0.2) as server, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head(length=90_000))
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == [503]
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()


async def test_an_idle_connection_is_let_go_behind_a_refusal_too():
    async with serving(gate=Shut(), keep_alive_s=0.1) as server, asyncio.timeout(30):
        assert statuses(await server.exchange(head(), BODY[:3], BODY[3:])) == [503]


# The line


async def test_an_interactive_request_is_refused_that_would_wait_for_too_long_and_no_other():
    gate = Shut(waiting=100, queue_wait_s=60)
    gate.remember_credential({"state": {"credential": credential("acme")}}, Principal("a", tenant="acme"))
    gate.remember_credential({"state": {"credential": credential("other")}}, Principal("o", tenant="other"))
    batch = Principal("b", tenant="acme", access=Access(highest_class="background"))
    gate.remember_credential({"state": {"credential": credential("batch")}}, batch)

    async def status(key: str, *more: bytes, path: str = "/v1/messages") -> int:
        async with serving(gate=gate) as server:
            return statuses(await server.exchange(head(path, CLOSE, b"x-api-key: " + key.encode(), *more) + BODY))[0]

    assert await status("acme") == 529
    assert await status("acme", b"x-sluice-class: background") == 200
    assert await status("acme", path="/v1/generations") == 200
    assert await status("batch") == 200
    assert await status("other") == 200  # It has nothing in line, and its turn comes soon.
    assert await status("acme", path="/v1/responses") == 200  # The body says whether it is background work:
    gate.check_wait(Principal("a", tenant="acme"), JobClass.BACKGROUND)
    with pytest.raises(GatewayError, match="more requests than it can serve"):
        gate.check_wait(Principal("a", tenant="acme"), JobClass.INTERACTIVE)
    assert gate.count("sluice_shed_total", reason="wait") == 2


def credential(key: str) -> bytes:
    return credential_of([(b"x-api-key", key.encode())])


async def test_beside_free_slots_a_long_line_refuses_nothing():
    gate = Shut(waiting=100)
    gate.load.record(Reading(2000, 2, 100, 1, {"": 100}, running=1, slots=100))
    async with serving(gate=gate) as server:
        assert statuses(await server.exchange(head("/v1/messages", CLOSE) + BODY)) == [200]


# What is told


async def test_a_page_may_read_the_refusal_if_it_may_read_answers():
    gate = Shut()
    gate.remember_origin(b"https://page.example")

    async def told(origin: bytes) -> bytes:
        async with serving(gate=gate) as server:
            return await server.exchange(head("/v1/chat", CLOSE, b"origin: " + origin) + BODY)

    assert b"access-control-allow-origin: https://page.example\r\n" in await told(b"https://page.example")
    assert b"access-control" not in await told(b"https://other.example")


async def test_one_line_tells_of_an_overload_and_one_of_its_end():
    now = [0.0]
    gate = Shut(clock=lambda: now[0])
    with structlog.testing.capture_logs() as lines:
        async with serving(gate=gate) as server:
            for _ in range(3):
                await server.exchange(head("/v1/chat", CLOSE) + BODY)
        assert gate.state()["is_overloaded"] is True
        now[0] = 60.0
        gate.tick(0)

    assert [line["event"] for line in lines] == ["overloaded", "overload_over"]
    assert lines[1]["refused"] == 3
    assert gate.state() == {"is_overloaded": False, "reasons": [], "admission_limit_per_s": None, "estimated_wait_s": 0.0}


async def test_clients_are_told_to_come_back_at_different_moments():
    seconds = set()
    async with serving(gate=Shut()) as server:
        for _ in range(60):
            received = await server.exchange(head("/v1/chat", CLOSE) + BODY)
            seconds |= set(re.findall(rb"retry-after: (\d+)\r\n", received))

    assert seconds == {b"1", b"2"}


@pytest.mark.parametrize(
    ("waiting", "is_overload"),
    [
        ([0] * 20, False),
        ([20 * n for n in range(1, 21)], True),  # More come than are made.
        ([480 - 24 * n for n in range(20)], False),  # All of them came at once, and are made one after the other.
        ([20, 40, 30, 50, 60, 40] * 4, False),  # Now more, now fewer.
    ],
)
def test_a_line_that_grows_is_an_overload_as_a_late_loop_is_and_a_burst_is_none(waiting: list[int], is_overload: bool):
    now = [0.0]
    gate = Gate(Settings(), QueueLoad(None), ApiMetrics(CollectorRegistry()), RefusalResponses(), lambda: now[0])  # type: ignore[arg-type]
    for count in waiting:
        gate.record_waiting(count)
        now[0] += TICK_S
        gate.tick(0)

    assert (gate.is_refusing, gate.limit.reason) == (is_overload, "loop" if is_overload else None)

    gate.record_waiting(0)
    now[0] += OVER_S
    gate.tick(0)
    assert not gate.is_refusing
