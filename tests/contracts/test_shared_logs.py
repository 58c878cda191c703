"""What every channel must hold for generations that read the log of another one, on memory and on real Redis."""

import asyncio
from dataclasses import replace

import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import START, Claim, Frame, FrameId, FrameKind, Opening, Stop, WriteStatus
from common.records.head import Head
from tests.contracts.test_channel import append, channel, data, end, feed, parts  # noqa: F401 - Fixtures.

LOG, A, B = "gen_log", "gen_a", "gen_b"
CLAIM = Claim(LOG, 1, "token")
STOPPED = Failed(ErrorKind.CANCELLED, "stopped", code="cancelled")


def opening(owner: str, policy: Policy = Policy.STOP) -> Opening:
    return Opening(owner, "openai-chat", True, "m", 1, policy, 0, 60, 600, b"the request")


@pytest.fixture
async def shared(channel):  # noqa: F811
    """A running log with one frame, which two generations of one owner read."""
    await channel.open(LOG, opening(""), "r1")
    for reader in (A, B):
        await channel.follow(reader, LOG, opening("me"))
    await channel.fence(CLAIM, is_handover=False)
    await append(channel, CLAIM, FrameId(1, 0), data(CLAIM, 1, "one"))
    return channel


async def follow_in_queue(channel):  # noqa: F811
    """Record the readers as the enqueue script does; the memory channel knows them already."""
    if hasattr(channel, "_redis"):
        await channel._redis.hset("{gen_log}:followers", mapping={A: b"", B: b""})


async def test_a_reader_has_the_state_of_the_log_and_its_own_identity(shared):
    (state,) = await shared.describe([A], "me")

    assert (state.owner, state.source, str(state.last), state.has_ended, state.claims) == ("me", LOG, "1-1", False, 1)


async def test_only_its_owner_finds_a_reader_and_nobody_finds_the_log(shared):
    states = await shared.describe([A, LOG], "stranger") + await shared.describe([LOG], "me")

    assert [state.failed.kind for state in states] == [ErrorKind.NOT_FOUND] * 3
    with pytest.raises(GatewayError):
        await shared.enter(A, "r2", "stranger")


async def test_the_end_of_the_log_is_the_end_of_its_readers(shared):
    head = replace(Head(), status=200, provider="p")
    frames = (data(CLAIM, 2)._replace(kind=FrameKind.HEAD, data=head.pack()), end(CLAIM, 3))
    await append(shared, CLAIM, FrameId(1, 1), *frames)

    for state in await shared.describe([A, B], "me"):
        assert (state.has_ended, state.head.provider, state.end.error) == (True, "p", None)


async def test_to_enter_a_reader_is_to_enter_the_log(shared):
    await shared.enter(B, "r2", "me")

    assert await shared.leave(LOG, "r1") is Stop.NO, "r2 is still there"
    assert await shared.leave(LOG, "r2") is Stop.LEFT


async def test_a_log_that_nobody_listens_to_was_left_by_none_of_its_readers(shared):
    assert await shared.leave(LOG, "r1") is Stop.LEFT

    (state,) = await shared.describe([A], "me")

    assert not state.has_left


async def test_one_reader_is_stopped_and_the_other_goes_on(shared, feed):  # noqa: F811
    await follow_in_queue(shared)
    messages = []
    await feed.subscribe(LOG, messages.append)

    assert await shared.part(A, LOG, STOPPED, is_readable=True) == (WriteStatus.OK, False)
    await append(shared, CLAIM, FrameId(1, 1), data(CLAIM, 2, "two"))

    own = await shared.read(A, START, 10)
    assert [(str(frame.id), frame.kind) for frame in own] == [("1-0", "fence"), ("1-1", "data"), ("2-0", "end")]
    stopped, running = await shared.describe([A, B], "me")
    assert (stopped.has_ended, stopped.source, stopped.end.failed.kind) == (True, "", ErrorKind.CANCELLED)
    assert (running.has_ended, str(running.last)) == (False, "1-2")
    assert await shared.part(A, LOG, STOPPED, is_readable=True) == (WriteStatus.ENDED, False), "once is enough"
    async with asyncio.timeout(10):
        while not any(message.frame and message.frame.kind is FrameKind.PART for message in messages):
            await asyncio.sleep(0.01)
    (part,) = [message for message in messages if message.frame and message.frame.kind is FrameKind.PART]
    assert (part.previous, part.frame.id, part.frame.data) == (FrameId(1, 1), FrameId(1, 1), A.encode())


@pytest.mark.parametrize("has_head", [False, True])
async def test_one_that_was_stopped_keeps_the_head_and_the_claims_of_the_log(shared, has_head):
    again = Claim(LOG, 2, "token")
    await shared.fence(again, is_handover=False)
    head = Frame(FrameId(2, 1), FrameKind.HEAD, replace(Head(), status=200, provider="p").pack())
    if has_head:
        await append(shared, again, FrameId(2, 0), head)

    await shared.part(A, LOG, STOPPED, is_readable=True)

    (state,) = await shared.describe([A], "me")
    assert (state.claims, state.head.provider if state.head else None) == (2, "p" if has_head else None)


async def test_a_reader_of_a_log_that_no_worker_has_begun_can_be_stopped(channel):  # noqa: F811
    await channel.open(LOG, opening(""), "r1")
    for reader in (A, B):
        await channel.follow(reader, LOG, opening("me"))
    await follow_in_queue(channel)

    assert await channel.part(A, LOG, STOPPED, is_readable=True) == (WriteStatus.OK, False)

    (state,) = await channel.describe([A], "me")
    assert (state.has_ended, str(state.last), state.claims, state.head) == (True, "1-0", 0, None)
    assert (await channel.fence(CLAIM, is_handover=False)).answer.stop is Stop.NO


async def test_nobody_has_to_leave_a_reader_that_was_stopped(shared):
    await follow_in_queue(shared)
    await shared.part(A, LOG, STOPPED, is_readable=True)

    assert await shared.leave(A, "r1") is Stop.NO
    state = await shared.enter(A, "r2", "me")
    assert (state.has_ended, state.has_left, state.claims) == (True, False, 1)


async def test_the_last_reader_that_is_stopped_stops_the_log(shared):
    await follow_in_queue(shared)

    assert await shared.part(A, LOG, STOPPED, is_readable=False) == (WriteStatus.OK, False), "its leave decides, not this"
    assert await shared.part(B, LOG, STOPPED, is_readable=True) == (WriteStatus.OK, True)
    answer = await append(shared, CLAIM, FrameId(1, 1), data(CLAIM, 2))
    assert answer.stop is Stop.CANCELLED


async def test_readers_that_left_by_themselves_stop_nothing(shared):
    await follow_in_queue(shared)

    for reader in (A, B):
        assert await shared.part(reader, LOG, STOPPED, is_readable=False) == (WriteStatus.OK, False)

    assert (await append(shared, CLAIM, FrameId(1, 1), data(CLAIM, 2))).stop is Stop.NO
    (state,) = await shared.describe([A], "me")
    assert (state.has_ended, state.source) == (False, LOG)


async def test_a_reader_of_an_ended_log_has_ended_with_it(shared):
    await append(shared, CLAIM, FrameId(1, 1), end(CLAIM, 2))

    assert await shared.part(A, LOG, STOPPED, is_readable=True) == (WriteStatus.ENDED, False)


async def test_a_reader_without_a_log_has_expired(channel):  # noqa: F811
    await channel.follow(A, LOG, opening("me"))

    (state,) = await channel.describe([A], "me")
    assert state.failed.kind is ErrorKind.EXPIRED
    assert await channel.part(A, LOG, STOPPED, is_readable=True) == (WriteStatus.GONE, False)


async def test_a_reader_that_was_discarded_is_unknown(shared):
    await shared.discard(A)

    (state,) = await shared.describe([A], "me")
    assert state.failed.kind is ErrorKind.NOT_FOUND
