"""How much room may large answers use?

An answer's log stays for a while after its end, whether it is read or not. Most answers are small. A few that are a thousand
times as large could fill Redis, and those collected before they are written could fill the worker's memory. So the bytes of a
worker's answers above ``LARGE_BYTES`` have a limit: collected or written, running or ended. If a running answer finds no room,
the logs that ended longest ago are evicted, but not in their first ``KEPT_S``: for that time every client can read at its own
pace. If that is not enough, the answer ends as overloaded.

Each worker counts its own answers, in memory. So other answers do not become slower, and the limit of a fleet is the sum of its
workers' limits. Nobody counts what a lost worker had written; it expires as usual.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.channel.base import Channel
from common.config.groups.channel import ChannelSettings
from common.config.settings import MIB

LARGE_BYTES = 8 * MIB  # Thirty thousand tokens, with one event per token.
STEP_BYTES = MIB  # How much more a large answer may write until it is checked again.
KEPT_S = 60.0
RETRY_AFTER_S = 5.0


class _Ended(NamedTuple):
    generation_id: str
    size: int
    evictable_at: float


class LargeAnswers:
    """The bytes of one worker's large answers. ``bytes_held`` may include expired logs until room is needed."""

    def __init__(self, channel: Channel, settings: ChannelSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.answer_bytes_max = settings.answer_bytes_max
        self.bytes_max = max(settings.large_answers_bytes_max, settings.answer_bytes_max)
        self.bytes_held = 0
        self._channel = channel
        self._clock = clock
        self._ended: deque[_Ended] = deque()  # In the order of their ends.

    async def reserve(self, reserved_bytes: int, size: int) -> int:
        """Reserve room for a running answer of ``size`` bytes that had ``reserved_bytes`` so far. Return its new reservation.

        Raises:
            GatewayError: REQUEST_TOO_LARGE, the answer is larger than allowed; OVERLOADED, there is no room for it.
        """
        if size > self.answer_bytes_max:
            raise answer_too_large(self.answer_bytes_max)
        if size <= LARGE_BYTES:
            return reserved_bytes
        added_bytes = size + STEP_BYTES - reserved_bytes
        self.bytes_held += added_bytes  # Before the wait, so that two answers do not take the same room.
        if not await self._has_room():
            self.bytes_held -= added_bytes
            raise GatewayError(
                ErrorKind.OVERLOADED,
                "The gateway holds as many large answers as it can, and stopped this one. Send the request again.",
                code="answers_full",
                retry_after_s=RETRY_AFTER_S,
            )
        return reserved_bytes + added_bytes

    def end(self, generation_id: str, reserved_bytes: int, size: int) -> None:
        """Reduce a reservation to the final ``size``: nothing more is written to this log."""
        kept_bytes = min(reserved_bytes, size + STEP_BYTES) if size > LARGE_BYTES else 0
        self.bytes_held -= reserved_bytes - kept_bytes  # What failed before it was written takes no room.
        if kept_bytes:
            self._ended.append(_Ended(generation_id, kept_bytes, self._clock() + KEPT_S))

    async def _has_room(self) -> bool:
        while self.bytes_held > self.bytes_max and self._ended and self._ended[0].evictable_at <= self._clock():
            oldest = self._ended.popleft()
            try:
                is_evicted = await self._channel.evict(oldest.generation_id)
            except StoreUnavailable:
                is_evicted = False
            if is_evicted:
                self.bytes_held -= oldest.size
            else:  # Another claim continues it, or the ledger has not read it yet.
                self._ended.append(oldest._replace(evictable_at=self._clock() + KEPT_S))
        return self.bytes_held <= self.bytes_max


def answer_too_large(bytes_max: int) -> GatewayError:
    return GatewayError(
        ErrorKind.REQUEST_TOO_LARGE,
        f"The answer is larger than {bytes_max} bytes, and was stopped. Ask for a shorter one.",
        code="answer_too_large",
    )
