"""What has one reader of a channel seen, and what comes next?

A live message is accepted if it follows directly on the one before. After a gap, a reconnection or an overflow, the missing
frames are read from the log. The buffer is bounded. When it is full, live frames are dropped, and read from the log later.
"""

import asyncio
from collections.abc import Callable

import structlog

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.channel.base import START, Channel, Cursor, Frame, FrameId, FrameKind, Message, Stop
from common.sse import split_blocks

log = structlog.get_logger()

_DATA, _PART = FrameKind.DATA, FrameKind.PART  # Access to an enum member costs a lookup each time.
LOG_BATCH, LOG_BATCH_FIRST = 200, 10  # Frames per read of the log: at most, and while their size is not known yet.
PAUSE_WHILE_AWAY_S = 0.2

DIVERGED = Failed(
    ErrorKind.INTERNAL, "A part of the answer was lost in a failover. Send the request again.", code="frames_lost"
)

LOG_LOST = Failed(ErrorKind.INTERNAL, "The answer was lost with the gateway's store. Send the request again.", code="log_lost")


class Viewer:
    """One reader of a channel. ``next_frames`` returns the frames after its position, each once and in order."""

    def __init__(
        self,
        generation_id: str,
        channel: Channel,
        buffer_bytes_max: int,
        after: Cursor | None = None,
        reader_id: str = "",
    ) -> None:
        """``reader_id``: the generation that its client knows, if it reads the log of another one."""
        self.generation_id = generation_id
        self.reader_id = reader_id or generation_id
        self.has_parted = False  # From a log that it shared. It reads its own now.
        self.failed: Failed | None = None  # Why no more frames can come, if the log does not say so itself.
        self.has_ended = False
        self.leave_reason = Stop.LEFT
        self.tail = after.frame.before() if after else START  # The last frame that was accepted.
        self._channel = channel
        self._after = after
        self.last_data = b""  # The last data frame that was accepted, complete: it shows where a stream was when it failed.
        self._tail_data: bytes | None = None  # The bytes of the frame ``tail``, of whatever kind; None: no frame was accepted.
        self._must_verify_tail = False  # Whether the log may lack the frame ``tail``, or have another one with its id.
        self._needs_log = after is not None
        self._dropped: FrameId | None = None  # The newest live frame that was not accepted.
        self._frames: list[Frame] = []
        self._bytes = 0
        self._bytes_max = buffer_bytes_max
        self._batch = LOG_BATCH_FIRST
        self._was_poked = False
        self._waiter: asyncio.Future[None] | None = None
        # Writes a live data frame to the client, or returns False. It is only called while ``next_frames`` waits: then the
        # client has everything before that frame, and no task has to wake up for it.
        self.write_live: Callable[[Frame], bool] | None = None

    def offer(self, message: Message) -> None:
        """Accept a live message if it follows directly, otherwise have the log read."""
        # Hot path: once per message and viewer.
        frame = message.frame
        if frame is None:  # A heartbeat: ``previous`` is the last frame of the log.
            if message.previous > self.tail:
                self.reread()
        elif frame.kind is _PART:
            if frame.data == self.reader_id.encode():
                self._part()
        elif frame.id <= self.tail:
            pass  # Seen already.
        elif (
            message.previous == self.tail
            and self._bytes <= self._bytes_max
            and not self._needs_log
            and not self._must_verify_tail
        ):
            write_live, waiter = self.write_live, self._waiter
            is_awaited = frame.kind is _DATA and waiter is not None and not waiter.done()
            is_whole = self._after is None or frame.id > self._after.frame
            if is_awaited and is_whole and write_live is not None and write_live(frame):
                self.tail, self.last_data, self._tail_data = frame.id, frame.data, frame.data
                return
            self._accept(frame)
            self._wake()
        else:
            self._dropped = frame.id
            self.reread()

    def _part(self) -> None:
        """Read the generation's own log from here on, which begins with the frames of the shared one."""
        self.has_parted, self._must_verify_tail = True, False
        self.offer = lambda message: None  # type: ignore[method-assign]  # What comes now is for the others.
        self.reread()

    def reread(self) -> None:
        """Have the log read again, because something may be missing."""
        self._needs_log = True
        self._wake()

    def verify(self) -> None:
        """Have the log read again, and check that the last accepted frame is still in it.

        A failover may lose frames that this reader has. Live frames must not be accepted on top of these before they are
        there again. A Redis that does not report which master it is may also reuse the number of a lost claim: then the same
        ids stand for other contents.
        """
        self._must_verify_tail = self._tail_data is not None
        self.reread()

    def fail(self, failed: Failed) -> None:
        """End the reading with a failure that is not in the log."""
        self.failed = self.failed or failed
        self._wake()

    def poke(self) -> None:
        """Make ``next_frames`` return now, with an empty list if there is no frame."""
        self._was_poked = True
        self._wake()

    async def next_frames(self) -> list[Frame]:
        """Return the frames that follow. There is at least one, except after ``poke`` or ``fail``."""
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
            count, after = self._batch, self.tail.before() if self._must_verify_tail else self.tail
            log_id = self.reader_id if self.has_parted else self.generation_id
            frames = await self._channel.read(log_id, after, count)
            if log_id != self.reader_id and (self.has_parted or await self._channel.read(self.reader_id, START, 1)):
                # It has a log of its own, so it has parted. The message may have been lost, and the frames be for the others.
                self._part()
                return
        except StoreUnavailable:
            await asyncio.sleep(PAUSE_WHILE_AWAY_S)
            self._was_poked = True  # The caller may have to send a keep-alive, or to notice that its client left.
            return
        except Exception:  # The log's content is not readable.
            log.exception("log_unreadable", generation_id=self.generation_id)
            self.fail(LOG_LOST)
            return
        if self._must_verify_tail and frames and frames[0].id == self.tail:
            if frames[0].data != self._tail_data:
                self.fail(DIVERGED)
                return
            self._must_verify_tail = False
        for frame in frames:
            if self.failed:
                break  # A fence showed that the log continues from less than this reader has: it is another text.
            if frame.id > self.tail:  # No live frame came in between: none is accepted while the log is read.
                self._accept(frame)
        # Frames may be large and many. The next read asks for about as many as fit into the buffer, by the size of these.
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
        """Return the last frame that the reader has at least a part of. Before the first frame that is the cursor's frame."""
        if self._after and self.tail < self._after.frame:
            return self._after.frame
        return self.tail

    def first_event(self, frame: Frame) -> int:
        """Return the number, from 1, of the first event in a frame that ``next_frames`` returned."""
        return self._after.k + 1 if self._after and frame.id == self._after.frame else 1

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
