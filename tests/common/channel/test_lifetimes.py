"""How long do a generation's keys stay in Redis? Every test looks at the expiry of all of them, in whole seconds."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, Stop
from common.channel.redis import RedisChannel

G = "gen_1"
CLAIM = Claim(G, 1, "t")
EXPIRY, RETENTION, TOMBSTONE, FOREVER = 600, 60, 7000, None
OPENING = Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, RETENTION, EXPIRY, b"the request")


@pytest.fixture
def channel(redis: Redis) -> RedisChannel:
    return RedisChannel(redis, tombstone_s=TOMBSTONE)


async def lifetimes(redis: Redis, generation_id: str = G) -> dict[str, int | None]:
    """The seconds that each of a generation's keys has left; None: it stays."""
    left = {}
    for key in await redis.keys(f"{{{generation_id}}}:*"):
        ms = await redis.pttl(key)
        left[key.decode().rpartition(":")[2]] = None if ms == -1 else round(ms / 1000)
    return left


async def begin(channel: RedisChannel, *frames: tuple[FrameKind, bytes], opening: Opening = OPENING) -> None:
    await channel.open(G, opening, "r1")
    await channel.fence(CLAIM, is_handover=False)
    if frames:
        numbered = [Frame(FrameId(1, n), kind, data) for n, (kind, data) in enumerate(frames, start=1)]
        await channel.append([Append(CLAIM, FrameId(1, 0), numbered)])


END = (FrameKind.END, b'{"error":null}')
DATA = (FrameKind.DATA, b"data: x\n\n")


async def test_what_is_opened_has_the_safety_expiry(channel, redis):
    await channel.open(G, OPENING, "r1")

    assert await lifetimes(redis) == {"state": EXPIRY, "request": EXPIRY, "viewers": EXPIRY}
    assert await redis.get(f"{{{G}}}:request") == b"the request"
    assert await redis.smembers(f"{{{G}}}:viewers") == {b"r1"}


async def test_what_nobody_reads_has_no_viewers(channel, redis):
    await channel.open(G, OPENING, "")

    assert await lifetimes(redis) == {"state": EXPIRY, "request": EXPIRY}


async def test_the_state_of_who_reads_another_log_has_the_safety_expiry(channel, redis):
    await channel.follow("gen_reader", G, OPENING)

    assert await lifetimes(redis, "gen_reader") == {"state": EXPIRY}


async def test_a_log_has_the_safety_expiry_from_its_first_frame_on(channel, redis):
    await begin(channel, DATA)

    assert await lifetimes(redis) == {"state": EXPIRY, "request": EXPIRY, "viewers": EXPIRY, "log": EXPIRY}


async def test_an_ended_log_stays_for_its_retention_and_its_request_goes(channel, redis):
    await begin(channel, DATA, END)

    assert await lifetimes(redis) == {
        "state": RETENTION,
        "log": RETENTION,
        "tombstone": RETENTION + TOMBSTONE,
        "record": FOREVER,
    }
    assert await redis.get(f"{{{G}}}:tombstone") == b"me"


async def test_what_no_worker_ended_keeps_its_request_for_the_ledger_s_estimate(channel, redis):
    await begin(channel, DATA)
    await channel.heartbeat([CLAIM], [b"attempts so far"])
    await channel.end_unowned(G, "token", Failed(ErrorKind.WORKER_LOST, "lost"))

    assert await lifetimes(redis) == {
        "state": RETENTION,
        "log": RETENTION,
        "request": RETENTION,
        "tombstone": RETENTION + TOMBSTONE,
        "record": FOREVER,
    }
    assert await redis.hget(f"{{{G}}}:record", "note") == b"attempts so far"


async def test_a_worker_s_own_end_needs_no_note(channel, redis):
    await begin(channel, DATA)
    await channel.heartbeat([CLAIM], [b"attempts so far"])
    await channel.append([Append(CLAIM, FrameId(1, 1), [Frame(FrameId(1, 2), *END)])])

    assert not await redis.hexists(f"{{{G}}}:record", "note")


@pytest.mark.parametrize("is_ended", [False, True])
async def test_what_is_audited_is_not_evicted_before_the_ledger_has_it(channel, redis, is_ended):
    await begin(channel, *([DATA, END] if is_ended else [DATA]), opening=replace(OPENING, is_audited=True))
    before = await lifetimes(redis)

    assert not await channel.evict(G)

    assert await lifetimes(redis) == before


async def test_what_is_evicted_leaves_its_tombstone_and_its_record(channel, redis):
    await begin(channel, DATA, END)
    await redis.set(f"{{{G}}}:request", "kept for an estimate")

    assert await channel.evict(G)

    assert await lifetimes(redis) == {"tombstone": RETENTION + TOMBSTONE, "record": FOREVER}


async def test_what_is_discarded_leaves_nothing(channel, redis):
    await channel.open(G, OPENING, "r1")
    await channel.discard(G)

    assert await lifetimes(redis) == {}


async def test_who_comes_is_a_viewer_for_as_long_as_the_log_may_be(channel, redis):
    await channel.open(G, OPENING, "")

    await channel.enter(G, "r2", "me")

    assert (await lifetimes(redis))["viewers"] == EXPIRY
    assert await redis.smembers(f"{{{G}}}:viewers") == {b"r2"}


async def test_nobody_becomes_a_viewer_of_what_has_ended(channel, redis):
    await begin(channel, DATA, END)

    state = await channel.enter(G, "r2", "me")

    assert state.has_ended
    assert "viewers" not in await lifetimes(redis)


async def test_only_its_owner_learns_that_a_log_has_been(channel, redis):
    await begin(channel, DATA, END)
    await channel.evict(G)

    for owner, kind in (("me", ErrorKind.EXPIRED), ("a stranger", ErrorKind.NOT_FOUND)):
        with pytest.raises(GatewayError) as refused:
            await channel.enter(G, "r1", owner)
        assert refused.value.failed.kind is kind


@pytest.mark.parametrize("count", [0, 15, 16, 17, 40])
async def test_a_head_is_seen_behind_however_many_fences(channel, count):
    await channel.open(G, OPENING, "")
    for epoch in range(1, count + 1):
        await channel.fence(Claim(G, epoch, "t"), is_handover=False, was_postponed=True)
    last = Claim(G, count + 1, "t")
    await channel.fence(last, is_handover=False)
    head = Frame(FrameId(last.epoch, 1), FrameKind.HEAD, b'{"headers": {"x": "y"}}')
    await channel.append([Append(last, FrameId(last.epoch, 0), [head])])

    state = await channel.enter(G, "", "me")

    assert state.head and state.head.headers == {"x": "y"}
    assert state.last == FrameId(last.epoch, 1)


async def test_a_log_whose_end_was_lost_is_still_said_to_have_ended(channel, redis):
    await begin(channel, DATA, END)
    await redis.xdel(f"{{{G}}}:log", "1-2")

    state = await channel.enter(G, "", "me")

    assert (state.has_ended, state.end) == (True, None)


async def test_a_leave_behind_the_end_stops_nothing(channel):
    await begin(channel, DATA, END)

    assert await channel.leave(G, "r1") is Stop.NO
    assert not (await channel.enter(G, "", "me")).has_left


async def test_a_leave_does_not_undo_a_stop(channel):
    await begin(channel, DATA)
    await channel.stop(G)

    assert await channel.leave(G, "r1") is Stop.CANCELLED


async def test_a_leave_counts_from_the_first_one(channel, redis):
    await begin(channel, DATA, opening=replace(OPENING, policy=Policy.GRACE, grace_s=50))
    await channel.leave(G, "r1")
    due = await redis.hget(f"{{{G}}}:state", "stop")
    await channel.leave(G, "r1")

    assert await redis.hget(f"{{{G}}}:state", "stop") == due
    seconds, _ = await redis.time()
    assert 49 <= int(due.removeprefix(b"left:")) / 1000 - seconds <= 51


async def test_an_end_that_no_worker_wrote_follows_what_is_there_and_shuts_its_owner_out(channel):
    await begin(channel, DATA)

    await channel.end_unowned(G, "token", Failed(ErrorKind.WORKER_LOST, "lost"))

    frames = await channel.read(G, START, 10)
    assert [(str(frame.id), frame.kind) for frame in frames[-2:]] == [("1-1", FrameKind.DATA), ("2-0", FrameKind.END)]
    (result,) = await channel.append([Append(CLAIM, FrameId(1, 1), [Frame(FrameId(1, 2), *DATA)])])
    assert str(result.last) == "2-0"
    assert len(await channel.read(G, START, 10)) == len(frames)


@pytest.mark.parametrize("is_readable", [True, False])
async def test_a_reader_that_parts_has_a_log_of_its_own_for_its_retention(channel, redis, is_readable):
    await channel.follow("gen_reader", G, replace(OPENING, retention_s=90))
    await begin(channel, (FrameKind.HEAD, b"{}"), DATA)
    await redis.hset(f"{{{G}}}:followers", mapping={"gen_reader": b"", "gen_other": b""})
    stopped = Failed(ErrorKind.CANCELLED, "stopped", code="cancelled")
    shared = await channel.read(G, START, 10)

    await channel.part("gen_reader", G, stopped, is_readable=is_readable)

    left = await redis.hget(f"{{{G}}}:followers", "left:gen_reader")
    moment, _, end = left.partition(b" ")
    assert abs(int(moment) // 1000 - (await redis.time())[0]) < 60
    if not is_readable:
        assert await channel.read("gen_reader", START, 10) == []
        return
    assert await lifetimes(redis, "gen_reader") == {"state": 90, "log": 90, "tombstone": 90 + TOMBSTONE}
    *copied, last = await channel.read("gen_reader", START, 10)
    assert copied == shared
    assert (last.id, last.kind, last.data) == (FrameId(2, 0), FrameKind.END, end)
    assert await redis.get("{gen_reader}:tombstone") == b"me"
    (state,) = await channel.describe(["gen_reader"], "me")
    assert (state.claims, state.head is not None, state.has_left) == (1, True, False)
    assert (await channel.heartbeat([CLAIM]))[0].stop is Stop.NO  # Another one reads on.
