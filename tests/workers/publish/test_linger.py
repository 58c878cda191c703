"""Is every byte read that was held back, and in company?"""

import asyncio
import contextlib
import datetime
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.canonical.errors import GatewayError
from common.config.settings import Settings
from workers.providers.base import UpstreamRequest
from workers.publish.linger import HELD_BYTES_MAX, LINGER_STREAMS, Linger
from workers.upstream.http_client import Upstream, UpstreamAnswer

LONG_MS = 60_000.0  # No tick comes within a test.
EVENT = b"data: x\n\n"


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A tick counts on the order in which a loop does things; workers run on uvloop."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def tested(run: Callable[[Coroutine[Any, Any, None]], None], **arguments: Any) -> None:
        run(test(**arguments))

    signature = inspect.signature(test)
    run = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY)
    tested.__signature__ = signature.replace(parameters=[*signature.parameters.values(), run])  # type: ignore[attr-defined]
    tested.__name__, tested.pytestmark = test.__name__, [*tested.pytestmark, *getattr(test, "pytestmark", [])]  # type: ignore[attr-defined]
    return tested


class Server:
    """Says what it is told to, each piece as a chunk. ``connections`` are numbers, one per request."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[int] = []
        self._says: list[asyncio.Queue[bytes]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while await reader.readuntil(b"{}"):
                self.connections.append(self._writers.index(writer))
                self._says.append(says := asyncio.Queue())
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                while data := await says.get():
                    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
                writer.write(b"0\r\n\r\n")

    def say(self, data: bytes, to: int = -1) -> None:
        """Send some bytes in answer to the ``to``-th request; nothing ends it."""
        self._says[to].put_nowait(data)

    def break_off(self) -> None:
        """Close all connections in the middle of their answers."""
        for writer in self._writers:
            writer.close()


@pytest.fixture(params=["plain", "tls"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """What the server is known by, which the upstream's client is made to trust; None: there is no TLS."""
    if request.param == "plain":
        return None
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    unencrypted = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted)
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=str(path)))
    return path


@asynccontextmanager
async def served(
    linger_ms: float, streams: int = LINGER_STREAMS, certificate: Path | None = None
) -> AsyncIterator[tuple[Server, Upstream, Linger]]:
    server, linger = Server(), Linger(linger_ms)
    linger.streams = streams
    upstream = Upstream(Settings(), linger)
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    found = await asyncio.start_server(server.serve, "localhost", 0, ssl=context, family=socket.AF_INET)
    server.url = f"{'https' if certificate else 'http'}://localhost:{found.sockets[0].getsockname()[1]}/"
    try:
        async with asyncio.timeout(120):
            yield server, upstream, linger
    finally:
        await upstream.close()
        found.close()


def opened(server: Server, upstream: Upstream):
    return upstream.open(UpstreamRequest(server.url, {}, b"{}"), "demo", is_stream=True)


async def held(server: Server, answer: UpstreamAnswer, to: int = -1) -> asyncio.Task[bytes]:
    """Return the second read of an answer, which waits: the first is what a fast stream is known by."""
    reading = asyncio.create_task(answer.read(may_linger=True))
    await asyncio.sleep(0)
    server.say(EVENT, to)
    assert await reading == EVENT
    reading = asyncio.create_task(answer.read(may_linger=True))
    await asyncio.sleep(0)
    return reading


def is_done(reading: asyncio.Task[bytes]) -> bool:
    return reading.done()


async def is_read(reading: asyncio.Task[bytes]) -> bool:
    """Whether a read is over, for which there was plenty of time."""
    await asyncio.wait([reading], timeout=0.1)
    return reading.done()


@on_each_loop
async def test_what_a_fast_stream_says_is_held_back_until_the_tick(certificate: Path | None):
    async with served(1_000, certificate=certificate) as (server, upstream, linger), opened(server, upstream) as answer:
        ticked = asyncio.Event()
        linger.on_tick = ticked.set
        linger.wait()  # The first comes at once.
        ticked.clear()
        reading = await held(server, answer)
        server.say(EVENT)
        assert not await is_read(reading)
        server.say(EVENT)

        await ticked.wait()

        assert reading.done()
        assert await reading == EVENT * 2


@on_each_loop
async def test_streams_are_read_at_one_tick_however_many_they_are():
    async with served(1_000) as (server, upstream, linger), AsyncExitStack() as stack:
        readings: list[asyncio.Task[bytes]] = []
        counts: list[int] = []
        # What waits for a tick, the publisher, is woken by it: it runs a turn later.
        linger.on_tick = lambda: asyncio.get_running_loop().call_soon(lambda: counts.append(sum(map(is_done, readings))))
        linger.wait()
        answers = [await stack.enter_async_context(opened(server, upstream)) for _ in range(20)]
        for at, answer in enumerate(answers):
            readings.append(await held(server, answer, at))
        for at in range(20):
            server.say(EVENT, at)
        await asyncio.wait(readings)
        await asyncio.sleep(0.05)

        assert counts == [0, 20]


@pytest.mark.parametrize(
    ("streams", "gap_s", "is_worth_it"),
    [
        (50, 0.02, True),
        (50, 0.05, True),
        (50, 0.09, False),
        (500, 0.09, False),
        (25, 0.03, True),
        (25, 0.05, False),
        (1, 0.02, False),
    ],
)
def test_what_is_slower_than_the_ticks_is_read_as_it_comes(streams: int, gap_s: float, is_worth_it: bool):
    linger = Linger(40)
    linger.streams = streams

    assert linger.is_worth_holding(gap_s) is is_worth_it


@on_each_loop
async def test_nothing_is_held_back_where_the_linger_is_off():
    async with served(0) as (server, upstream, _), opened(server, upstream) as answer:
        reading = await held(server, answer)
        server.say(EVENT)

        assert await is_read(reading)


@on_each_loop
async def test_a_hurried_read_is_not_held_back():
    async with served(LONG_MS) as (server, upstream, _), opened(server, upstream) as answer:
        for _ in range(3):
            reading = asyncio.create_task(answer.read())
            await asyncio.sleep(0)
            server.say(EVENT)

            assert await reading == EVENT


@on_each_loop
async def test_much_is_read_without_a_tick(certificate: Path | None):
    async with served(LONG_MS, certificate=certificate) as (server, upstream, _), opened(server, upstream) as answer:
        reading = await held(server, answer)
        server.say(b"x" * 2 * HELD_BYTES_MAX)

        assert await is_read(reading)


@on_each_loop
async def test_a_connection_that_breaks_is_noticed_without_a_tick(certificate: Path | None):
    async with served(LONG_MS, certificate=certificate) as (server, upstream, _), opened(server, upstream) as answer:
        reading = await held(server, answer)
        server.break_off()

        assert await is_read(reading)
        with pytest.raises(GatewayError):
            reading.result()


@on_each_loop
@pytest.mark.parametrize("how", ["ended", "left"])
async def test_a_connection_is_left_as_it_was_found(how: str, certificate: Path | None):
    async with served(LONG_MS, certificate=certificate) as (server, upstream, _):
        async with opened(server, upstream) as answer:
            reading = await held(server, answer)
            if how == "ended":
                server.say(b"x" * HELD_BYTES_MAX)
                server.say(b"")
                while await reading:
                    reading = asyncio.create_task(answer.read(may_linger=True))
            else:
                reading.cancel()
        async with opened(server, upstream) as answer:  # Its head is a few bytes.
            server.say(EVENT)
            assert await answer.read() == EVENT

        assert len(set(server.connections)) == (1 if how == "ended" else 2)


@on_each_loop
async def test_every_byte_of_many_streams_is_read():
    async def whole(answer: UpstreamAnswer) -> bytes:
        got = b""
        while data := await answer.read(may_linger=True):
            got += data
        return got

    async with served(5) as (server, upstream, _), AsyncExitStack() as stack:
        answers = [await stack.enter_async_context(opened(server, upstream)) for _ in range(20)]
        readings = [asyncio.create_task(whole(answer)) for answer in answers]
        said = [b""] * 20
        for step in range(300):
            to, data = step * 7 % 20, b"%d " % step * (1 + step % 40)
            server.say(data, to)
            said[to] += data
            if step % 3 == 0:
                await asyncio.sleep(0.001)
        for to in range(20):
            server.say(b"", to)

        assert await asyncio.gather(*readings) == said


@on_each_loop
async def test_a_system_that_cannot_hold_back_reads_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    real: Callable[..., None] = socket.socket.setsockopt

    def setsockopt(self: socket.socket, level: int, name: int, value: int) -> None:
        if name == socket.SO_RCVLOWAT:
            raise OSError("not here")
        real(self, level, name, value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    async with served(LONG_MS) as (server, upstream, _), opened(server, upstream) as answer:
        reading = await held(server, answer)
        server.say(EVENT)

        assert await is_read(reading)
