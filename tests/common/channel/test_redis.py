"""What the Redis channel does beside its scripts: large requests, and batches with one generation that is none of ours."""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, State, Stop, WriteResult, WriteStatus
from common.channel.redis import RedisChannel

OPENING = Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b"head ", body=b"body of it")
IDS = ["gen_0", "gen_1", "gen_2"]


@pytest.fixture
def channel(redis: Redis) -> RedisChannel:
    return RedisChannel(redis, tombstone_s=60)


def claims() -> list[Claim]:
    return [Claim(generation_id, 1, "t") for generation_id in IDS]


async def begin(channel: RedisChannel) -> None:
    for claim in claims():
        await channel.open(claim.generation_id, OPENING, "r1")
        await channel.fence(claim, is_handover=False)


async def spoil(redis: Redis, key: str = "{gen_1}:state") -> None:
    await redis.delete(key)
    await redis.set(key, "none of ours")


@pytest.mark.parametrize(("bytes_max", "is_large"), [(15, False), (14, True)])
async def test_a_large_request_is_stored_without_a_script(channel, redis, monkeypatch, bytes_max, is_large):
    monkeypatch.setattr("common.channel.redis.LARGE_BYTES", bytes_max)

    await channel.open("gen_0", OPENING, "r1")

    assert await redis.get("{gen_0}:request") == b"head body of it"
    assert 500_000 < await redis.pttl("{gen_0}:request") <= 600_000
    assert await redis.hget("{gen_0}:state", "large") == (b"15" if is_large else None)
    assert (await channel.fence(Claim("gen_0", 1, "t"), is_handover=False)).request == b"head body of it"


async def test_a_generation_that_is_none_of_ours_spoils_no_batch(channel, redis):
    await begin(channel)
    await spoil(redis)
    data = [Frame(FrameId(1, 1), FrameKind.DATA, b"data: x\n\n")]

    appended = await channel.append([Append(claim, FrameId(1, 0), data) for claim in claims()])
    beaten = await channel.heartbeat(claims())
    states = await channel.describe(IDS, "me")

    good, bad = WriteResult(WriteStatus.OK, FrameId(1, 1), Stop.NO, 0), WriteResult(WriteStatus.GONE, START, Stop.NO, 0)
    assert appended == beaten == [good, bad, good]
    assert await channel.last_ids(IDS) == [FrameId(1, 1), None, FrameId(1, 1)]
    assert [isinstance(state, State) for state in states] == [True, False, True]
    assert isinstance(states[1], GatewayError)
    assert states[1].failed.kind is ErrorKind.NOT_FOUND
    assert "gen_1" in states[1].failed.message


async def test_a_store_that_does_not_answer_fails_the_batch(channel, monkeypatch):
    async def away(calls: Any) -> list[Any]:
        return [ResponseError("ERR"), *(StoreUnavailable("away") for _ in calls[1:])]

    monkeypatch.setattr(channel._scripts, "run_many", away)
    data = [Frame(FrameId(1, 1), FrameKind.DATA, b"x")]

    for call in (
        channel.describe(IDS, "me"),
        channel.last_ids(IDS),
        channel.heartbeat(claims()),
        channel.append([Append(claim, FrameId(1, 0), data) for claim in claims()]),
    ):
        with pytest.raises(StoreUnavailable):
            await call


async def test_nothing_is_asked_about_nothing(channel, monkeypatch):
    monkeypatch.setattr(channel._scripts, "run_many", None)

    assert await channel.describe([], "me") == []


async def test_a_note_goes_to_its_own_claim(channel):
    await begin(channel)

    await channel.heartbeat(claims(), [b"first", b"", b"third"])

    notes = [(await channel.fence(Claim(generation_id, 2, "t2"), is_handover=False)).note for generation_id in IDS]
    assert notes == [b"first", None, b"third"]


async def test_there_is_no_record_before_the_end(channel, redis):
    await begin(channel)
    assert await channel.record("gen_0") is None
    await channel.append([Append(claims()[0], FrameId(1, 0), [Frame(FrameId(1, 1), FrameKind.END, b"{}")])])

    record = await channel.record("gen_0")

    assert record and (record.request_summary, record.end) == (b"", b"{}")
    assert abs(record.ended_ms - (await redis.time())[0] * 1000) < 60_000
