"""How does a worker say that it still works on a generation of which nothing comes, and hear whether that is still wanted?

Each generation without a frame for ``heartbeat_s`` gets a heartbeat; what a claim has to tell the next one (its note) goes
along at once. The answer has the stop flag and whether anybody listens. All of a process' heartbeats go in one pipeline.
"""

import asyncio
import time
from collections.abc import Collection

from common.canonical.errors import StoreUnavailable
from common.channel.base import Channel
from common.redis.pulse import Pulse
from workers.publish.writer import Writer

LOOKS_PER_HEARTBEAT = 4  # So late is one at most: a quarter of the time between two.


class Heartbeats:
    """``writers`` are the process' own, as they come and go."""

    def __init__(self, channel: Channel, pulse: Pulse, heartbeat_s: float, writers: Collection[Writer]) -> None:
        self._channel = channel
        self._pulse = pulse
        self._heartbeat_s = heartbeat_s
        self._writers = writers

    async def run(self) -> None:
        """Send them for ever; while Redis is away none is sent."""
        while True:
            await asyncio.sleep(self._heartbeat_s / LOOKS_PER_HEARTBEAT)
            now = time.monotonic()
            quiet = [writer for writer in self._writers if self._is_quiet(writer, now)]
            if quiet and self._pulse.is_up:
                await self._send(quiet)

    async def _send(self, quiet: list[Writer]) -> None:
        sent_at = [writer.sent_at for writer in quiet]
        for writer in quiet:
            writer.sent_attempts = writer.packed_attempts or writer.sent_attempts
        try:
            answers = await self._channel.heartbeat(
                [writer.claim for writer in quiet], [writer.packed_attempts for writer in quiet]
            )
        except StoreUnavailable:
            return
        now = time.monotonic()
        for writer, answer, before in zip(quiet, answers, sent_at, strict=True):
            # Frames sent meanwhile make this answer old news; theirs tells more.
            if not writer.is_busy and writer.sent_at == before:
                writer.handle_answer(answer, now)

    def _is_quiet(self, writer: Writer, now: float) -> bool:
        if writer.lost or writer.is_busy:
            return False
        has_news = writer.packed_attempts not in (b"", writer.sent_attempts)
        return has_news or now - writer.sent_at >= self._heartbeat_s
