"""Are connections let go that only wait? Those that send slowly meet real processes in test_trickling_requests.py."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.slow_requests import bounded_protocol
from common.errors import Failed
from common.settings import Settings

KEEP_ALIVE_S = 0.2
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def _app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def refused() -> list[Failed]:
    return []


@pytest.fixture
async def connection(refused: list[Failed]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that lets an idle one go after a fifth of a second, and a slow request sooner."""
    protocol = bounded_protocol(Settings(request_read_timeout_s=0.1), refused.append)
    config = uvicorn.Config(_app, timeout_keep_alive=KEEP_ALIVE_S, log_config=None, ws="none", lifespan="off")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield reader, writer
    writer.close()
    server.close()
    await server.wait_closed()


async def test_a_connection_that_never_says_anything_is_closed_without_a_word(connection, refused):
    reader, _ = connection

    assert await reader.read() == b""
    assert refused == []


async def test_a_connection_that_was_answered_and_says_no_more_is_closed_without_a_word(connection, refused):
    reader, writer = connection
    writer.write(GET)

    assert (await reader.read()).endswith(b"\r\n\r\nok")
    assert refused == []


async def test_a_line_end_does_not_keep_a_connection_that_was_answered(connection, refused):
    reader, writer = connection
    writer.write(GET)
    await reader.readuntil(b"ok")

    writer.write(b"\r\n")

    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    assert [failed.code for failed in refused] == ["request_timeout"]
