"""How do frames get from all generations of a process into Redis?

Group commit: one task drains every generation's frames into one pipeline; while that is in flight, the next gathers.
A busy process flushes at ticks (``workers.publish.linger``), for writing and waking less often is what saves CPU; the head
and the first data never wait, nor does an end once it is here. ``Writer`` is one claim's side of it: it numbers frames,
keeps what Redis has not acknowledged, and the acknowledged of the last seconds too, since a failover may lose those.

Not solved here: what the frames say, and what a generation does about a stop flag (``workers.generate``).
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import structlog

from common.canonical.errors import ErrorKind, GatewayError
from common.channel.base import (
    Answer,
    Append,
    Channel,
    ChannelUnavailable,
    Claim,
    Frame,
    FrameId,
    FrameKind,
    Policy,
    Stop,
    Verdict,
)
from common.config.settings import KIB, MIB, Settings
from common.process.process import supervised
from common.redis.client import Pulse
from workers.publish.large_answers import LARGE_BYTES, STEP_BYTES, LargeAnswers
from workers.publish.linger import Linger

log = structlog.get_logger()

FLUSH_BYTES_MAX = 1 * MIB  # One pipeline; the rest goes with the next.
FRAME_BYTES_MAX = 256 * KIB  # A JSON body is cut into frames of this size, so that no message nears Redis' pub/sub limit.
PENDING_BYTES_MAX = 1 * MIB  # Of one generation; past it its upstream is read no faster than Redis takes, if that is there.
RECENT_S = 5.0  # Appendonly everysec loses a second, a failover a little more.
RECENT_BYTES_MAX = 256 * KIB
PAUSE_WHILE_AWAY_S = 0.2

_new = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_DATA, _OK, _NO = FrameKind.DATA, Verdict.OK, Stop.NO  # An enum's member costs a look-up of its own.


class Writer:
    """The frames of one claim. ``on_signal`` is called when the generation must stop, or is no longer ours."""

    def __init__(self, publisher: "Publisher", claim: Claim, built_on: FrameId, on_signal: Callable[[], object]) -> None:
        fence = _fence(claim, built_on)
        self.claim = claim
        self.stop = Stop.NO
        self.lost: Verdict | None = None  # Why this claim may write no more.
        self.has_hole = False  # Redis lost acknowledged frames that we no longer hold: the generation must end as failed.
        self.sent_at = time.monotonic()
        self.pending_bytes = 0
        self.note = b""  # For the claim that follows if this one is lost before it has a frame; told with a heartbeat.
        self.noted = b""
        self._publisher = publisher
        self._on_signal = on_signal
        self._data: list[bytes] = []  # Data that is not a frame yet: what gathers before a flush becomes one.
        self._unsent: list[Frame] = []
        self._in_flight: list[Frame] = []
        self._in_flight_bytes = 0
        self._recent: deque[_Batch] = deque([_Batch(self.sent_at, built_on, [fence], len(fence.data))])  # Acknowledged.
        self._recent_bytes = 0
        self.stored_bytes = 0  # Of the answer, acknowledged; with those of the claims before where the log was read.
        self._large = publisher.large
        self._large_bytes = 0  # Held for it among the large answers.
        self._checked_bytes = min(LARGE_BYTES, self._large.answer_bytes_max)  # How large it may grow before it is looked at.
        self._acknowledged = fence.id  # The last acknowledged frame, which the first in flight follows.
        self._next_n = 1
        self._flushed: asyncio.Future[None] | None = None
        self._unheard_since: float | None = None
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
            return  # A continuation may have nothing to add but the end.
        if publisher.away_since is not None:
            publisher.check_room()
        self._data.append(data)
        self.pending_bytes += size
        publisher.touch(self, size, is_urgent)

    def write_frame(self, kind: FrameKind, data: bytes) -> None:
        """Add a head or an end. Neither waits for the linger, and both are taken even where data is not."""
        self._seal()
        self._make(kind, data)
        self._grow(len(data), is_urgent=True)

    async def flushed(self) -> None:
        """Return once everything written so far is acknowledged, or the claim may write no more."""
        while not self.lost and self.is_busy:
            self._flushed = self._flushed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._flushed)

    @property
    def must_wait(self) -> bool:
        """Whether ``have_room`` is to be awaited before more is read: it outruns a Redis that is there, or has become large."""
        # Hot path: once per upstream read.
        pending = self.pending_bytes
        if pending > PENDING_BYTES_MAX and self._publisher.away_since is None:
            return True
        return self.stored_bytes + pending > self._checked_bytes

    async def have_room(self) -> None:
        """Return once more may be written.

        Raises:
            GatewayError: REQUEST_TOO_LARGE, OVERLOADED; see ``LargeAnswers.hold``.
        """
        if (size := self.stored_bytes + self.pending_bytes) > self._checked_bytes:
            self._large_bytes = await self._large.hold(self._large_bytes, size)
            self._checked_bytes = min(size + STEP_BYTES, self._large.answer_bytes_max)
        if self.pending_bytes > PENDING_BYTES_MAX and self._publisher.away_since is None:
            await self.flushed()

    async def write_all(self, data: bytes, *, cut: Callable[[bytes, int], int]) -> None:
        """Write what is there as a whole, in frames, no faster than Redis takes them; ``cut`` says where the one may end that
        begins there.
        """
        start = 0
        while start < len(data):
            end = cut(data, start)
            self.write(data[start:end], is_urgent=True)
            start = end
            if self.must_wait:
                await self.have_room()

    def close(self) -> None:
        """Note that this claim writes no more."""
        self._large.end(self.claim.generation_id, self._large_bytes)

    def ignore_stop(self) -> None:
        """Signal nothing from now on: the answer is complete, and only waits to be stored."""
        self._on_signal = lambda: None

    def watch_listeners(self, policy: Policy, grace_s: float) -> None:
        """Apply the policy of absence where all replicas with viewers vanished without a word."""
        self._absence_s = None if policy is Policy.DETACH else grace_s

    @property
    def is_busy(self) -> bool:
        """Whether frames wait for their acknowledgement."""
        return bool(self._data or self._unsent or self._in_flight)

    def _grow(self, size: int, is_urgent: bool) -> None:
        self.pending_bytes += size
        self._publisher.touch(self, size, is_urgent)

    def _seal(self) -> None:
        """Make one frame of the gathered data, or a few where Redis was away and much has gathered."""
        gathered, self._data = self._data, []
        if len(gathered) == 1:
            self._make(_DATA, gathered[0])
            return
        start = size = 0
        for i, data in enumerate(gathered):
            size += len(data)
            if size >= FRAME_BYTES_MAX:
                self._make(_DATA, b"".join(gathered[start : i + 1]))
                start, size = i + 1, 0
        if size:
            self._make(_DATA, b"".join(gathered[start:]))

    def _make(self, kind: FrameKind, data: bytes) -> None:
        n = self._next_n
        self._next_n = n + 1
        self._unsent.append(_new(Frame, (_new(FrameId, (self.claim.epoch, n)), kind, data)))

    # The publisher's side

    def drain(self) -> Append | None:
        """Return what is to be sent now: what was in flight when an answer got lost, and what came since."""
        # Hot path: once per flush and generation.
        if self._data:
            self._seal()
        if self._unsent:
            self._in_flight = self._in_flight + self._unsent if self._in_flight else self._unsent
            self._unsent = []
        if not self._in_flight or self.lost:
            return None
        self._in_flight_bytes = self.pending_bytes  # Nothing is left behind.
        return Append(self.claim, self._acknowledged, self._in_flight)

    def settle(self, answer: Answer, now: float) -> None:
        """Take what the log said to the last append or heartbeat."""
        # Hot path: once per flush and generation.
        self.sent_at = now
        verdict, last, stop, listeners = answer
        if verdict is _OK and self._in_flight:
            self._acknowledge(now)
        elif verdict is Verdict.BEHIND or (verdict is _OK and last < self._acknowledged):
            self._rewind(last)
        elif verdict is not _OK:
            self._lose(verdict)
        if listeners > 0 and stop is _NO:
            self._unheard_since = None
        else:
            self._hear(answer, now)

    def _acknowledge(self, now: float) -> None:
        frames, self._in_flight = self._in_flight, []
        self.stored_bytes += self._in_flight_bytes
        size, recent = self._in_flight_bytes, self._recent
        recent.append(_new(_Batch, (now, self._acknowledged, frames, size)))
        self._acknowledged = frames[-1].id
        self._recent_bytes += size
        while len(recent) > 1 and (recent[0].at < now - RECENT_S or self._recent_bytes > RECENT_BYTES_MAX):
            self._recent_bytes -= recent.popleft().size
        self._shrink(size)

    def _rewind(self, last: FrameId) -> None:
        """Redis lost frames that it had acknowledged: send again all that follows ``last``, if we still hold it."""
        held = self._recent[0].follows <= last
        log.warning("log_lost_frames", generation_id=self.claim.generation_id, last=str(last), held=held)
        if not held:
            self._give_up(last)
            return
        known = [frame for batch in self._recent for frame in batch.frames]
        kept, lost = [frame for frame in known if frame.id <= last], [frame for frame in known if frame.id > last]
        size = sum(len(frame.data) for frame in kept)
        self._recent = deque([_Batch(time.monotonic(), self._recent[0].follows, kept, size)])
        self._recent_bytes = size
        self._acknowledged = last
        self._in_flight = lost + self._in_flight
        self._grow(sum(len(frame.data) for frame in lost), is_urgent=True)

    def _give_up(self, last: FrameId) -> None:
        """Build on what the log has, and leave it to the generation to end it."""
        self._data, self._unsent, self._in_flight = [], [], []
        self._recent = deque([_Batch(time.monotonic(), last, [], 0)])
        self._recent_bytes = 0
        self._acknowledged = last
        if last.epoch < self.claim.epoch:  # Not even our fence is there, and nothing is taken from us without it.
            self._in_flight = [_fence(self.claim, last)]
        self.has_hole = True
        self._shrink(self.pending_bytes)
        self._on_signal()

    def _lose(self, verdict: Verdict) -> None:
        self.lost = verdict
        self._data, self._unsent, self._in_flight = [], [], []
        self._shrink(self.pending_bytes)
        self._on_signal()

    def _hear(self, answer: Answer, now: float) -> None:
        if answer.listeners > 0:
            self._unheard_since = None
        elif answer.listeners == 0:
            self._unheard_since = self._unheard_since or now
            self._judge_absence(now)
        if answer.stop is not Stop.NO:
            self._take_stop(answer.stop)

    def _judge_absence(self, now: float) -> None:
        """The backstop for replicas that died: a client that leaves a living one is reported by it."""
        if self._absence_s is None or self._unheard_since is None:
            return
        # Our own outage must not look like theirs.
        unheard_s = min(now - self._unheard_since, self._publisher.whole_s())
        if unheard_s >= self._publisher.vanished_viewers_s + self._absence_s:
            self._take_stop(Stop.LEFT)

    def _take_stop(self, stop: Stop) -> None:
        if self.stop is Stop.NO and not self.lost:
            self.stop = stop
            self._on_signal()

    def _shrink(self, size: int) -> None:
        self.pending_bytes -= size
        self._publisher.buffered_bytes -= size
        if self._flushed and (self.lost or not self.is_busy):
            self._flushed.set_result(None)
            self._flushed = None


class _Batch(NamedTuple):
    """Frames that were acknowledged together. ``follows`` is the id before the first."""

    at: float
    follows: FrameId
    frames: list[Frame]
    size: int


def _fence(claim: Claim, built_on: FrameId) -> Frame:
    return Frame(FrameId(claim.epoch, 0), FrameKind.FENCE, str(built_on).encode())


class Publisher:
    """The one task of a worker process that appends."""

    def __init__(self, channel: Channel, pulse: Pulse, settings: Settings, linger: Linger) -> None:
        self._channel = channel
        self.large = LargeAnswers(channel, settings)
        self._pulse = pulse
        self._settings = settings
        self._linger = linger
        self.vanished_viewers_s = settings.vanished_viewers_s
        self.whole_s = pulse.whole_s
        self._dirty: dict[Writer, None] = {}
        self._writers: set[Writer] = set()
        self._due = asyncio.Event()
        linger.on_tick = self._due.set
        self.away_since: float | None = None  # Since when Redis takes no frames.
        self._tasks: list[asyncio.Task[None]] = []
        self.buffered_bytes = 0

    def start(self) -> None:
        self._tasks = [
            supervised(self._flush_for_ever, "publisher"),
            supervised(self._beat_for_ever, "heartbeats"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def writer(self, claim: Claim, built_on: FrameId, on_signal: Callable[[], object]) -> Iterator[Writer]:
        """Yield the writer of a claim whose fence has just been appended on top of ``built_on``."""
        writer = Writer(self, claim, built_on, on_signal)
        self._writers.add(writer)
        self._linger.streams = len(self._writers)
        try:
            yield writer
        finally:
            writer.close()
            self._writers.discard(writer)
            self._linger.streams = len(self._writers)
            self._dirty.pop(writer, None)
            self.buffered_bytes -= writer.pending_bytes

    def check_room(self) -> None:
        if self.away_since is None:
            return
        is_too_long = time.monotonic() - self.away_since > self._settings.worker_buffer_s
        if is_too_long or self.buffered_bytes > self._settings.worker_buffer_bytes_max:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                "The answer could not be stored for too long, and was stopped. Send the request again.",
            )

    def touch(self, writer: Writer, size: int, is_urgent: bool) -> None:
        """Let a writer's frames go with the next flush, which is now if ``is_urgent`` or the last tick is long enough ago."""
        # Hot path: once per upstream read.
        self.buffered_bytes += size
        self._dirty[writer] = None
        if is_urgent:
            self._due.set()
        else:
            self._linger.wait()

    async def _flush_for_ever(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self._flush()

    async def _flush(self) -> None:
        writers, appends = self._drain()
        if not appends:
            return
        try:
            answers = await self._channel.append(appends)
        except ChannelUnavailable:
            self.away_since = self.away_since or time.monotonic()
            self._dirty.update(dict.fromkeys(writer for writer in writers if writer in self._writers))
            await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            self._due.set()
            return
        self.away_since = None
        now = time.monotonic()
        for writer, answer in zip(writers, answers, strict=True):
            if writer in self._writers:  # Else its claim is over, and its bytes are no longer counted.
                writer.settle(answer, now)

    def _drain(self) -> tuple[list[Writer], list[Append]]:
        writers, appends, size = [], [], 0
        dirty, self._dirty = self._dirty, {}
        for writer in dirty:
            if size >= FLUSH_BYTES_MAX:
                self._dirty[writer] = None
            elif append := writer.drain():
                writers.append(writer)
                appends.append(append)
                size += writer.pending_bytes
        if self._dirty:
            self._due.set()
        return writers, appends

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_s / 4)
            now = time.monotonic()
            quiet = [w for w in self._writers if not w.lost and not w.is_busy and self._is_quiet(w, now)]
            if not quiet or not self._pulse.is_up:
                continue
            sent_at = [writer.sent_at for writer in quiet]
            for writer in quiet:
                writer.noted = writer.note or writer.noted
            try:
                answers = await self._channel.heartbeat([writer.claim for writer in quiet], [writer.note for writer in quiet])
            except ChannelUnavailable:
                continue
            now = time.monotonic()
            for writer, answer, before in zip(quiet, answers, sent_at, strict=True):
                # Frames sent meanwhile make this answer old news; theirs tells more.
                if not writer.is_busy and writer.sent_at == before:
                    writer.settle(answer, now)

    def _is_quiet(self, writer: Writer, now: float) -> bool:
        has_news = writer.note not in (b"", writer.noted)
        return has_news or now - writer.sent_at >= self._settings.heartbeat_s
