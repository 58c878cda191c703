"""How is a provider connected to when connections, names and proxies are not as they should be?"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.process.event_loop import Loop
from tests.support.upstreams.raw_upstream import CLOSE, RESET, Request, ok, raw_upstream, serving, tls_of, upstream_caller
from workers.upstream.errors import UpstreamFailure


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """Set at the end of a test: until then a name server does not answer."""
    event = threading.Event()
    yield event
    event.set()


# Connections that died while they were idle

DEATHS = {"reset": [RESET], "closed": [CLOSE]}


def forgetting(death: list[bytes], barrier: asyncio.Barrier | None = None) -> Callable[[Request], Any]:
    """Each connection is good for one request, as behind what forgets idle connections."""

    async def answer(request: Request) -> list[bytes]:
        if barrier and request.number == 1 and request.connection <= barrier.parties:
            await barrier.wait()  # So many connections are open at once, and idle afterwards.
        return [ok()] if request.number == 1 else death

    return answer


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("pooled", [1, 2, 6])
async def test_a_pool_of_dead_connections_costs_one_round_trip(death, pooled):
    async with raw_upstream(forgetting(death, asyncio.Barrier(pooled))) as found, upstream_caller() as worker:
        await worker.post_many(found.url, pooled)

        assert await worker.post(found.url) == b"ok"

        assert [request.number for request in found.requests[pooled:]] == [2, 1]  # One that was dead, and a new one.
        assert worker.replaced == {"p": 1}


async def test_many_at_once_are_each_sent_again_once():
    async with raw_upstream(forgetting([RESET], asyncio.Barrier(12))) as found, upstream_caller() as worker:
        await worker.post_many(found.url, 12)

        assert await worker.post_many(found.url, 12) == [b"ok"] * 12

        assert worker.replaced == {"p": 12}
        assert len(found.requests) == 36


async def test_a_connection_that_was_used_since_stays():
    dead: set[int] = set()

    async def answer(request: Request) -> list[bytes]:
        if request.connection in dead:
            return [RESET]
        await barrier.wait()
        return [ok()]

    barrier = asyncio.Barrier(2)
    async with raw_upstream(answer) as found, upstream_caller() as worker:
        await worker.post_many(found.url, 2)
        dead.add(found.requests[0].connection)
        barrier = asyncio.Barrier(1)
        await worker.post_many(found.url, 2)

        assert (await worker.post(found.url), worker.replaced) == (b"ok", {"p": 1})
        assert found.connections == 3


async def test_a_dead_connection_may_die_while_a_large_body_is_written():
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        bodies.append(await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0])))
        writer.write(ok())
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()  # The rest of this request is never read.

    async with serving(serve) as port, upstream_caller() as worker:
        url = f"http://127.0.0.1:{port}/"
        await worker.post(url)

        assert await worker.post(url, b"x" * 1_000_000) == b"ok"

        assert [len(body) for body in bodies] == [2, 1_000_000]
        assert worker.replaced == {"p": 1}


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
async def test_a_machine_that_acknowledges_nothing_is_given_up_on(monkeypatch):
    monkeypatch.setattr("workers.upstream.connecting.UNACKNOWLEDGED_S_MAX", 1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # What is sent stays unacknowledged once buffers are full.
        await is_over.wait()

    is_over = asyncio.Event()
    async with serving(serve) as port, upstream_caller() as worker:
        async with asyncio.timeout(60):
            with pytest.raises(UpstreamFailure):
                await worker.post(f"http://127.0.0.1:{port}/", b"x" * 1_000_000)
        is_over.set()


async def test_an_old_connection_is_not_used_again(monkeypatch):
    """Else steady traffic would follow a name's old address for ever."""
    async with raw_upstream(forgetting([ok()])) as found, upstream_caller() as worker:
        await worker.post(found.url)
        await worker.post(found.url)
        assert found.connections == 1

        monkeypatch.setattr("workers.upstream.connecting.CONNECTION_AGE_S_MAX", 0)
        await worker.post(found.url)
        await worker.post(found.url)
        assert found.connections == 2


async def test_a_name_is_resolved_anew_where_its_address_takes_no_connection_in_time(monkeypatch):
    lookups: list[str] = []

    def resolved(host: str, port: int, *_: object, **__: object) -> list[Any]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with upstream_caller(connect_timeout_s=0.2) as worker:
        monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", never)
        for _ in range(2):
            with pytest.raises(UpstreamFailure, match="did not accept a connection"):
                await worker.post("http://moved.example:81/")

    assert lookups == ["moved.example"] * 2


async def test_over_tls_it_is_the_same(certificate):
    trusting = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with raw_upstream(forgetting([CLOSE]), tls_of(certificate)) as found, upstream_caller() as worker:
        worker.upstream._connections._connector._ssl = trusting
        url = f"https://localhost:{found.port}/"
        await worker.post(url)

        assert (await worker.post(url), worker.replaced) == (b"ok", {"p": 1})


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
async def test_a_new_connection_that_dies_is_the_providers_failure(death):
    async def answer(request: Request) -> list[bytes]:
        return death

    async with raw_upstream(answer) as found, upstream_caller() as worker:
        with pytest.raises(UpstreamFailure, match="closed the connection before it answered"):
            await worker.post(found.url)

        assert (len(found.requests), worker.replaced) == (1, {})


async def test_a_replacement_that_dies_is_the_providers_failure():
    async def answer(request: Request) -> list[bytes]:
        return [ok()] if request.connection == request.number == 1 else [RESET]

    async with raw_upstream(answer) as found, upstream_caller() as worker:
        await worker.post(found.url)

        with pytest.raises(UpstreamFailure, match="closed the connection before it answered"):
            await worker.post(found.url)

        assert len(found.requests) == 3


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
async def test_nothing_is_sent_again_once_a_byte_of_an_answer_has_come(begun, death):
    async def answer(request: Request) -> list[bytes]:
        return [ok()] if request.number == 1 else [begun, *death]

    async with raw_upstream(answer) as found, upstream_caller() as worker:
        await worker.post(found.url)

        with pytest.raises(UpstreamFailure, match="closed the connection"):
            await worker.post(found.url)

        assert (len(found.requests), worker.replaced) == (2, {})


# Names

LOOKUP = socket.getaddrinfo


def answering_names(addresses: list[str]) -> Callable[..., Any]:
    def getaddrinfo(host: str, port: int, *hints: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return getaddrinfo


def on_our_loop(work: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(work())


def test_a_name_server_that_does_not_answer_costs_the_connect_timeout_and_says_so(monkeypatch, is_over):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: is_over.wait(20) and [])

    async def work() -> UpstreamFailure:
        async with upstream_caller(connect_timeout_s=0.05) as worker:
            with pytest.raises(UpstreamFailure) as raised:
                await worker.post("http://dead.example/")
        return raised.value

    failure = on_our_loop(work)

    assert failure.failed.message == "The provider p could not be reached: its name was not resolved within 0.05 s."
    assert failure.cause == "name_timeout"


def test_dead_names_hold_up_no_other_provider_and_no_other_thread(monkeypatch, is_over):
    def getaddrinfo(host: str, *query: Any) -> Any:
        return is_over.wait(20) and [] if host.startswith("dead") else LOOKUP("127.0.0.1", *query)

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)

    async def work() -> tuple[bytes, str]:
        async def answer(request: Request) -> list[bytes]:
            return [ok()]

        async with raw_upstream(answer) as found, upstream_caller(connect_timeout_s=5) as worker:
            dead = [asyncio.create_task(worker.post(f"http://dead{n}.example/")) for n in range(40)]
            await asyncio.sleep(0)
            reached = await worker.post(f"http://live.example:{found.port}/")
            computed = await asyncio.to_thread(lambda: "computed")
            for task in dead:
                task.cancel()
            await asyncio.gather(*dead, return_exceptions=True)
            return reached, computed

    assert on_our_loop(work) == (b"ok", "computed")


def test_the_next_address_is_tried_long_before_the_timeout(monkeypatch):
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.2", port))  # Its backlog is full: who connects now hears nothing.

        async def work() -> bytes:
            server = await asyncio.start_server(answer_once, "127.0.0.1", port)
            async with server, upstream_caller(connect_timeout_s=20) as worker:
                return await worker.post(f"http://two.example:{port}/")

        monkeypatch.setattr("socket.getaddrinfo", answering_names(["127.0.0.2", "127.0.0.1"]))
        assert on_our_loop(work) == b"ok"
        for each in waiting:
            each.close()


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ok())
    writer.close()


# Proxies


async def forward(request: Request) -> list[bytes]:
    return [ok(b"by proxy")]


async def test_a_proxy_of_the_environment_is_used_and_its_password_is_for_it_alone(monkeypatch):
    async with raw_upstream(forward) as proxy, upstream_caller() as worker:
        monkeypatch.setenv("http_proxy", f"http://user:pass%21@127.0.0.1:{proxy.port}")

        assert await worker.post("http://provider.invalid/v1/x", headers={"authorization": "Bearer k"}) == b"by proxy"

        head = proxy.requests[0].head.lower()
        assert head.startswith(b"post http://provider.invalid/v1/x http/1.1")
        assert head.count(b"proxy-authorization: basic dxnlcjpwyxnziq==") == 1  # user:pass!
        assert head.count(b"authorization: bearer k") == 1


async def test_through_a_tunnel_the_provider_sees_nothing_of_the_proxys_password(monkeypatch, certificate):
    seen: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", found.port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer), return_exceptions=True)

    async with raw_upstream(forward, tls_of(certificate)) as found, serving(tunnel) as port, upstream_caller() as worker:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
        worker.upstream._connections._connector._ssl = ssl.create_default_context(cafile=certificate / "cert.pem")

        assert await worker.post(f"https://localhost:{found.port}/") == b"by proxy"

        assert seen[0].startswith(b"CONNECT localhost:")
        assert b"proxy-authorization" in seen[0].lower()
        assert b"proxy" not in found.requests[0].head.lower()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@pytest.mark.parametrize("settings", [{"proxy_from_env": False}, {}], ids=["switched off", "NO_PROXY"])
async def test_what_is_reached_directly_goes_past_the_proxy(monkeypatch, settings):
    async with raw_upstream(forward) as found, upstream_caller(**settings) as worker:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        if not settings:
            monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, 127.0.0.0/8")

        assert await worker.post(found.url) == b"by proxy"


PROXY_FAILURES = {
    "wants a password": (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "status 407"),
    "cannot reach it": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "status 502"),
}


@pytest.mark.parametrize(("answer", "words"), PROXY_FAILURES.values(), ids=PROXY_FAILURES)
async def test_a_proxy_that_refuses_is_told_as_the_proxys(monkeypatch, answer, words):
    async def refuse(request: Request) -> list[bytes]:
        return [answer]

    async with raw_upstream(refuse) as proxy, upstream_caller() as worker:
        monkeypatch.setenv("https_proxy", f"http://user:secret-word@127.0.0.1:{proxy.port}")

        with pytest.raises(UpstreamFailure, match=words) as raised:
            await worker.post("https://provider.invalid/")

    failure = raised.value
    assert (failure.cause, "proxy" in failure.failed.message) == ("proxy", True)
    assert f"127.0.0.1:{proxy.port}" in failure.detail
    assert f"{proxy.port}" not in failure.failed.message  # Clients are shown no address.
    assert "secret-word" not in failure.detail + failure.failed.message


async def test_a_password_that_a_plain_proxy_wants_is_not_the_providers_refusal(monkeypatch):
    async def refuse(request: Request) -> list[bytes]:
        return [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"]

    async with raw_upstream(refuse) as proxy, upstream_caller() as worker:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")

        with pytest.raises(UpstreamFailure, match="proxy refused with status 407"):
            await worker.post("http://provider.invalid/")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there_is_told_as_the_proxys(monkeypatch, scheme):
    async with upstream_caller() as worker:
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")

        with pytest.raises(UpstreamFailure, match="The gateway's proxy, which leads to the provider p, could not be reached"):
            await worker.post(f"{scheme}://provider.invalid/")


async def test_a_proxy_of_a_kind_that_cannot_be_used_is_never_passed_by(monkeypatch):
    async with raw_upstream(forward) as found, upstream_caller() as worker:
        monkeypatch.setenv("ALL_PROXY", "socks5://user:secret-word@127.0.0.1:9")

        with pytest.raises(UpstreamFailure, match="proxy settings cannot be used") as raised:
            await worker.post(found.url)

        assert found.requests == []
        assert "ALL_PROXY" in raised.value.detail and "socks5" in raised.value.detail
        assert "secret-word" not in raised.value.detail
