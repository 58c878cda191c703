"""What does one claim write, and what must it keep until Redis has it?

A writer numbers the frames. It keeps the frames that Redis has not acknowledged, and also those acknowledged in the last
seconds, because a failover may lose them. The publisher decides when they are sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog

from common.canonical.job import Policy
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind, Stop, WriteResult, WriteStatus
from common.config.settings import KIB, MIB
from workers.publish.large_answers import LARGE_BYTES, STEP_BYTES, LargeAnswers

log = structlog.get_logger()

FRAME_BYTES_MAX = 256 * KIB  # A JSON body is cut into frames of this size: a message must stay far below Redis' pub/sub limit.
PENDING_BYTES_MAX = 1 * MIB  # Of one generation. Above it, its upstream is read no faster than Redis accepts, if Redis is up.
RECENT_S = 5.0  # ``appendonly everysec`` loses a second, a failover a little more.
RECENT_BYTES_MAX = 256 * KIB
PAUSE_WHILE_AWAY_S = 0.2

_new = tuple.__new__  # A named tuple's own constructor is a Python function: too slow for every frame.
_DATA, _OK, _NO = FrameKind.DATA, WriteStatus.OK, Stop.NO  # Each access to an enum member costs a lookup.


class Flusher(Protocol):
    """What a writer needs of its publisher."""

    large: LargeAnswers
    vanished_viewers_s: float
    healthy_s: Callable[[], float]
    away_since: float | None
    buffered_bytes: int

    def check_room(self) -> None: ...

    def schedule(self, writer: "Writer", size: int, is_urgent: bool) -> None: ...


class Writer:
    """The frames of one claim. ``on_signal`` is called when the generation must stop, or no longer belongs to this claim."""

    def __init__(self, publisher: Flusher, claim: Claim, built_on: FrameId, on_signal: Callable[[], object]) -> None:
        fence = _fence(claim, built_on)
        self.claim = claim
        self.stop = Stop.NO
        self.lost: WriteStatus | None = None  # Why this claim may not write any more.
        self.has_hole = False  # Redis lost acknowledged frames that we no longer have: the generation must end as failed.
        self.sent_at = time.monotonic()
        self.pending_bytes = 0
        self.packed_attempts = (
            b""  # For the claim that follows if this one is lost before it has a frame; told with a heartbeat.
        )
        self.sent_attempts = b""
        self._publisher = publisher
        self._on_signal = on_signal
        self._data: list[bytes] = []  # Data that is not a frame yet: what collects before a flush becomes one frame.
        self._unsent: list[Frame] = []
        self._in_flight: list[Frame] = []
        self._in_flight_bytes = 0
        self._recent: deque[_AcknowledgedBatch] = deque(
            [_AcknowledgedBatch(self.sent_at, built_on, [fence], len(fence.data))]
        )  # Acknowledged.
        self._recent_bytes = len(fence.data)
        self.stored_bytes = 0  # Acknowledged bytes of the answer, including those of earlier claims if the log was read.
        self._large = publisher.large
        self._large_bytes = 0  # Reserved for this answer among the large ones.
        self._checked_bytes = min(LARGE_BYTES, self._large.answer_bytes_max)  # Up to this size it needs no further check.
        self._acknowledged = fence.id  # The last acknowledged frame. The first frame in flight follows it.
        self._next_n = 1
        self._flushed: asyncio.Future[None] | None = None
        self._unwatched_since: float | None = None
        self._absence_s: float | None = None

    # The generation's side

    def write(self, data: bytes, *, is_urgent: bool = False) -> None:
        """Add client bytes: whole SSE events, or a piece of a JSON body.

        Raises:
            GatewayError: OVERLOADED, Redis has been away for longer than frames can be held.
        """
        # Hot path: once per upstream read.
        publisher, size = self._publisher, len(data)
        if not size:
            return  # A continuation may add only the end.
        if publisher.away_since is not None:
            publisher.check_room()
        self._data.append(data)
        self.pending_bytes += size
        publisher.schedule(self, size, is_urgent)

    def write_frame(self, kind: FrameKind, data: bytes) -> None:
        """Add a head or an end. They do not wait for a tick, and they are accepted even when data is not."""
        self._seal()
        self._add_frame(kind, data)
        self._grow(len(data), is_urgent=True)

    async def wait_flushed(self) -> None:
        """Wait until everything written so far is acknowledged, or the claim may not write any more."""
        while not self.lost and self.is_busy:
            self._flushed = self._flushed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._flushed)

    @property
    def must_wait(self) -> bool:
        """Whether ``wait_for_room`` is to be awaited before more is read: it outruns a Redis that is there, or has become
        large.
        """
        # Hot path: once per upstream read.
        pending = self.pending_bytes
        if pending > PENDING_BYTES_MAX and self._publisher.away_since is None:
            return True
        return self.stored_bytes + pending > self._checked_bytes

    async def wait_for_room(self) -> None:
        """Wait until more may be written.

        Raises:
            GatewayError: REQUEST_TOO_LARGE, OVERLOADED; see ``LargeAnswers.reserve``.
        """
        await self.reserve_room(self.stored_bytes + self.pending_bytes)
        if self.pending_bytes > PENDING_BYTES_MAX and self._publisher.away_since is None:
            await self.wait_flushed()

    async def reserve_room(self, size: int) -> None:
        """Wait until there is room for an answer of that size. Not all of it need be written yet.

        Raises:
            GatewayError: REQUEST_TOO_LARGE, OVERLOADED; see ``LargeAnswers.reserve``.
        """
        if size > self._checked_bytes:
            self._large_bytes = await self._large.reserve(self._large_bytes, size)
            self._checked_bytes = min(size + STEP_BYTES, self._large.answer_bytes_max)

    async def write_all(self, data: bytes, *, cut: Callable[[bytes, int], int]) -> None:
        """Write a complete answer in frames, no faster than Redis accepts them.

        ``cut`` returns where a frame may end; its arguments are the data and the frame's start.
        """
        start = 0
        while start < len(data):
            end = cut(data, start)
            self.write(data[start:end], is_urgent=True)
            start = end
            if self.must_wait:
                await self.wait_for_room()

    def close(self) -> None:
        """Release the room of large answers: this claim does not write any more."""
        self._large.end(self.claim.generation_id, self._large_bytes, self.stored_bytes + self.pending_bytes)

    def ignore_stop(self) -> None:
        """Do not call ``on_signal`` any more: the answer is complete, and only has to be stored."""
        self._on_signal = lambda: None

    def watch_listeners(self, policy: Policy, grace_s: float) -> None:
        """Apply the disconnect policy if all API replicas with viewers disappear without reporting it."""
        self._absence_s = None if policy is Policy.DETACH else grace_s

    @property
    def is_busy(self) -> bool:
        """Whether frames still wait for their acknowledgement."""
        return bool(self._data or self._unsent or self._in_flight)

    def _grow(self, size: int, is_urgent: bool) -> None:
        self.pending_bytes += size
        self._publisher.schedule(self, size, is_urgent)

    def _seal(self) -> None:
        """Make one frame of the collected data, or several if Redis was away and there is much data."""
        gathered, self._data = self._data, []
        if len(gathered) == 1:
            self._add_frame(_DATA, gathered[0])
            return
        start = size = 0
        for i, data in enumerate(gathered):
            size += len(data)
            if size >= FRAME_BYTES_MAX:
                self._add_frame(_DATA, b"".join(gathered[start : i + 1]))
                start, size = i + 1, 0
        if size:
            self._add_frame(_DATA, b"".join(gathered[start:]))

    def _add_frame(self, kind: FrameKind, data: bytes) -> None:
        n = self._next_n
        self._next_n = n + 1
        self._unsent.append(_new(Frame, (_new(FrameId, (self.claim.epoch, n)), kind, data)))

    # The publisher's side

    def drain(self) -> Append | None:
        """Return what must be sent now: frames whose acknowledgement was lost, and new ones."""
        # Hot path: once per flush and generation.
        if self._data:
            self._seal()
        if self._unsent:
            self._in_flight = self._in_flight + self._unsent if self._in_flight else self._unsent
            self._unsent = []
        if not self._in_flight or self.lost:
            return None
        self._in_flight_bytes = self.pending_bytes  # All pending frames are sent.
        return Append(self.claim, self._acknowledged, self._in_flight)

    def handle_answer(self, answer: WriteResult, now: float) -> None:
        """Handle the log's answer to the last append or heartbeat."""
        # Hot path: once per flush and generation.
        self.sent_at = now
        status, last, stop, listeners = answer
        if status is _OK and self._in_flight:
            self._acknowledge(now)
        elif status is WriteStatus.BEHIND or (status is _OK and last < self._acknowledged):
            self._rewind(last)
        elif status is not _OK:
            self._stop_writing(status)
        if listeners > 0 and stop is _NO:
            self._unwatched_since = None
        else:
            self._read_flags(answer, now)

    def _acknowledge(self, now: float) -> None:
        frames, self._in_flight = self._in_flight, []
        self.stored_bytes += self._in_flight_bytes
        size, recent = self._in_flight_bytes, self._recent
        recent.append(_new(_AcknowledgedBatch, (now, self._acknowledged, frames, size)))
        self._acknowledged = frames[-1].id
        self._recent_bytes += size
        while len(recent) > 1 and (recent[0].at < now - RECENT_S or self._recent_bytes > RECENT_BYTES_MAX):
            self._recent_bytes -= recent.popleft().size
        self._shrink(size)

    def _rewind(self, last: FrameId) -> None:
        """Redis lost frames that it had acknowledged: send all frames after ``last`` again, if we still have them."""
        is_held = self._recent[0].follows <= last
        log.warning("log_lost_frames", generation_id=self.claim.generation_id, last=str(last), held=is_held)
        if not is_held:
            self._give_up(last)
            return
        recent_frames = [frame for batch in self._recent for frame in batch.frames]
        stored, missing = (
            [frame for frame in recent_frames if frame.id <= last],
            [frame for frame in recent_frames if frame.id > last],
        )
        size = sum(len(frame.data) for frame in stored)
        self._recent = deque([_AcknowledgedBatch(time.monotonic(), self._recent[0].follows, stored, size)])
        self._recent_bytes = size
        self._acknowledged = last
        self._in_flight = missing + self._in_flight
        self._grow(sum(len(frame.data) for frame in missing), is_urgent=True)

    def _give_up(self, last: FrameId) -> None:
        """Continue after what the log has. The generation must end as failed."""
        self._data, self._unsent, self._in_flight = [], [], []
        self._recent = deque([_AcknowledgedBatch(time.monotonic(), last, [], 0)])
        self._recent_bytes = 0
        self._acknowledged = last
        if last.epoch < self.claim.epoch:  # Even our fence is missing, and the log accepts nothing from us without it.
            self._in_flight = [_fence(self.claim, last)]
        self.has_hole = True
        self._shrink(self.pending_bytes)
        self._on_signal()

    def _stop_writing(self, status: WriteStatus) -> None:
        self.lost = status
        self._data, self._unsent, self._in_flight = [], [], []
        self._shrink(self.pending_bytes)
        self._on_signal()

    def _read_flags(self, answer: WriteResult, now: float) -> None:
        if answer.listeners > 0:
            self._unwatched_since = None
        elif answer.listeners == 0:
            self._unwatched_since = self._unwatched_since or now
            self._check_absence(now)
        if answer.stop is not Stop.NO:
            self._set_stop(answer.stop)

    def _check_absence(self, now: float) -> None:
        """Stop if API replicas died with their viewers. A replica that is up reports a client that leaves."""
        if self._absence_s is None or self._unwatched_since is None:
            return
        # While our own Redis connection was down, we could not see listeners. That time does not count.
        unwatched_s = min(now - self._unwatched_since, self._publisher.healthy_s())
        if unwatched_s >= self._publisher.vanished_viewers_s + self._absence_s:
            self._set_stop(Stop.API_ENDED)

    def _set_stop(self, stop: Stop) -> None:
        if self.stop is Stop.NO and not self.lost:
            self.stop = stop
            self._on_signal()

    def _shrink(self, size: int) -> None:
        self.pending_bytes -= size
        self._publisher.buffered_bytes -= size
        if self._flushed and (self.lost or not self.is_busy):
            self._flushed.set_result(None)
            self._flushed = None


class _AcknowledgedBatch(NamedTuple):
    """Frames that were acknowledged together. ``follows`` is the id of the frame before the first."""

    at: float
    follows: FrameId
    frames: list[Frame]
    size: int


def _fence(claim: Claim, built_on: FrameId) -> Frame:
    return Frame(FrameId(claim.epoch, 0), FrameKind.FENCE, str(built_on).encode())
