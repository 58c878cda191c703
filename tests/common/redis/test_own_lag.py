"""A busy process: every answer of Redis' lies in its socket for longer than we would wait for it, and none is missed.

Each wait for Redis that is bounded in time is tried with a loop that is held up, on a real Redis that is well.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import hiredis
import pytest
from structlog.testing import capture_logs

from common.access.key_records import KeyRecords
from common.channel.base import START
from common.channel.redis import RedisChannel, RedisFeed
from common.channel.redis_feed import FEED_SILENCE_MAX_S
from common.config.settings import Settings
from common.queue.jobs import JobClass, JobQueue
from common.redis.client import COMMAND_TIMEOUT_S, Client, connect
from common.redis.probe import try_all
from common.redis.pulse import Pulse
from common.responses import ResponseStore

Answer = TypeVar("Answer")
HELD_UP_S = COMMAND_TIMEOUT_S + 0.5
PING = hiredis.pack_command(("PING",))
ID = hiredis.pack_command(("CLIENT", "ID"))  # Of the connection that asks.


async def held_up_amid(wait: Awaitable[Answer], *, turns: int) -> Answer:
    """Return what comes of a wait amid which the loop is held up for longer than the wait's bound."""
    task = asyncio.ensure_future(wait)
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(HELD_UP_S)
    return await task


@pytest.fixture
async def client(redis: Client, redis_server) -> AsyncIterator[Client]:
    """One that has no connection yet."""
    found = connect(redis_server.url)
    yield found
    await found.aclose()


WAITS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "a command on the shared connection": lambda client: client.exchanges.run([PING]),
    "a script": lambda client: RedisChannel(client, 60).last_ids(["gen_1"]),
    "a log": lambda client: RedisChannel(client, 60).read("gen_1", START, 10),
    "a record": lambda client: RedisChannel(client, 60).record("gen_1"),
    "a managed key": lambda client: KeyRecords(client).load("key_1"),
    "a response": lambda client: ResponseStore(client, Settings()).load("resp_1", "me"),
    "the list of recent ones": lambda client: JobQueue(client, Pulse(client), Settings()).recent("me", "", 10),
    "the probe": try_all,
}


@pytest.mark.parametrize("turns", [1, 12], ids=["while it connects", "later"])
async def test_what_a_busy_process_waits_for_comes_late_and_does_not_fail(redis: Client, redis_server, turns: int):
    """All at once, each with a client that has no connection yet: a busy process is busy for all of them."""
    clients = {name: connect(redis_server.url) for name in WAITS}
    waits = [wait(clients[name]) for name, wait in WAITS.items()]

    answers = await held_up_amid(asyncio.gather(*waits, return_exceptions=True), turns=turns)

    by_name = dict(zip(WAITS, answers, strict=True))
    assert not {name: answer for name, answer in by_name.items() if isinstance(answer, BaseException)}
    assert by_name["the probe"] is not None, "the probe had no answer"
    for client in clients.values():
        await client.aclose()


async def test_the_breaker_stays_shut_and_no_connection_is_cut(client):
    pulse = Pulse(client)
    await pulse.start()
    await client.exchanges.run([PING])
    before = await client.exchanges.run([ID])

    with capture_logs() as logs:
        for _ in range(3):
            await held_up_amid(pulse.beat(), turns=2)
            assert pulse.is_up

    assert await client.exchanges.run([ID]) == before
    assert not logs
    await pulse.stop()


async def test_a_job_is_accepted_though_the_pulse_has_not_been_heard_for_long(client):
    pulse = Pulse(client)
    await pulse.start()
    queue = JobQueue(client, pulse, Settings())

    time.sleep(3.5)  # Longer than the scripts take for a command that has gone stale.

    await queue.enqueue("gen_1", "me", JobClass.INTERACTIVE)
    await pulse.stop()


async def subscribed(client: Client) -> list[str]:
    """The connections that listen, by their ids."""
    return [each["id"] for each in await client.client_list("pubsub")]


async def test_a_subscription_is_confirmed_and_the_feed_stays_connected(client):
    feed = RedisFeed(client)
    await feed.start()
    await feed.subscribe("gen_0", lambda _: None)
    before = await subscribed(client)

    with capture_logs() as logs:
        await held_up_amid(feed.subscribe("gen_1", lambda _: None), turns=2)
        time.sleep(FEED_SILENCE_MAX_S + 0.5)
        await asyncio.sleep(0.3)

    assert await subscribed(client) == before
    assert feed.is_connected
    assert not logs
    await feed.stop()


async def test_a_redis_that_is_away_is_found_away_by_a_busy_process_too(redis_server):
    """The clock stands still while the loop is held up, and goes on as soon as it is not."""
    accepted: list[asyncio.StreamWriter] = []
    deaf = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{deaf.sockets[0].getsockname()[1]}")

    with pytest.raises(TimeoutError):
        await held_up_amid(client.exchanges.run([PING]), turns=2)

    await client.aclose()
    deaf.close()
    for writer in accepted:
        writer.close()
    await asyncio.sleep(0)
