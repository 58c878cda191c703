"""How does a worker show that it still works on a quiet generation, and learn whether anybody still wants it?

Each generation without a frame for ``heartbeat_s`` gets a heartbeat. The attempts so far, which the next claim would need, are
sent with a heartbeat at once. The answer contains the stop flag and the number of listeners. All heartbeats of a process go in
one pipeline.
"""

import asyncio
import time
from collections.abc import Collection

from common.canonical.errors import StoreUnavailable
from common.channel.base import Channel
from common.process.rhythm import until_turn_s
from common.redis.pulse import Pulse
from workers.publish.writer import Writer

CHECKS_PER_HEARTBEAT = 4  # A heartbeat is late by about a quarter of its interval at most.


class Heartbeats:
    """Sends the heartbeats of one process. ``writers`` is the live collection of its writers."""

    def __init__(self, channel: Channel, pulse: Pulse, heartbeat_s: float, writers: Collection[Writer]) -> None:
        self._channel = channel
        self._pulse = pulse
        self._heartbeat_s = heartbeat_s
        self._writers = writers

    async def run(self) -> None:
        """Send heartbeats for ever. While Redis is away none is sent."""
        while True:
            await asyncio.sleep(until_turn_s(self._heartbeat_s / CHECKS_PER_HEARTBEAT))
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
            # If frames were sent meanwhile, this answer is outdated: theirs is newer.
            if not writer.is_busy and writer.sent_at == before:
                writer.handle_answer(answer, now)

    def _is_quiet(self, writer: Writer, now: float) -> bool:
        if writer.lost or writer.is_busy:
            return False
        has_news = writer.packed_attempts not in (b"", writer.sent_attempts)
        return has_news or now - writer.sent_at >= self._heartbeat_s
