"""What a worker's frames survive: lost answers, a Redis that is away, frames that a failover lost, a new owner."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, Stop
from common.channel.memory import MemoryChannel
from common.config.settings import Settings
from workers.publish.linger import Linger
from workers.publish.publisher import Publisher
from workers.publish.writer import Writer

G = "gen_1"
CLAIM = Claim(G, 1, "t")


class Pulse:
    is_up = True
    whole = 1000.0

    def healthy_s(self) -> float:
        return self.whole


class Channel(MemoryChannel):
    """A memory channel whose answers can get lost, before or after they took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_before = 0
        self.fail_after = 0
        self.appends: list[list[Append]] = []

    async def append(self, appends):
        if self.fail_before:
            self.fail_before -= 1
            raise StoreUnavailable("away")
        self.appends.append(appends)
        answers = await super().append(appends)
        if self.fail_after:
            self.fail_after -= 1
            raise StoreUnavailable("the answer was lost")
        return answers

    def forget(self, count: int) -> None:
        """Lose the last acknowledged frames, as a failover does."""
        del self._logs[G].frames[-count:]
        if not any(frame.id.epoch == CLAIM.epoch for frame in self._logs[G].frames):
            self._logs[G].epoch, self._logs[G].token = 0, ""


class Setup:
    def __init__(self, channel: Channel, publisher: Publisher, pulse: Pulse) -> None:
        self.channel, self.publisher, self.pulse = channel, publisher, pulse
        self.signals = 0
        self.writer: Writer

    def signal(self) -> None:
        self.signals += 1

    async def texts(self) -> list[bytes]:
        return [f.data for f in await self.channel.read(G, START, 10_000) if f.kind is FrameKind.DATA]

    async def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece, is_urgent=True)
            async with asyncio.timeout(120):
                await self.writer.wait_flushed()


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr("workers.publish.writer.PAUSE_WHILE_AWAY_S", 0.001)
    channel, pulse = Channel(), Pulse()
    short = {"heartbeat_s": 0.02, "worker_buffer_bytes_max": 1000, "vanished_viewers_s": 0.05}
    settings = Settings().model_copy(update=short)
    publisher = Publisher(channel, pulse, settings, Linger(0))  # type: ignore[arg-type]  # A pulse that beats as told.
    publisher.start()
    found = Setup(channel, publisher, pulse)
    await channel.open(G, Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b""), "r")
    await channel.subscribe(G, lambda message: None)
    await channel.fence(CLAIM, is_handover=False)
    with publisher.writer(CLAIM, START, found.signal) as found.writer:
        yield found
    await publisher.stop()
    assert publisher.buffered_bytes == 0


async def test_what_gathers_while_a_flush_is_under_way_becomes_one_frame(setup):
    setup.writer.write(b"a", is_urgent=True)
    await asyncio.sleep(0)
    for piece in (b"b", b"c", b"d"):
        setup.writer.write(piece)
    await setup.writer.wait_flushed()

    assert b"".join(await setup.texts()) == b"abcd"
    assert len(setup.channel.appends) <= 2


async def test_what_says_nothing_makes_no_frame(setup):
    await setup.write(b"", b"a", b"")
    setup.writer.write(b"")
    setup.writer.write_frame(FrameKind.END, b'{"error":null}')
    await setup.writer.wait_flushed()

    assert await setup.texts() == [b"a"]


async def test_an_answer_that_got_lost_is_asked_for_again_and_nothing_is_doubled(setup):
    setup.channel.fail_after = 2

    await setup.write(b"a", b"b")

    assert await setup.texts() == [b"a", b"b"]


async def test_frames_wait_for_redis_and_follow_in_order(setup):
    setup.channel.fail_before = 20

    setup.writer.write(b"a", is_urgent=True)
    await asyncio.sleep(0.005)
    setup.writer.write(b"b")
    setup.writer.write_frame(FrameKind.END, b'{"error":null}')
    await setup.writer.wait_flushed()

    assert b"".join(await setup.texts()) == b"ab"
    assert setup.channel._logs[G].has_ended


async def test_what_is_held_while_redis_is_away_is_bounded(setup):
    setup.channel.fail_before = 10**9
    setup.writer.write(b"x" * 1001, is_urgent=True)
    await asyncio.sleep(0.02)

    with pytest.raises(GatewayError) as caught:
        setup.writer.write(b"y")

    assert caught.value.failed.kind is ErrorKind.OVERLOADED
    setup.channel.fail_before = 0
    await setup.writer.wait_flushed()


@pytest.mark.parametrize("lost", [1, 3, 5])
async def test_frames_that_a_failover_lost_are_appended_again(setup, lost):
    await setup.write(b"a", b"b", b"c", b"d", b"e")
    setup.channel.forget(lost)

    await setup.write(b"f")

    assert await setup.texts() == [b"a", b"b", b"c", b"d", b"e", b"f"]


async def test_a_lost_fence_is_appended_again_too(setup):
    await setup.write(b"a")
    setup.channel.forget(2)

    await setup.write(b"b")

    assert await setup.texts() == [b"a", b"b"]
    assert (await setup.channel.read(G, START, 1))[0].kind is FrameKind.FENCE


async def test_a_heartbeat_notices_lost_frames_of_a_quiet_generation(setup):
    await setup.write(b"a", b"b")
    setup.channel.forget(1)

    async with asyncio.timeout(120):
        while await setup.texts() != [b"a", b"b"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_fence_lost", [False, True])
async def test_what_is_no_longer_held_leaves_a_hole_and_the_generation_can_still_end(setup, monkeypatch, is_fence_lost):
    monkeypatch.setattr("workers.publish.writer.RECENT_BYTES_MAX", 1)
    await setup.write(b"aaa", b"bbb", b"ccc")
    setup.channel.forget(4 if is_fence_lost else 3)

    setup.writer.write(b"ddd", is_urgent=True)
    async with asyncio.timeout(120):
        while not setup.writer.has_hole:
            await asyncio.sleep(0.001)
    assert setup.signals == 1
    setup.writer.write_frame(FrameKind.END, b'{"error":{}}')
    await setup.writer.wait_flushed()

    assert setup.channel._logs[G].has_ended
    assert await setup.texts() == []


async def test_a_note_is_told_soon_and_once(setup):
    beats: list[list[bytes]] = []
    told = setup.channel.heartbeat

    async def heartbeat(claims, notes):
        beats.append(list(notes))
        return await told(claims, notes)

    setup.channel.heartbeat = heartbeat
    setup.writer.packed_attempts = b"called"

    async with asyncio.timeout(5):
        while [b"called"] not in beats:
            await asyncio.sleep(0.001)
    assert (await setup.channel.fence(Claim(G, 2, "next"), is_handover=False)).note == b"called"


async def test_a_new_owner_silences_this_one(setup):
    await setup.write(b"a")
    await setup.channel.fence(Claim(G, 2, "other"), is_handover=False)

    setup.writer.write(b"from the dead", is_urgent=True)
    await setup.writer.wait_flushed()

    assert setup.writer.lost
    assert setup.signals == 1
    assert await setup.texts() == [b"a"]


async def test_a_stop_is_heard_by_heartbeat_and_signalled_once(setup):
    await setup.channel.stop(G)

    async with asyncio.timeout(120):
        while not setup.signals:
            await asyncio.sleep(0.005)
    await setup.write(b"a", b"b")

    assert (setup.writer.stop, setup.signals) == (Stop.CANCELLED, 1)


class Deaf(Channel):
    """Nobody listens to what is published."""

    async def append(self, appends):
        return [answer._replace(listeners=0) for answer in await super().append(appends)]

    async def heartbeat(self, claims, notes=()):
        return [answer._replace(listeners=0) for answer in await super().heartbeat(claims, notes)]


@pytest.mark.parametrize(("policy", "stop"), [(Policy.STOP, Stop.API_ENDED), (Policy.DETACH, Stop.NO)])
async def test_viewers_that_vanished_without_a_word_count_as_gone(setup, policy, stop):
    setup.channel.__class__ = Deaf
    setup.writer.watch_listeners(policy, 0)

    for _ in range(20):
        await asyncio.sleep(0.01)
        await setup.write(b"a")

    assert setup.writer.stop is stop


async def test_our_own_outage_does_not_count_as_their_absence(setup):
    setup.channel.__class__ = Deaf
    setup.pulse.whole = 0.01
    setup.writer.watch_listeners(Policy.STOP, 0)

    for _ in range(20):
        await asyncio.sleep(0.01)
        await setup.write(b"a")

    assert setup.writer.stop is Stop.NO


async def test_much_that_gathered_is_cut_into_frames_of_bounded_size(setup, monkeypatch):
    monkeypatch.setattr("workers.publish.writer.FRAME_BYTES_MAX", 10)
    for _ in range(6):
        setup.writer.write(b"12345")
    await setup.writer.wait_flushed()

    frames = [f for f in await setup.channel.read(G, START, 100) if f.kind is FrameKind.DATA]
    assert [len(frame.data) for frame in frames] == [10, 10, 10]
    assert frames[0] == Frame(FrameId(1, 1), FrameKind.DATA, b"1234512345")


async def test_an_answer_that_comes_after_the_claim_is_over_is_not_counted_twice(setup):
    is_asked, may_answer, append = asyncio.Event(), asyncio.Event(), setup.channel.append

    async def late(appends):
        is_asked.set()
        await may_answer.wait()
        return await append(appends)

    setup.channel.append = late
    claim = Claim("gen_2", 1, "t")
    await setup.channel.open("gen_2", Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b""), "r")
    await setup.channel.fence(claim, is_handover=False)
    with setup.publisher.writer(claim, START, lambda: None) as writer:
        writer.write(b"in flight", is_urgent=True)
        await is_asked.wait()
    may_answer.set()
    setup.channel.append = append
    await setup.write(b"another's")

    assert setup.publisher.buffered_bytes == 0


async def test_large_answers_that_have_ended_give_way_in_the_publisher_s_own_channel(setup, monkeypatch):
    monkeypatch.setattr("workers.publish.large_answers.KEPT_S", 0)
    large = setup.publisher.large
    large.bytes_max = 2 * large.answer_bytes_max
    reserved = await large.reserve(0, large.answer_bytes_max)
    setup.writer.write_frame(FrameKind.END, b'{"error":null}')
    await setup.writer.wait_flushed()
    large.end(G, reserved, large.answer_bytes_max)

    await large.reserve(0, large.answer_bytes_max)

    assert await setup.channel.read(G, START, 10) == []
