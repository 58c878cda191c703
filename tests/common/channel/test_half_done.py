"""A script that Redis ends half-way, because it refuses one of its commands, is run again and loses nothing."""

from collections.abc import AsyncIterator

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, WriteStatus
from common.channel.redis import RedisChannel
from common.redis import keyspace
from common.redis.client import Client, connect

G = "gen_1"
CLAIM = Claim(G, 1, "token")
WRITES = ("xadd", "hset", "publish", "pexpire", "del", "set", "persist", "hincrby")
END = orjson.dumps({"error": None})
FRAMES = [
    Frame(FrameId(1, 1), FrameKind.HEAD, b"{}"),
    Frame(FrameId(1, 2), FrameKind.DATA, b"data: 1\n\n"),
    Frame(FrameId(1, 3), FrameKind.DATA, b"data: 2\n\n"),
    Frame(FrameId(1, 4), FrameKind.END, END),
]


@pytest.fixture
async def channel(redis: Client, redis_server) -> AsyncIterator[RedisChannel]:
    """Of a user who may be kept from a command."""
    await redis.execute_command("ACL", "SETUSER", "writer", "reset", "on", ">pw", "~*", "allchannels", "+@all")
    client = connect(redis_server.url.replace("unix://", "unix://writer:pw@"))
    yield RedisChannel(client, tombstone_s=60)
    await client.aclose()
    await redis.execute_command("ACL", "DELUSER", "writer")


async def opened(channel: RedisChannel, *, is_audited: bool = False) -> None:
    opening = Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b"request", b"{}", is_audited)
    await channel.open(G, opening, "replica")


async def refused_once(redis: Client, command: str, run) -> object:
    """Run a step without one of its commands, then with it; it may also do without."""
    await redis.execute_command("ACL", "SETUSER", "writer", f"-{command}")
    try:
        return await run()
    except StoreUnavailable:
        pass
    finally:
        await redis.execute_command("ACL", "SETUSER", "writer", f"+{command}")
    return await run()


@pytest.mark.parametrize("is_audited", [False, True])
@pytest.mark.parametrize("at", range(len(FRAMES)))
@pytest.mark.parametrize("command", WRITES)
async def test_frames_are_in_the_log_once_each_and_the_end_leaves_its_record(redis, channel, command, at, is_audited):
    await opened(channel, is_audited=is_audited)
    await channel.fence(CLAIM, is_handover=False)
    previous = FrameId(1, 0)
    for n, frame in enumerate(FRAMES):

        async def append(frame=frame, previous=previous):
            (answer,) = await channel.append([Append(CLAIM, previous, [frame])])
            return answer

        answer = await refused_once(redis, command, append) if n == at else await append()
        assert answer.status is WriteStatus.OK
        previous = frame.id

    assert await channel.read(G, FrameId(1, 0), 100) == FRAMES
    record = await channel.record(G)
    assert record and record.end == END
    assert await redis.exists(keyspace.tombstone(G))
    assert (await redis.pttl(keyspace.state(G)) < 0) == is_audited
    (state,) = await channel.describe([G], "me")
    assert state.has_ended and state.last == FRAMES[-1].id


@pytest.mark.parametrize("command", WRITES)
async def test_a_fence_is_there_once(redis, channel, command):
    await opened(channel)

    fenced = await refused_once(redis, command, lambda: channel.fence(CLAIM, is_handover=False))

    assert fenced.answer.status is WriteStatus.OK
    assert [frame.id for frame in await channel.read(G, START, 10)] == [FrameId(1, 0)]
    (answer,) = await channel.append([Append(CLAIM, FrameId(1, 0), FRAMES)])
    assert answer.status is WriteStatus.OK
    assert await channel.read(G, FrameId(1, 0), 10) == FRAMES


@pytest.mark.parametrize("command", WRITES)
async def test_an_end_that_no_worker_writes_is_there_once(redis, channel, command):
    await opened(channel)
    failed = Failed(ErrorKind.WORKER_LOST, "lost")

    status = await refused_once(redis, command, lambda: channel.end_unowned(G, "token", failed))

    assert status is WriteStatus.OK
    assert [frame.kind for frame in await channel.read(G, START, 10)] == [FrameKind.END]
    assert await channel.record(G)
    (state,) = await channel.describe([G], "me")
    assert state.has_ended and state.last == FrameId(1, 0)


async def test_what_stands_in_the_log_for_another_reason_is_not_taken_for_ours(redis, channel):
    await opened(channel)
    await channel.fence(CLAIM, is_handover=False)
    await redis.xadd(keyspace.log(G), {"k": "fence", "d": "1-0"}, "2-0")  # Of a claim whose fence was ended half-way.

    (answer,) = await channel.append([Append(CLAIM, FrameId(1, 0), FRAMES[1:2])])

    assert answer.status is not WriteStatus.OK
