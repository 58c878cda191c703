"""One claim's frames, without a publisher: what is drained, what is kept, and what the log's answers change."""

import asyncio
import types

import pytest
from structlog.testing import capture_logs

from common.canonical.job import Policy
from common.channel.base import Claim, Frame, FrameId, FrameKind, Stop, WriteResult, WriteStatus
from workers.publish import writer as module
from workers.publish.large_answers import LARGE_BYTES
from workers.publish.writer import PENDING_BYTES_MAX, RECENT_BYTES_MAX, RECENT_S, Writer

CLAIM = Claim("gen_1", 3, "t")
BUILT_ON = FrameId(2, 7)
NOW = 1000.0


class Large:
    """Room for answers of any size; it notes what is held."""

    answer_bytes_max = 64 * 1024 * 1024

    def __init__(self) -> None:
        self.holds: list[tuple[int, int]] = []
        self.ends: list[tuple[str, int, int]] = []

    async def reserve(self, held: int, size: int) -> int:
        self.holds.append((held, size))
        return size

    def end(self, generation_id: str, held: int, size: int) -> None:
        self.ends.append((generation_id, held, size))


class Publisher:
    vanished_viewers_s = 15.0
    away_since: float | None = None

    def __init__(self) -> None:
        self.large = Large()
        self.buffered_bytes = 0
        self.healthy_for_s = 1e9
        self.touches: list[tuple[int, bool]] = []
        self.room_checks = 0

    def healthy_s(self) -> float:
        return self.healthy_for_s

    def check_room(self) -> None:
        self.room_checks += 1

    def schedule(self, writer: Writer, size: int, is_urgent: bool) -> None:
        self.buffered_bytes += size
        self.touches.append((size, is_urgent))


class Lab:
    def __init__(self) -> None:
        self.publisher, self.signals = Publisher(), 0
        self.writer = Writer(self.publisher, CLAIM, BUILT_ON, self.signal)  # type: ignore[arg-type]

    def signal(self) -> None:
        self.signals += 1

    def send(self) -> list[Frame]:
        append = self.writer.drain()
        return append.frames if append else []

    def settle(
        self,
        status: WriteStatus = WriteStatus.OK,
        last: FrameId | None = None,
        stop: Stop = Stop.NO,
        listeners: int = 1,
        at: float = NOW,
    ) -> None:
        self.writer.handle_answer(WriteResult(status, last or FrameId(3, 0), stop, listeners), at)

    def store(self, *pieces: bytes, at: float = NOW) -> None:
        """Write, send, and have it acknowledged."""
        for piece in pieces:
            self.writer.write(piece)
            self.settle(last=self.send()[-1].id, at=at)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: NOW))
    return Lab()


def data(n: int, text: bytes) -> Frame:
    return Frame(FrameId(3, n), FrameKind.DATA, text)


def test_what_gathers_is_one_frame_that_follows_the_fence(lab):
    lab.writer.write(b"a")
    lab.writer.write(b"b", is_urgent=True)

    append = lab.writer.drain()

    assert append is not None
    assert (append.claim, append.previous, append.frames) == (CLAIM, FrameId(3, 0), [data(1, b"ab")])
    assert lab.publisher.touches == [(1, False), (1, True)]
    assert lab.writer.pending_bytes == 2


def test_a_frame_of_its_own_comes_behind_what_gathered_and_at_once(lab):
    lab.writer.write(b"a")
    lab.writer.write_frame(FrameKind.END, b"{}")

    assert lab.send() == [data(1, b"a"), Frame(FrameId(3, 2), FrameKind.END, b"{}")]
    assert lab.publisher.touches[-1] == (2, True)
    assert lab.writer.pending_bytes == 3


def test_what_was_in_flight_is_sent_again_before_what_came_since(lab):
    lab.writer.write(b"a")
    lab.send()
    lab.writer.write(b"b")

    assert lab.send() == [data(1, b"a"), data(2, b"b")]


def test_what_is_acknowledged_is_not_sent_again_and_takes_no_room(lab):
    lab.store(b"aaa")
    lab.writer.write(b"b")

    append = lab.writer.drain()

    assert append is not None
    assert (append.previous, append.frames) == (FrameId(3, 1), [data(2, b"b")])
    assert (lab.writer.stored_bytes, lab.writer.pending_bytes, lab.publisher.buffered_bytes) == (3, 1, 1)
    assert lab.writer.sent_at == NOW


def test_what_comes_while_frames_are_in_flight_stays_pending(lab):
    lab.writer.write(b"aaa")
    lab.send()
    lab.writer.write(b"bb")
    lab.settle(last=FrameId(3, 1))

    assert (lab.writer.stored_bytes, lab.writer.pending_bytes, lab.publisher.buffered_bytes) == (3, 2, 2)
    assert lab.writer.is_busy


def test_nothing_written_is_nothing_to_send(lab):
    lab.writer.write(b"")

    assert lab.writer.drain() is None
    assert lab.publisher.touches == []
    assert not lab.writer.is_busy


def test_only_while_redis_is_away_is_the_room_of_all_looked_at(lab):
    lab.writer.write(b"a")
    assert lab.publisher.room_checks == 0

    lab.publisher.away_since = NOW
    lab.writer.write(b"b")
    assert lab.publisher.room_checks == 1


@pytest.mark.parametrize(("size", "must_wait"), [(PENDING_BYTES_MAX, False), (PENDING_BYTES_MAX + 1, True)])
def test_what_outruns_a_redis_that_is_there_waits(lab, size, must_wait):
    lab.writer.write(b"x" * size)

    assert lab.writer.must_wait is must_wait
    lab.publisher.away_since = NOW
    assert not lab.writer.must_wait


async def test_whoever_waits_for_room_waits_until_all_is_stored(lab):
    lab.writer.write(b"x" * (PENDING_BYTES_MAX + 1))
    waiting = asyncio.ensure_future(lab.writer.wait_for_room())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()

    lab.settle(last=lab.send()[-1].id)

    await waiting
    assert lab.publisher.large.holds == []


async def test_room_is_there_at_once_while_redis_is_away_or_little_waits(lab):
    lab.writer.write(b"x" * PENDING_BYTES_MAX)
    await lab.writer.wait_for_room()

    lab.writer.write(b"x")
    lab.publisher.away_since = NOW
    await lab.writer.wait_for_room()


async def test_an_answer_is_looked_at_when_it_has_become_large_and_a_step_later_again(lab):
    await lab.writer.reserve_room(LARGE_BYTES)
    assert lab.publisher.large.holds == []

    await lab.writer.reserve_room(LARGE_BYTES + 1)
    await lab.writer.reserve_room(LARGE_BYTES + 1 + module.STEP_BYTES)
    assert lab.publisher.large.holds == [(0, LARGE_BYTES + 1)]

    await lab.writer.reserve_room(LARGE_BYTES + 2 + module.STEP_BYTES)
    assert lab.publisher.large.holds[1:] == [(LARGE_BYTES + 1, LARGE_BYTES + 2 + module.STEP_BYTES)]


async def test_no_answer_may_grow_past_the_largest_without_being_looked_at(lab):
    await lab.writer.reserve_room(Large.answer_bytes_max)
    await lab.writer.reserve_room(Large.answer_bytes_max + 1)

    assert [size for _, size in lab.publisher.large.holds] == [Large.answer_bytes_max, Large.answer_bytes_max + 1]


async def test_at_its_end_an_answer_says_what_it_took(lab):
    await lab.writer.reserve_room(LARGE_BYTES + 1)
    lab.store(b"aaa")
    lab.writer.write(b"bb")

    lab.writer.close()

    assert lab.publisher.large.ends == [("gen_1", LARGE_BYTES + 1, 5)]


def test_frames_that_redis_lost_are_sent_again_behind_those_that_it_has(lab):
    lab.store(b"a", b"b", b"c")
    lab.settle(WriteStatus.BEHIND, FrameId(3, 1))

    append = lab.writer.drain()

    assert append is not None
    assert (append.previous, append.frames) == (FrameId(3, 1), [data(2, b"b"), data(3, b"c")])
    assert (lab.writer.pending_bytes, lab.publisher.touches[-1]) == (2, (2, True))
    assert (lab.writer.has_hole, lab.signals) == (False, 0)


def test_an_acknowledgement_that_ends_too_early_is_a_loss_too(lab):
    lab.store(b"a", b"b")
    lab.settle(last=FrameId(3, 1))  # To a heartbeat.

    assert lab.send() == [data(2, b"b")]


def test_what_is_lost_twice_is_sent_twice(lab):
    lab.store(b"a", b"b", b"c")
    lab.settle(WriteStatus.BEHIND, FrameId(3, 2))
    lab.send()
    lab.settle(WriteStatus.BEHIND, FrameId(3, 1))

    assert lab.send() == [data(2, b"b"), data(3, b"c")]


def test_a_lost_fence_is_sent_again_in_front(lab):
    lab.store(b"a")
    lab.settle(WriteStatus.BEHIND, BUILT_ON)

    assert lab.send() == [Frame(FrameId(3, 0), FrameKind.FENCE, b"2-7"), data(1, b"a")]


@pytest.mark.parametrize(("age_s", "is_held"), [(RECENT_S, True), (RECENT_S + 0.1, False)])
def test_acknowledged_frames_are_held_for_as_long_as_a_failover_may_lose_them(lab, age_s, is_held):
    lab.store(b"a", at=NOW)
    lab.store(b"b", at=NOW + age_s)
    lab.store(b"c", at=NOW + age_s)

    lab.settle(WriteStatus.BEHIND, FrameId(3, 0))

    assert lab.writer.has_hole is not is_held
    assert lab.signals == (not is_held)


@pytest.mark.parametrize(("size", "is_held"), [(RECENT_BYTES_MAX - 1, True), (RECENT_BYTES_MAX, False)])
def test_acknowledged_frames_are_held_up_to_a_size(lab, size, is_held):
    lab.store(b"a", b"b" * size)

    lab.settle(WriteStatus.BEHIND, FrameId(3, 0))

    assert lab.writer.has_hole is not is_held


def test_behind_a_hole_the_end_follows_what_the_log_has(lab):
    lab.store(b"a" * RECENT_BYTES_MAX, b"b" * RECENT_BYTES_MAX)
    lab.writer.write(b"c")
    lab.settle(WriteStatus.BEHIND, FrameId(3, 0))
    assert lab.writer.drain() is None
    assert (lab.writer.pending_bytes, lab.publisher.buffered_bytes) == (0, 0)

    lab.writer.write_frame(FrameKind.END, b"{}")

    append = lab.writer.drain()
    assert append is not None
    assert (append.previous, [frame.kind for frame in append.frames]) == (FrameId(3, 0), [FrameKind.END])


@pytest.mark.parametrize("status", [WriteStatus.FENCED, WriteStatus.ENDED, WriteStatus.GONE])
async def test_a_claim_that_is_lost_drops_all_signals_once_and_lets_go_who_waits(lab, status):
    lab.writer.write(b"a")
    waiting = asyncio.ensure_future(lab.writer.wait_flushed())
    await asyncio.sleep(0)
    lab.send()
    lab.writer.write(b"b")

    lab.settle(status)

    await waiting
    assert (lab.writer.lost, lab.signals, lab.writer.is_busy) == (status, 1, False)
    assert (lab.writer.pending_bytes, lab.publisher.buffered_bytes) == (0, 0)
    lab.writer.write(b"c")
    assert lab.writer.drain() is None


def test_a_stop_is_signalled_once_and_the_first_counts(lab):
    lab.settle(stop=Stop.CANCELLED)
    lab.settle(stop=Stop.LEFT)

    assert (lab.writer.stop, lab.signals) == (Stop.CANCELLED, 1)


def test_a_complete_answer_ignores_a_stop(lab):
    lab.writer.ignore_stop()
    lab.settle(stop=Stop.CANCELLED)

    assert lab.signals == 0


@pytest.mark.parametrize(("seconds", "stop"), [(14.9, Stop.NO), (15, Stop.API_ENDED)])
def test_nobody_listening_for_long_means_that_the_api_has_ended(lab, seconds, stop):
    lab.writer.watch_listeners(Policy.STOP, 0)
    lab.settle(listeners=0)
    lab.settle(listeners=0, at=NOW + 1)

    lab.settle(listeners=0, at=NOW + seconds)

    assert lab.writer.stop is stop


def test_with_grace_it_takes_that_much_longer(lab):
    lab.writer.watch_listeners(Policy.GRACE, 10)
    lab.settle(listeners=0)
    lab.settle(listeners=0, at=NOW + 24.9)
    assert lab.writer.stop is Stop.NO

    lab.settle(listeners=0, at=NOW + 25)
    assert lab.writer.stop is Stop.API_ENDED


@pytest.mark.parametrize("stop", [Stop.NO, Stop.CANCELLED])
def test_one_who_listens_in_between_begins_it_anew(lab, stop):
    lab.writer.ignore_stop()
    lab.writer.watch_listeners(Policy.STOP, 0)
    lab.settle(listeners=0)
    lab.settle(listeners=1, stop=stop, at=NOW + 14)
    lab.writer.stop = Stop.NO

    lab.settle(listeners=0, at=NOW + 16)

    assert lab.writer.stop is Stop.NO


@pytest.mark.parametrize("last", [FrameId(3, 2), FrameId(3, 9)])
def test_a_heartbeat_s_answer_that_lacks_no_frame_changes_nothing(lab, last):
    lab.store(b"1", b"2")

    with capture_logs() as logs:
        lab.settle(last=last)

    assert lab.send() == []
    assert logs == []
    lab.writer.write(b"3")
    assert lab.send() == [data(3, b"3")]


def test_an_unknown_number_of_listeners_changes_nothing(lab):
    lab.writer.watch_listeners(Policy.STOP, 0)
    lab.settle(listeners=-1)
    lab.settle(listeners=0, at=NOW + 14)

    lab.settle(listeners=0, at=NOW + 16)

    assert lab.writer.stop is Stop.NO


def test_an_outage_of_ours_is_not_their_absence(lab):
    lab.writer.watch_listeners(Policy.STOP, 0)
    lab.publisher.healthy_for_s = 14
    lab.settle(listeners=0)

    lab.settle(listeners=0, at=NOW + 100)

    assert lab.writer.stop is Stop.NO


def test_who_detached_never_leaves(lab):
    lab.writer.watch_listeners(Policy.DETACH, 0)
    lab.settle(listeners=0)
    lab.settle(listeners=0, at=NOW + 1000)

    assert lab.writer.stop is Stop.NO


async def test_a_whole_body_is_written_piece_by_piece_as_its_reader_cuts_it(lab):
    await lab.writer.write_all(b"aabbc", cut=lambda _, start: min(start + 2, 5))

    assert lab.publisher.touches == [(2, True), (2, True), (1, True)]
    assert lab.send() == [data(1, b"aabbc")]
