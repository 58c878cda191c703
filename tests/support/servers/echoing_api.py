"""The API's own HTTP protocol on a socket in this process, with an application that echoes requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from api.metrics import ApiMetrics
from api.overload.gate import Gate
from api.server.http_errors import error_response, refusal_in
from api.server.middleware import Front
from api.server.request_bounds import bounded_protocol
from common.config.settings import Settings
from common.dialects import DIALECTS


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer ``METHOD PATH BODY|`` when the body has arrived; at ``/stream/N`` N times, in pieces and without a length."""
    body, more = b"", True
    while more:
        message = await receive()
        if refusal := refusal_in(scope):
            await error_response(DIALECTS["openai-chat"], refusal, "req_1")(scope, receive, send)
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    text = b"%s %s %s|" % (scope["method"].encode(), scope["path"].encode(), body)
    pieces = int(scope["path"].rpartition("/")[2]) if scope["path"].startswith("/stream/") else 0
    length = [] if pieces else [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    for _ in range(pieces):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": text, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if pieces else text})


@dataclass
class Server:
    registry: CollectorRegistry
    address: tuple[str, int]
    state: ServerState = field(repr=False)

    def refused(self, limit: str) -> float:
        return self.registry.get_sample_value("sluice_refusals_total", {"limit": limit}) or 0.0

    def shut_down(self) -> None:
        """Do what uvicorn does with open connections when it stops."""
        for connection in list(self.state.connections):
            connection.shutdown()

    async def exchange(self, *pieces: bytes) -> bytes:
        """Send the pieces one by one, and return everything that the server sends until it closes the connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(
                0.02
            )  # So that the server reads this piece alone. If it does not, the test checks less, but does not fail.
        received = await reader.read()
        writer.close()
        return received


@asynccontextmanager
async def serving(app: Any = echo, keep_alive_s: float = 5, gate: Gate | None = None, **settings: Any) -> AsyncIterator[Server]:
    chosen = Settings(**settings)
    registry = CollectorRegistry()
    observed = Front(app, ApiMetrics(registry), chosen.header_bytes_max, lambda: False)
    protocol = bounded_protocol(chosen)
    protocol.gate = gate
    config = uvicorn.Config(
        observed, timeout_keep_alive=keep_alive_s, http=protocol, log_config=None, ws="none", lifespan="off"
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"now")]  # uvicorn's own loop sets it.
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    yield Server(registry, server.sockets[0].getsockname()[:2], state)
    server.close()
    for connection in list(state.connections):
        connection.transport.close()
    await server.wait_closed()
