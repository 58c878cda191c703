"""What has one reader of a channel seen, and what comes next?

Live messages are taken as long as each follows the one before; a gap, a reconnection or an overflow is repaired from the
log. The buffer is bounded: past it live frames are dropped, and the log has them.
"""

import asyncio

import structlog

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.channel.base import START, Channel, Cursor, Frame, FrameId, FrameKind, Message
from common.sse import split_blocks

log = structlog.get_logger()

_DATA = FrameKind.DATA  # An enum's member costs a look-up of its own.
LOG_BATCH, LOG_BATCH_FIRST = 200, 10  # Frames per read of the log, at most, and before it is known how large they are.
PAUSE_WHILE_AWAY_S = 0.2

DIVERGED = Failed(
    ErrorKind.INTERNAL, "A part of the answer was lost in a failover. Send the request again.", code="frames_lost"
)

LOG_LOST = Failed(ErrorKind.INTERNAL, "The answer was lost with the gateway's store. Send the request again.", code="log_lost")


class Viewer:
    """One reader. ``take`` gives the frames that follow its position, each once and in order."""

    def __init__(self, generation_id: str, channel: Channel, buffer_bytes_max: int, after: Cursor | None = None) -> None:
        self.generation_id = generation_id
        self.failed: Failed | None = None  # Why nothing more can come, where the log does not say so itself.
        self.has_ended = False
        self.tail = after.frame.before() if after else START  # The last frame that was taken in.
        self._channel = channel
        self._after = after
        self.last_data = b""  # Of the last data frame that was taken in, whole: where a stream stood when it failed.
        self._tail_data: bytes | None = None  # Of that frame, whatever its kind; None: nothing was taken in.
        self._doubts_tail = False  # Whether the log may be another server's, in which that frame is another one, or not there.
        self._needs_log = after is not None
        self._dropped: FrameId | None = None  # The newest frame that came live and was not taken in.
        self._frames: list[Frame] = []
        self._bytes = 0
        self._bytes_max = buffer_bytes_max
        self._batch = LOG_BATCH_FIRST
        self._was_poked = False
        self._waiter: asyncio.Future[None] | None = None

    def offer(self, message: Message) -> None:
        """Take a live message, or note that the log must be read."""
        # Hot path: once per message and viewer.
        frame = message.frame
        if frame is None:  # A heartbeat: the log ends with ``previous``.
            if message.previous > self.tail:
                self.reread()
        elif frame.id <= self.tail:
            pass  # Seen.
        elif message.previous == self.tail and self._bytes <= self._bytes_max and not self._needs_log and not self._doubts_tail:
            self._accept(frame)
            self._wake()
        else:
            self._dropped = frame.id
            self.reread()

    def reread(self) -> None:
        """Have the log read again: something may be missing."""
        self._needs_log = True
        self._wake()

    def doubt(self) -> None:
        """Have the log read again, and see that what was taken in last still stands there.

        A failover may lose what was read, and live frames must not be taken on top of that before it is there again. A Redis
        that does not tell which master it is gives a lost claim's number again: the same ids then, and other contents.
        """
        self._doubts_tail = self._tail_data is not None
        self.reread()

    def fail(self, failed: Failed) -> None:
        """Let ``take`` come to an end that the log will never have."""
        self.failed = self.failed or failed
        self._wake()

    def poke(self) -> None:
        """Let ``take`` return, with nothing if there is nothing."""
        self._was_poked = True
        self._wake()

    async def take(self) -> list[Frame]:
        """Return the frames that follow, at least one unless poked or failed."""
        while True:
            if self._needs_log and not self._frames and not self.failed:
                await self._read_log()
            if self._frames:
                frames, self._frames = self._frames, []
                self._bytes = 0
                return frames
            if self._was_poked or self.failed:
                self._was_poked = False
                return []
            if not self._needs_log:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    async def _read_log(self) -> None:
        try:
            count, after = self._batch, self.tail.before() if self._doubts_tail else self.tail
            frames = await self._channel.read(self.generation_id, after, count)
        except StoreUnavailable:
            await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            self._was_poked = True  # Whoever takes may have a keep-alive to send, or a client that left.
            return
        except Exception:  # What stands there is no log of ours.
            log.exception("log_unreadable", generation_id=self.generation_id)
            self.fail(LOG_LOST)
            return
        if self._doubts_tail and frames and frames[0].id == self.tail:
            if frames[0].data != self._tail_data:
                self.fail(DIVERGED)
                return
            self._doubts_tail = False
        for frame in frames:
            if self.failed:
                break  # A fence told that what follows goes on from less than was read: it is another text.
            if frame.id > self.tail:  # A live frame cannot have come in between: they are not taken while we read.
                self._accept(frame)
        # Frames may be large, and many: the next read is as large as this one's would have filled the buffer.
        if size := sum(len(frame.data) for frame in frames):
            self._batch = max(1, min(LOG_BATCH, len(frames) * self._bytes_max // size))
        has_more = len(frames) == count or (self._dropped is not None and self._dropped > self.tail)
        self._needs_log = has_more and bool(frames)
        self._dropped = None if not self._needs_log else self._dropped

    def _accept(self, frame: Frame) -> None:
        # Hot path: once per frame and viewer.
        frame_id, kind, data = frame
        if kind is _DATA:
            self.last_data = data
        elif kind is FrameKind.FENCE and frame_id > self._seen() > FrameId.from_text(data):
            self.fail(DIVERGED)
            return
        else:
            self.has_ended = kind is FrameKind.END
        self.tail, self._tail_data = frame_id, data
        if self._after and frame_id == self._after.frame:
            frame = frame._replace(data=b"".join(split_blocks(data)[self._after.k :]))
        self._frames.append(frame)
        self._bytes += len(frame.data)

    def _seen(self) -> FrameId:
        """The last frame that the reader has a part of: with a cursor, before anything came, the cursor's."""
        if self._after and self.tail < self._after.frame:
            return self._after.frame
        return self.tail

    def first_event(self, frame: Frame) -> int:
        """Return the number, from 1, of the first event that is left of a frame that ``take`` gave."""
        return self._after.k + 1 if self._after and frame.id == self._after.frame else 1

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
