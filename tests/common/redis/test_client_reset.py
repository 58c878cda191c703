"""What does a connection that the network resets look like, on the loop that our processes run on?"""

import asyncio
import contextlib
import socket
import struct

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from common.redis.client import connect
from common.redis.pulse import Pulse

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds.


class Server:
    """Answers each TIME, until told to reset its connections."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n" if b"TIME" in data else b"+OK\r\n" * data.count(b"*"))
        writer.close()

    async def reset_all(self) -> None:
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            writer.transport.abort()
        self._writers.clear()
        for _ in range(5):  # Until the other end of the same loop has heard of it.
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.close()
        await asyncio.sleep(0.05)  # All that was closed is gone by then: uvloop would warn of it in its own end.


def test_a_reset_is_a_lost_connection_and_the_next_command_makes_another():
    async def run() -> None:
        server = Server()
        client = connect(f"redis://127.0.0.1:{await server.start()}/0").client()
        assert await client.time() == (1, 0)

        await server.reset_all()

        with pytest.raises(RedisConnectionError):
            await client.time()
        assert await client.time() == (1, 0)
        await client.aclose()
        await client.connection_pool.disconnect()
        await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_the_pulse_outlives_a_reset():
    async def run() -> None:
        server = Server()
        client = connect(f"redis://127.0.0.1:{await server.start()}/0")
        pulse = Pulse(client)
        await pulse.start()
        assert pulse.is_up

        await server.reset_all()
        await pulse.beat()

        assert pulse.is_up
        await pulse.stop()
        await client.aclose(close_connection_pool=True)
        await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
