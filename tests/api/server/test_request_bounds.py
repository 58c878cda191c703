"""Are connections let go that only wait? Those that send slowly meet real processes in tests/security."""

import asyncio
import gc
import re
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.main import KEEP_ALIVE_S
from tests.support.servers.echoing_api import Server, serving

GET = b"GET /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that lets an idle connection go after a fifth of a second, and a slow request sooner."""
    async with serving(keep_alive_s=0.2, request_read_timeout_s=0.1) as found:
        yield found


async def test_a_connection_that_never_says_anything_is_closed_without_a_word(server: Server):
    assert await server.exchange() == b""
    assert server.refused("read_timeout") == 0


async def test_a_connection_that_never_says_anything_is_closed_sooner_than_one_that_was_answered(monkeypatch):
    monkeypatch.setattr("api.server.request_bounds.SILENCE_S_MAX", 0.1)
    async with serving(keep_alive_s=60) as found:
        async with asyncio.timeout(30):
            assert await found.exchange() == b""


def test_an_idle_connection_outlasts_the_pools_of_clients_and_of_what_stands_in_front():
    nginx = Path(__file__).parents[3] / "deploy" / "nginx"
    found = [
        re.findall(r"keepalive_timeout (\d+)s;", (nginx / name).read_text()) for name in ("nginx.conf", "api-servers.conf")
    ]
    (to_clients,), (to_api,) = (map(int, seconds) for seconds in found)  # The second is proposed for a fixed list of servers.

    assert to_api < KEEP_ALIVE_S
    assert min(to_clients, KEEP_ALIVE_S) > 600  # The longest known: Google's load balancer.


async def test_a_connection_that_was_answered_and_says_no_more_is_closed_without_a_word(server: Server):
    assert (await server.exchange(GET)).endswith(b"\r\n\r\nGET /v1/messages |")
    assert server.refused("read_timeout") == 0


async def test_a_line_end_does_not_keep_a_connection_that_was_answered(server: Server):
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(GET)
    await reader.readuntil(b"|")

    writer.write(b"\r\n")

    received = await reader.read()
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in received  # Of a path that is not known, which is not that of the request before.
    assert server.refused("read_timeout") == 1
    writer.close()


@pytest.mark.parametrize("end", ["reset", "closed"])
async def test_of_a_connection_that_ended_nothing_is_kept_however_it_ended(end: str):
    async with serving(keep_alive_s=3600) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(GET)
        await reader.readuntil(b"|")
        kept = weakref.ref(next(iter(server.state.connections)))

        if end == "reset":
            no_linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        writer.close()

        async with asyncio.timeout(10):
            while server.state.connections:
                await asyncio.sleep(0.01)
        gc.collect()
        assert kept() is None
