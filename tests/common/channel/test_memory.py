"""What a channel in memory does at the moment at which something is due. The rest is in tests/contracts/test_channel.py."""

from dataclasses import replace

import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Message, Opening, Stop, WriteStatus
from common.channel.memory import MemoryChannel

G = "gen_1"
CLAIM = Claim(G, 1, "t")
OPENING = Opening("me", "openai-chat", True, "m", 1, Policy.GRACE, 10, 60, 600, b"head ", b"summary", body=b"body")
END = Frame(FrameId(1, 1), FrameKind.END, b'{"error":null}')


class Clock:
    now = 1_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def channel(clock: Clock) -> MemoryChannel:
    channel = MemoryChannel(clock)
    await channel.open(G, OPENING, "r1")
    await channel.fence(CLAIM, is_handover=False)
    return channel


async def end(channel: MemoryChannel) -> None:
    await channel.append([Append(CLAIM, FrameId(1, 0), [END])])


async def refusal(channel: MemoryChannel, owner: str = "me") -> ErrorKind:
    with pytest.raises(GatewayError) as caught:
        await channel.enter(G, "r2", owner)
    return caught.value.failed.kind


async def test_an_ended_log_expires_at_the_end_of_its_retention(channel, clock):
    await end(channel)

    clock.now += 59.5
    assert await channel.last_ids([G]) == [FrameId(1, 1)]
    clock.now += 0.5
    assert await channel.last_ids([G]) == [None]
    assert await channel.read(G, START, 10) == []
    assert await refusal(channel) is ErrorKind.EXPIRED
    assert await refusal(channel, "a stranger") is ErrorKind.NOT_FOUND


async def test_an_evicted_log_has_expired_at_once(channel):
    await end(channel)

    assert await channel.evict(G)

    assert await refusal(channel) is ErrorKind.EXPIRED
    assert await channel.evict(G)


async def test_an_audited_log_stays(channel, clock):
    await channel.open(G, replace(OPENING, is_audited=True), "r1")
    await channel.fence(CLAIM, is_handover=False)
    await end(channel)

    clock.now += 1e9
    assert not await channel.evict(G)
    assert await channel.last_ids([G]) == [FrameId(1, 1)]


async def test_a_grace_period_is_over_at_its_moment(channel, clock):
    assert await channel.leave(G, "r1") is Stop.NO

    clock.now += 9.75
    assert (await channel.heartbeat([CLAIM]))[0].stop is Stop.NO
    clock.now += 0.25
    assert (await channel.heartbeat([CLAIM]))[0].stop is Stop.LEFT


async def test_a_grace_period_counts_from_the_first_leave(channel, clock):
    await channel.leave(G, "r1")
    clock.now += 6
    await channel.leave(G, "r1")
    clock.now += 4

    assert (await channel.heartbeat([CLAIM]))[0].stop is Stop.LEFT


async def test_a_record_has_the_moment_of_the_end_in_milliseconds(channel, clock):
    await end(channel)
    clock.now += 5

    record = await channel.record(G)

    assert record == (b"summary", END.data, 1_000_250)


async def test_who_enters_an_ended_log_is_no_viewer(channel):
    await end(channel)

    await channel.enter(G, "r2", "me")

    assert await channel.leave(G, "r2") is Stop.NO
    assert (await channel.heartbeat([CLAIM]))[0].status is WriteStatus.ENDED


async def test_a_listener_hears_each_frame_and_where_a_quiet_log_ends(channel):
    heard: list[Message] = []
    await channel.subscribe(G, heard.append)

    await channel.heartbeat([CLAIM])
    await end(channel)
    await channel.unsubscribe(G)
    await channel.unsubscribe(G)
    await channel.heartbeat([CLAIM])

    assert heard == [Message(FrameId(1, 0), None), Message(FrameId(1, 0), END)]


async def test_a_test_can_take_frames_from_a_log(channel):
    await end(channel)

    channel.log_frames(G).pop()

    assert await channel.last_ids([G]) == [FrameId(1, 0)]


async def test_an_end_without_a_worker_is_the_next_claim_s_only_frame(channel):
    assert await channel.end_unowned(G, "t2", Failed(ErrorKind.WORKER_LOST, "lost")) is WriteStatus.OK
    assert await channel.end_unowned(G, "t3", Failed(ErrorKind.WORKER_LOST, "lost")) is WriteStatus.OK
    assert await channel.end_unowned("gen_unknown", "t3", Failed(ErrorKind.WORKER_LOST, "lost")) is WriteStatus.GONE

    assert [frame.id for frame in await channel.read(G, START, 10)] == [FrameId(1, 0), FrameId(2, 0)]


# Generations that read the log of another one


@pytest.fixture
async def shared(channel) -> MemoryChannel:
    for reader in ("gen_a", "gen_b"):
        await channel.follow(reader, G, replace(OPENING, owner="reader", retention_s=20))
    return channel


async def part(channel: MemoryChannel, reader: str = "gen_a", source: str = G) -> tuple[WriteStatus, bool]:
    return await channel.part(reader, source, Failed(ErrorKind.CANCELLED, "stopped"), is_readable=True)


async def test_the_log_of_one_that_was_stopped_expires_at_the_end_of_its_own_retention(shared, clock):
    assert await part(shared) == (WriteStatus.OK, False)

    clock.now += 19.75
    assert await shared.last_ids(["gen_a"]) == [FrameId(2, 0)]
    clock.now += 0.25
    assert await shared.last_ids(["gen_a", G]) == [None, FrameId(1, 0)]
    for owner, kind in (("reader", ErrorKind.EXPIRED), ("a stranger", ErrorKind.NOT_FOUND)):
        (refused,) = await shared.describe(["gen_a"], owner)
        assert refused.failed.kind is kind


async def test_one_that_was_stopped_is_told_to_those_that_listen_to_the_log(shared):
    heard: list[Message] = []
    await shared.subscribe(G, heard.append)

    await part(shared)

    assert heard == [Message(FrameId(1, 0), Frame(FrameId(1, 0), FrameKind.PART, b"gen_a"))]


@pytest.mark.parametrize(("reader", "source"), [("gen_a", "gen_unknown"), ("gen_unknown", G)])
async def test_only_a_reader_of_a_log_can_part_from_it(shared, reader, source):
    assert await part(shared, reader, source) == (WriteStatus.GONE, False)


async def test_the_last_one_that_is_stopped_stops_the_log_for_good(shared):
    assert [await part(shared, reader) for reader in ("gen_a", "gen_b")] == [(WriteStatus.OK, False), (WriteStatus.OK, True)]

    assert (await shared.heartbeat([CLAIM]))[0].stop is Stop.CANCELLED
    assert await part(shared, "gen_b") == (WriteStatus.ENDED, False)
    await shared.enter(G, "r2", "me")
    assert (await shared.heartbeat([CLAIM]))[0].stop is Stop.CANCELLED
