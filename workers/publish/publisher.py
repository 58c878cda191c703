"""How do frames get from all generations of a process into Redis?

Group commit: one task drains the frames of all generations into one pipeline. While that pipeline is in flight, the next one
collects frames. A busy process flushes at ticks (``workers.publish.linger``): fewer writes and wake-ups save CPU. The head, the
first data and the end never wait for a tick. ``Writer`` is the side of one claim.

Not solved here: the content of the frames, and what a generation does about a stop flag (``workers.generate``).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.channel.base import Append, Channel, Claim, FrameId
from common.config.settings import MIB, Settings
from common.process.process import supervised
from common.redis.pulse import Pulse
from workers.publish.heartbeat import Heartbeats
from workers.publish.large_answers import LargeAnswers
from workers.publish.linger import Linger
from workers.publish.writer import PAUSE_WHILE_AWAY_S, Writer

log = structlog.get_logger()

FLUSH_BYTES_MAX = 1 * MIB  # For one pipeline. The next one takes the rest.


class Publisher:
    """The only task of a worker process that appends to logs."""

    def __init__(self, channel: Channel, pulse: Pulse, settings: Settings, linger: Linger) -> None:
        self._channel = channel
        self.large = LargeAnswers(channel, settings)
        self._settings = settings
        self._linger = linger
        self.vanished_viewers_s = settings.vanished_viewers_s
        self.healthy_s = pulse.healthy_s
        self._dirty: dict[Writer, None] = {}
        self._writers: set[Writer] = set()
        self._heartbeats = Heartbeats(channel, pulse, settings.heartbeat_s, self._writers)
        self._due = asyncio.Event()
        linger.on_tick = self._due.set
        self.away_since: float | None = None  # Since when Redis does not accept frames; None: it does.
        self._tasks: list[asyncio.Task[None]] = []
        self.buffered_bytes = 0

    def start(self) -> None:
        self._tasks = [
            supervised(self._flush_for_ever, "publisher"),
            supervised(self._heartbeats.run, "heartbeats"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def writer(self, claim: Claim, built_on: FrameId, on_signal: Callable[[], object]) -> Iterator[Writer]:
        """Yield the writer of a claim whose fence was just appended after the frame ``built_on``."""
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
                "The gateway's store did not answer for too long, so this answer was stopped. Send the request again.",
                code="store_unavailable",
            )

    def schedule(self, writer: Writer, size: int, is_urgent: bool) -> None:
        """Send a writer's frames with the next flush: now if ``is_urgent`` or if the last tick is long enough ago."""
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
        except StoreUnavailable:
            self.away_since = self.away_since or time.monotonic()
            self._dirty.update(dict.fromkeys(writer for writer in writers if writer in self._writers))
            await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            self._due.set()
            return
        self.away_since = None
        now = time.monotonic()
        for writer, answer in zip(writers, answers, strict=True):
            if writer in self._writers:  # Otherwise its claim is over, and its bytes are no longer counted.
                writer.handle_answer(answer, now)

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
