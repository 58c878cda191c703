"""An upstream on bare sockets, which can do what no HTTP server does, such as forget a connection; and a caller for it."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.settings import Settings
from workers.providers.base import UpstreamRequest
from workers.publish.linger import Linger
from workers.upstream.http_client import Upstream

CLOSE, RESET = b"close", b"reset"


@dataclass
class Request:
    """``number`` counts the requests of a connection, ``connection`` the connections, both from 1."""

    head: bytes
    body: bytes
    connection: int
    number: int


# The bytes that answer a request, followed by CLOSE or RESET to end the connection.
Answer = Callable[[Request], Awaitable[list[bytes]]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RawUpstream:
    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def serving(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Yield the port of a server. At the end all its connections are closed."""
    open_connections: list[tuple[asyncio.StreamWriter, asyncio.Task[None] | None]] = []

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.append((writer, asyncio.current_task()))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)

    server = await asyncio.start_server(handled, "127.0.0.1", 0, ssl=tls, limit=1 << 24)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer, _ in open_connections:
            writer.transport.abort()
        await asyncio.gather(*(task for _, task in open_connections if task), return_exceptions=True)
        await asyncio.sleep(0)  # The transports close their sockets.


@asynccontextmanager
async def raw_upstream(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        connection, number = upstream.connections, 0
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
            number += 1
            upstream.requests.append(Request(head, body, connection, number))
            for piece in await answer(upstream.requests[-1]):
                if piece is RESET:
                    writer.transport.abort()
                elif piece is CLOSE:
                    writer.close()
                else:
                    writer.write(piece)
                    await writer.drain()

    async with serving(serve, tls) as upstream.port:
        yield upstream


def ok(body: bytes = b"ok", content_type: str = "text/event-stream", headers: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class UpstreamCaller:
    """A worker's HTTP client; ``replaced`` counts dead connections by provider."""

    def __init__(self, **settings: Any) -> None:
        self.replaced: Counter[str] = Counter()
        self.upstream = Upstream(Settings(**settings), Linger(0), lambda provider: self.replaced.update([provider]))

    async def post(self, url: str, body: bytes = b"{}", headers: dict[str, str] | None = None) -> bytes:
        async with self.upstream.open(UpstreamRequest(url, headers or {}, body), "p", is_stream=True) as answer:
            return await answer.read_body(10_000_000)

    async def post_many(self, url: str, count: int) -> list[bytes]:
        return list(await asyncio.gather(*(self.post(url) for _ in range(count))))


@asynccontextmanager
async def upstream_caller(**settings: Any) -> AsyncIterator[UpstreamCaller]:
    caller = UpstreamCaller(**settings)
    try:
        yield caller
    finally:
        await caller.upstream.close()


def tls_of(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
