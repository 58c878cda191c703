"""What one reader sees, whatever is lost on the way to it."""

import asyncio

import pytest

from api.relay.viewer import LOG_BATCH, LOG_BATCH_FIRST, LOG_LOST, Viewer
from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Cursor, Frame, FrameId, FrameKind, Message, Opening
from common.channel.memory import MemoryChannel

G = "gen_1"
CLAIM = Claim(G, 1, "t")
EVENT = b"data: %d\n\n"


class Log:
    """A generation on a memory channel, and the messages that its listeners would get."""

    def __init__(self) -> None:
        self.channel = MemoryChannel()
        self.messages: list[Message] = []
        self.n = 0

    async def open(self) -> "Log":
        await self.channel.subscribe(G, self.messages.append)
        await self.channel.open(G, Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b""), "r")
        await self.channel.fence(CLAIM, is_handover=False)
        return self

    async def add(self, count: int = 1, kind: FrameKind = FrameKind.DATA) -> None:
        for _ in range(count):
            self.n += 1
            frame = Frame(FrameId(1, self.n), kind, EVENT % self.n)
            await self.channel.append([Append(CLAIM, FrameId(1, self.n - 1), [frame])])


@pytest.fixture
async def log() -> Log:
    return await Log().open()


def viewer(log: Log, bytes_max: int = 10_000, after: Cursor | None = None) -> Viewer:
    return Viewer(G, log.channel, bytes_max, after)


async def taken(viewer: Viewer, count: int) -> list[int]:
    """The numbers of the next data events."""
    numbers: list[int] = []
    async with asyncio.timeout(120):
        while len(numbers) < count:
            for frame in await viewer.next_frames():
                if frame.kind is FrameKind.DATA:
                    numbers += [int(line[6:]) for line in frame.data.split(b"\n\n") if line]
    return numbers


async def test_live_frames_come_once_and_in_order(log):
    reader = viewer(log)
    await log.add(5)
    for message in log.messages:
        reader.offer(message)
        reader.offer(message)  # Doubled on the way.

    assert await taken(reader, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("lost", [0, 1, 3, 4])
async def test_a_gap_is_repaired_from_the_log(log, lost):
    reader = viewer(log)
    await log.add(5)
    for index, message in enumerate(log.messages[1:]):
        if index != lost:
            reader.offer(message)
    if lost == 4:  # The last message has no successor to betray its loss: a heartbeat names the log's end.
        await log.channel.heartbeat([CLAIM])
        reader.offer(log.messages[-1])

    assert await taken(reader, 5) == [1, 2, 3, 4, 5]


async def test_after_a_reconnection_the_log_is_read_again(log):
    reader = viewer(log)
    await log.add(3)

    reader.reread()

    assert await taken(reader, 3) == [1, 2, 3]


async def test_a_slow_reader_holds_bounded_memory_and_catches_up_from_the_log(log):
    reader = viewer(log, bytes_max=50)
    await log.add(3 * LOG_BATCH)
    for message in log.messages:
        reader.offer(message)

    held = await reader.next_frames()
    assert sum(len(frame.data) for frame in held) < 100
    first = sum(frame.kind is FrameKind.DATA for frame in held)
    assert await taken(reader, 3 * LOG_BATCH - first) == list(range(first + 1, 3 * LOG_BATCH + 1))


async def test_live_and_log_are_spliced_without_a_seam(log):
    reader = viewer(log)
    await log.add(10)
    for message in log.messages[:4]:
        reader.offer(message)
    reader.offer(log.messages[7])  # A gap: from here the log is read, while more comes live.
    first = await taken(reader, 10)
    await log.add(5)
    for message in log.messages[5:]:
        reader.offer(message)

    assert first + await taken(reader, 5) == list(range(1, 16))


async def test_a_reader_with_a_cursor_gets_exactly_what_follows_it(log):
    await log.add(5)

    assert await taken(viewer(log, after=Cursor(FrameId(1, 2), 1)), 3) == [3, 4, 5]
    assert await taken(viewer(log, after=Cursor(FrameId(1, 2), 0)), 4) == [2, 3, 4, 5]


async def test_a_cursor_inside_a_frame_skips_only_its_first_events(log):
    frame = Frame(FrameId(1, 1), FrameKind.DATA, b"".join(EVENT % n for n in range(1, 6)))
    await log.channel.append([Append(CLAIM, FrameId(1, 0), [frame])])
    reader = viewer(log, after=Cursor(FrameId(1, 1), 3))

    (rest,) = await reader.next_frames()

    assert (rest.data, reader.first_event(rest)) == (EVENT % 4 + EVENT % 5, 4)


# Live frames that are written at once


class Writer:
    """Notes what is written live. It refuses while the client is slow."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.is_slow = False

    def __call__(self, frame: Frame) -> bool:
        if not self.is_slow:
            self.numbers.append(int(frame.data[6:]))
        return not self.is_slow


async def live(log: Log, reader: Viewer, count: int = 1, kind: FrameKind = FrameKind.DATA) -> None:
    await log.add(count, kind)
    for message in log.messages:
        reader.offer(message)
    log.messages.clear()


async def begun(log: Log) -> tuple[Viewer, Writer]:
    """Return a reader that has its first frame."""
    reader = viewer(log)
    reader.write_live = writer = Writer()
    await live(log, reader)
    assert await taken(reader, 1) == [1]
    assert writer.numbers == []  # It did not wait yet.
    return reader, writer


async def test_what_follows_while_the_reader_waits_is_written_without_waking_it(log):
    reader, writer = await begun(log)
    waiting = asyncio.create_task(taken(reader, 1))
    await asyncio.sleep(0)

    await live(log, reader, 3)

    assert (writer.numbers, waiting.done(), reader.last_data) == ([2, 3, 4], False, EVENT % 4)
    reader.write_live = None
    await live(log, reader)
    assert await waiting == [5]


async def test_what_cannot_be_written_now_and_all_behind_it_is_for_the_reader(log):
    reader, writer = await begun(log)
    waiting = asyncio.create_task(taken(reader, 3))
    await asyncio.sleep(0)
    await live(log, reader)

    writer.is_slow = True
    await live(log, reader)
    writer.is_slow = False
    await live(log, reader, 2)

    assert writer.numbers == [2]
    assert await waiting == [3, 4, 5]


async def test_a_frame_behind_a_gap_is_not_written_before_what_is_missing(log):
    reader, writer = await begun(log)
    waiting = asyncio.create_task(taken(reader, 3))
    await asyncio.sleep(0)
    await live(log, viewer(log), 2)  # Lost on the way to this one.

    await live(log, reader)

    assert writer.numbers == []
    assert await waiting == [2, 3, 4]


async def test_only_data_is_written_live(log):
    reader, writer = await begun(log)
    waiting = asyncio.create_task(reader.next_frames())
    await asyncio.sleep(0)

    await live(log, reader, kind=FrameKind.END)

    assert [frame.kind for frame in await waiting] == [FrameKind.END]
    assert (writer.numbers, reader.has_ended) == ([], True)


async def test_the_frame_of_a_cursor_is_never_written_whole(log):
    reader = viewer(log, after=Cursor(FrameId(1, 1), 0))
    reader.write_live = writer = Writer()
    waiting = asyncio.create_task(taken(reader, 1))
    await asyncio.sleep(0)

    await live(log, reader)
    assert (writer.numbers, await waiting) == ([], [1])
    waiting = asyncio.create_task(taken(reader, 1))
    await asyncio.sleep(0.01)
    await live(log, reader)

    assert writer.numbers == [2]
    waiting.cancel()


async def test_a_fence_that_builds_on_less_than_was_read_fails_the_reader(log):
    reader = viewer(log)
    await log.add(5)
    for message in log.messages:
        reader.offer(message)
    await taken(reader, 5)
    await log.channel.fence(Claim(G, 2, "t2"), is_handover=False)
    lost = log.messages[-1]
    assert lost.frame is not None

    # As after a failover that lost 1-4 and 1-5: the next claim builds on 1-3.
    log.channel.log_frames(G)[-1] = lost.frame._replace(data=b"1-3")
    reader.offer(Message(FrameId(1, 3), log.channel.log_frames(G)[-1]))
    async with asyncio.timeout(120):
        frames = await reader.next_frames()

    assert frames == []
    assert reader.failed and reader.failed.code == "frames_lost"


async def test_frames_that_the_owner_appends_again_are_not_seen_twice(log):
    reader = viewer(log)
    await log.add(3)
    for message in [*log.messages, *log.messages[2:]]:
        reader.offer(message)
    await log.add(1)
    reader.offer(log.messages[-1])

    assert await taken(reader, 4) == [1, 2, 3, 4]


async def test_a_poke_lets_a_quiet_reader_return(log):
    reader = viewer(log)
    waiting = asyncio.create_task(reader.next_frames())
    await asyncio.sleep(0)

    reader.poke()

    assert await waiting == []


async def test_the_end_is_noticed(log):
    reader = viewer(log)
    await log.add(1)
    await log.add(1, FrameKind.END)
    for message in log.messages:
        reader.offer(message)

    assert [frame.kind for frame in await reader.next_frames()] == [FrameKind.FENCE, FrameKind.DATA, FrameKind.END]
    assert reader.has_ended
    assert reader.tail > START


async def test_after_a_reconnection_a_reader_whose_last_frame_still_stands_goes_on(log):
    reader = viewer(log)
    await log.add(3)
    for message in log.messages:
        reader.offer(message)
    await taken(reader, 3)

    reader.verify()
    await log.add(2)
    for message in log.messages[-2:]:
        reader.offer(message)

    assert await taken(reader, 2) == [4, 5]
    assert reader.failed is None


async def test_a_second_claim_with_the_number_of_a_lost_one_fails_who_read_the_first(log):
    reader = viewer(log)
    await log.add(3)
    for message in log.messages:
        reader.offer(message)
    await taken(reader, 3)

    # A new master that never heard of the first claim: the second's frames have the same ids.
    frames = log.channel.log_frames(G)
    frames[:] = [frame._replace(data=b"data: other\n\n") for frame in frames]
    reader.verify()
    async with asyncio.timeout(120):
        seen = await reader.next_frames()

    assert seen == []
    assert reader.failed and reader.failed.code == "frames_lost"


async def test_who_comes_back_with_an_id_of_a_lost_claim_gets_nothing_of_the_one_that_began_anew(log):
    # As after a failover that lost the first claim and its frames: the second, with a date for an epoch, starts over.
    dated = Claim(G, 90_000_000, "t2")
    log.channel.log_frames(G).clear()
    await log.channel.fence(dated, is_handover=False)
    frames = [Frame(FrameId(dated.epoch, n), FrameKind.DATA, b"data: other\n\n") for n in range(1, 5)]
    await log.channel.append([Append(dated, FrameId(dated.epoch, 0), frames)])
    reader = viewer(log, after=Cursor(FrameId(1, 3), 1))

    async with asyncio.timeout(120):
        seen = await reader.next_frames()

    assert seen == []
    assert reader.failed and reader.failed.code == "frames_lost"


async def test_a_cursor_may_stand_at_a_fence(log):
    await log.add(2)
    reader = viewer(log, after=Cursor(FrameId(1, 0), 0))

    assert await taken(reader, 2) == [1, 2]
    assert reader.failed is None


async def test_a_reader_ahead_of_the_log_takes_nothing_live_before_its_last_frame_is_there_again(log):
    reader = viewer(log)
    await log.add(5)
    for message in log.messages:
        reader.offer(message)
    await taken(reader, 5)
    frames = log.channel.log_frames(G)
    lost, frames[4:] = frames[4:], []  # The last two.

    reader.verify()
    reading = asyncio.create_task(reader.next_frames())
    await asyncio.sleep(0)
    frames += [lost[0], lost[1]._replace(data=b"data: other\n\n"), lost[1]._replace(id=FrameId(1, 6))]
    reader.offer(Message(FrameId(1, 5), frames[-1]))

    assert await asyncio.wait_for(reading, 120) == []
    assert reader.failed and reader.failed.code == "frames_lost"


class ScriptedChannel:
    """Answers each read of the log with the next step, and keeps the arguments."""

    def __init__(self, *steps: list[Frame] | Exception) -> None:
        self._steps = list(steps)
        self.reads: list[tuple[FrameId, int]] = []

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        self.reads.append((after, count))
        step = self._steps.pop(0) if self._steps else []
        if isinstance(step, Exception):
            raise step
        return step


def frames_of(first: int, last: int, size: int = 10) -> list[Frame]:
    return [Frame(FrameId(1, n), FrameKind.DATA, b"x" * size) for n in range(first, last + 1)]


def scripted(channel: ScriptedChannel, bytes_max: int) -> Viewer:
    reader = Viewer(G, channel, bytes_max)  # type: ignore[arg-type]
    reader.reread()
    return reader


async def test_a_reader_returns_to_its_caller_while_the_store_is_away_and_reads_on_afterwards(monkeypatch):
    monkeypatch.setattr("api.relay.viewer.PAUSE_WHILE_AWAY_S", 0)
    channel = ScriptedChannel(StoreUnavailable("away"), StoreUnavailable("away"), frames_of(1, 2))
    reader = scripted(channel, 10_000)

    assert await reader.next_frames() == []  # Its caller may have a keep-alive to send.
    assert await reader.next_frames() == []
    assert await reader.next_frames() == frames_of(1, 2)
    assert reader.failed is None


async def test_a_log_whose_content_is_unreadable_fails_the_reader():
    reader = scripted(ScriptedChannel(ValueError("no frame id")), 10_000)

    assert await reader.next_frames() == []
    assert reader.failed is LOG_LOST


@pytest.mark.parametrize(
    ("bytes_max", "size", "second"),
    [(300, 100, 3), (99, 100, 1), (1, 100, 1), (10_000_000, 100, LOG_BATCH), (1_000, 0, LOG_BATCH_FIRST)],
)
async def test_a_read_of_the_log_asks_for_as_many_frames_as_fit_into_the_buffer(bytes_max, size, second):
    channel = ScriptedChannel(frames_of(1, LOG_BATCH_FIRST, size), [])
    reader = scripted(channel, bytes_max)

    await reader.next_frames()
    reader.poke()
    await reader.next_frames()

    assert channel.reads == [(START, LOG_BATCH_FIRST), (FrameId(1, LOG_BATCH_FIRST), second)]


async def test_the_log_is_read_until_a_read_brings_fewer_frames_than_it_may():
    channel = ScriptedChannel(frames_of(1, LOG_BATCH_FIRST), frames_of(11, 15))
    reader = scripted(channel, 10_000)

    assert len(await reader.next_frames()) + len(await reader.next_frames()) == 15
    reader.poke()
    assert await reader.next_frames() == []
    assert len(channel.reads) == 2


async def test_a_log_that_goes_on_behind_the_last_frame_is_the_same_log():
    # The frame itself is not among those that were read, but the fence says that it is where the log was continued.
    fence = Frame(FrameId(2, 0), FrameKind.FENCE, b"1-2")
    channel = ScriptedChannel(frames_of(1, 2), [fence])
    reader = scripted(channel, 10_000)
    await reader.next_frames()

    reader.verify()

    assert await reader.next_frames() == [fence]
    assert reader.failed is None
    assert channel.reads[-1][0] == FrameId(1, 2).before()


async def test_a_live_frame_that_came_during_a_read_is_read_from_the_log_too():
    channel = ScriptedChannel(frames_of(1, 2), frames_of(3, 3))
    reader = scripted(channel, 10_000)
    reader.offer(Message(FrameId(1, 2), frames_of(3, 3)[0]))  # Dropped: the log is read first.

    assert [frame.id.n for frame in await reader.next_frames()] == [1, 2]
    assert [frame.id.n for frame in await reader.next_frames()] == [3]
    reader.offer(Message(FrameId(1, 3), frames_of(4, 4)[0]))
    assert [frame.id.n for frame in await reader.next_frames()] == [4]
    assert len(channel.reads) == 2


async def test_a_full_buffer_takes_no_live_frame_until_it_is_taken():
    channel = ScriptedChannel(frames_of(3, 3))
    reader = Viewer(G, channel, 10)  # type: ignore[arg-type]
    for n in (1, 2, 3):  # One byte more than the buffer may hold closes it.
        reader.offer(Message(FrameId(1, n - 1) if n > 1 else START, frames_of(n, n, 10)[0]))

    assert [frame.id.n for frame in await reader.next_frames()] == [1, 2]
    assert channel.reads == []
    assert [frame.id.n for frame in await reader.next_frames()] == [3]


async def test_frames_come_before_a_poke_and_a_poke_counts_once(log):
    reader = viewer(log)
    await log.add(1)
    for message in log.messages:
        reader.offer(message)

    reader.poke()

    assert len(await reader.next_frames()) == 2
    assert await reader.next_frames() == []
    waiting = asyncio.create_task(reader.next_frames())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.fail(LOG_LOST)
    assert await waiting == []


async def test_the_first_failure_of_a_reader_stays(log):
    reader = viewer(log)
    reader.reread()

    reader.fail(LOG_LOST)
    reader.fail(Failed(ErrorKind.INTERNAL, "Another one."))

    assert await reader.next_frames() == []
    assert reader.failed is LOG_LOST


async def test_the_last_data_is_kept_whole_whatever_follows_it(log):
    await log.add(2)
    await log.add(1, FrameKind.END)
    reader = viewer(log, after=Cursor(FrameId(1, 2), 1))

    await reader.next_frames()

    assert reader.last_data == EVENT % 2
    assert reader.first_event(Frame(FrameId(1, 2), FrameKind.DATA, b"")) == 2
    assert reader.first_event(Frame(FrameId(1, 3), FrameKind.END, b"")) == 1


# Readers that share a log

STOPPED = Failed(ErrorKind.CANCELLED, "stopped")


@pytest.fixture
async def shared(log: Log) -> list[Viewer]:
    """Two generations that read the log of a third one, which has two frames."""
    readers = []
    for name in ("gen_a", "gen_b"):
        await log.channel.follow(name, G, Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b""))
        readers.append(Viewer(G, log.channel, 10_000, None, name))
    await log.add(2)
    pass_on(log, readers)
    for reader in readers:
        assert await taken(reader, 2) == [1, 2]
    return readers


def pass_on(log: Log, readers: list[Viewer]) -> None:
    for message in log.messages:
        for reader in readers:
            reader.offer(message)
    log.messages.clear()


async def test_one_that_is_stopped_reads_its_own_log_to_its_end_and_the_other_goes_on(log, shared):
    stopped, other = shared
    await log.add()
    await log.channel.part("gen_a", G, STOPPED, is_readable=True)
    await log.add()
    pass_on(log, shared)

    frames = await stopped.next_frames() + await stopped.next_frames()
    assert [(str(frame.id), frame.kind) for frame in frames] == [("1-3", FrameKind.DATA), ("2-0", FrameKind.END)]
    assert (stopped.has_parted, stopped.has_ended) == (True, True)
    assert await taken(other, 2) == [3, 4]
    assert (other.has_parted, other.has_ended) == (False, False)


async def own_frames(stopped: Viewer) -> list[str]:
    ids: list[str] = []
    async with asyncio.timeout(120):
        while not stopped.has_ended:
            ids += [str(frame.id) for frame in await stopped.next_frames()]
    return ids


async def test_one_whose_stop_was_lost_on_the_way_gets_nothing_that_came_after_it(log, shared):
    stopped, _ = shared
    await log.add()
    await log.channel.part("gen_a", G, STOPPED, is_readable=True)
    await log.add(3)  # The connection was lost, and with it all these messages.

    stopped.verify()

    assert await own_frames(stopped) == ["1-3", "2-0"]


async def test_a_stop_that_comes_while_the_log_is_read_keeps_what_came_after_it_away(log, shared, monkeypatch):
    stopped, _ = shared
    read = log.channel.read

    async def read_late(generation_id: str, after: FrameId, count: int) -> list[Frame]:
        """Two commands on one connection, and a message on another, which arrives before their answers."""
        if generation_id == G:
            await log.add()
            await log.channel.part("gen_a", G, STOPPED, is_readable=True)
            await log.add()
        frames = await read(generation_id, after, count)
        pass_on(log, shared)
        return frames

    monkeypatch.setattr(log.channel, "read", read_late)
    stopped.reread()

    assert await own_frames(stopped) == ["1-3", "2-0"]


async def test_what_comes_after_one_was_stopped_is_not_for_it(log, shared):
    stopped, _ = shared
    await log.channel.part("gen_a", G, STOPPED, is_readable=True)
    pass_on(log, shared)
    await stopped.next_frames()
    await log.add(3)
    pass_on(log, shared)

    stopped.poke()

    assert await stopped.next_frames() == []
    assert str(stopped.tail) == "2-0"


async def test_a_gap_of_one_that_shares_a_log_is_in_that_log(log, shared):
    await log.add(3)
    log.messages[:] = log.messages[2:]
    pass_on(log, shared)

    for reader in shared:
        assert await taken(reader, 3) == [3, 4, 5]
