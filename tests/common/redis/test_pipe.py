"""The shared connection against a server of the test's own: what it says, when it is silent, when it goes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from common.redis.client import Client, connect
from common.redis.pipe import Exchanges, Pipe

PING = hiredis.pack_command(("PING",))

Answer = Callable[[list[bytes]], bytes | None]


class Server:
    """Answers each command with what ``answer`` says; None: never. ``opened`` counts connections."""

    def __init__(self) -> None:
        self.answer: Answer = lambda command: b"+%s\r\n" % command[0]
        self.opened = 0
        self.greeting: bytes | None = b"+OK\r\n"  # To the commands with which redis-py introduces itself.
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.writers.append(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    said = self.greeting if command[0] == b"CLIENT" else self.answer(command)
                    if said is not None:
                        writer.write(said)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Server, Client]]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield server, client
    finally:
        await client.aclose()
        listening.close()
        server.cut()
        await asyncio.sleep(0.01)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Server, Client]]:
    async with running() as found:
        yield found


async def failing(waits: list[Awaitable[Any]]) -> list[type]:
    async with asyncio.timeout(120):
        return [type(found) for found in await asyncio.gather(*waits, return_exceptions=True)]


async def test_answers_go_to_who_asked_over_one_connection(pair):
    server, client = pair
    server.answer = lambda command: b"$%d\r\n%s\r\n" % (len(command[1]), command[1])

    asked = [[b"%d.%d" % (n, k) for k in range(n % 3 + 1)] for n in range(50)]
    answers = await asyncio.gather(
        *(client.exchanges.run([hiredis.pack_command(("ECHO", word)) for word in words]) for words in asked)
    )

    assert answers == asked
    assert server.opened == 1


async def test_an_error_is_an_answer_in_its_place(pair):
    server, client = pair
    errors = {b"A": b"-NOSCRIPT no\r\n", b"B": b"+fine\r\n", b"C": b"-ERR odd\r\n"}
    server.answer = lambda command: errors[command[0]]

    first, second, third = await client.exchanges.run([hiredis.pack_command((name,)) for name in "ABC"])

    assert (type(first), second, type(third)) == (NoScriptError, b"fine", ResponseError)


@pytest.mark.parametrize(
    "said",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-ERR Error running script (call to f_1): @user_script:7: -READONLY You can't write against a read only replica.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
    ],
)
async def test_a_server_that_is_no_master_is_left(pair, said):
    server, client = pair
    server.answer = lambda _: said

    (refused,) = await client.exchanges.run([PING])
    assert isinstance(refused, ResponseError)
    await asyncio.sleep(0.01)
    server.answer = lambda _: b"+PONG\r\n"

    assert await client.exchanges.run([PING]) == [b"PONG"]
    assert server.opened == 2


async def test_a_lost_connection_fails_all_who_wait_and_the_next_command_makes_another(pair):
    server, client = pair
    server.answer = lambda _: None
    waits = [asyncio.create_task(client.exchanges.run([PING])) for _ in range(5)]
    while not server.writers:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)

    server.cut()

    assert await failing(waits) == [RedisConnectionError] * 5
    server.answer = lambda _: b"+PONG\r\n"
    assert await client.exchanges.run([PING]) == [b"PONG"]


async def test_a_silent_server_is_given_up_on(pair):
    server, client = pair
    exchanges = Exchanges(client.open_pipe, timeout_s=0.1)
    server.answer = lambda _: None

    assert await failing([exchanges.run([PING]) for _ in range(5)]) == [RedisConnectionError] * 5
    server.answer = lambda _: b"+PONG\r\n"
    assert await exchanges.run([PING]) == [b"PONG"]
    await exchanges.close()


async def test_a_connection_that_cannot_be_made_is_one_attempt_for_all_who_wait(pair):
    server, client = pair
    exchanges = Exchanges(client.open_pipe, timeout_s=0.2)
    server.greeting = None

    # One after the other, a hundred would wait for 20 s.
    assert await failing([exchanges.run([PING]) for _ in range(100)]) == [TimeoutError] * 100
    assert server.opened == 1
    await exchanges.close()


async def test_who_gives_up_on_an_answer_does_not_shift_those_of_others(pair):
    server, client = pair
    server.answer = lambda command: b"+%s\r\n" % command[1] if command[1] != b"slow" else b""
    await client.exchanges.run([hiredis.pack_command(("SAY", "first"))])
    slow = asyncio.create_task(client.exchanges.run([hiredis.pack_command(("SAY", "slow"))]))
    await asyncio.sleep(0.01)
    later = asyncio.create_task(client.exchanges.run([hiredis.pack_command(("SAY", "later"))]))

    slow.cancel()
    await asyncio.sleep(0.01)
    assert not later.done()  # The server answers in order: what it owes the first has not come.
    server.writers[0].transport.abort()

    assert await failing([slow, later]) == [asyncio.CancelledError, RedisConnectionError]


async def test_a_connection_that_is_lost_while_it_is_made_hangs_nobody(pair):
    _, client = pair

    async def opens_and_loses(on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> Pipe:
        pipe = await client.open_pipe(on_answer, on_lost)
        pipe.close()  # Its loss is told in the next turn of the loop, before whoever waits goes on.
        return pipe

    exchanges = Exchanges(opens_and_loses, timeout_s=5)

    assert await failing([exchanges.run([PING])]) == [RedisConnectionError]


@pytest.mark.parametrize("turns", range(12))
async def test_giving_up_at_any_moment_of_connecting_leaves_no_connection(turns):
    async with running() as (server, client):
        opening = asyncio.create_task(client.open_pipe(lambda _: None, lambda: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        (found,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(found, Pipe):
            found.close()

        async with asyncio.timeout(120):
            while not all(writer.transport.is_closing() for writer in server.writers):
                await asyncio.sleep(0.01)


async def test_leaving_cuts_every_connection_and_all_go_on_with_others(pair):
    server, client = pair
    await client.exchanges.run([PING])
    await client.get("x")
    lost = asyncio.get_running_loop().create_future()
    await client.open_pipe(lambda _: None, lambda: lost.set_result(None))
    assert server.opened == 3

    await client.leave()

    async with asyncio.timeout(120):
        await lost
    assert await client.exchanges.run([PING]) == [b"PING"]
    assert await client.get("x") == b"GET"
    assert server.opened == 5
