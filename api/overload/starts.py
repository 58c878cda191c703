"""Which of this process' jobs has no worker taken yet, and for how long?

A worker's first word is the fence of its claim, which reaches the job's viewer like any frame. Where workers have free slots
that takes a millisecond or two, and a job that waits longer waits for their processors.
"""

import time
from collections.abc import Callable

from api.relay.viewer import Viewer
from common.channel.base import START

OVERDUE_S = 5.0  # Beside free slots such a job waits for something else than its turn, and says nothing about the others.


class Starts:
    """Interactive jobs in the order in which they were enqueued. Bounded by the responses that are open."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._enqueued_at: dict[Viewer, float] = {}
        self.claimed = 0  # So far.

    def __len__(self) -> int:
        return len(self._enqueued_at)

    def record_enqueued(self, viewer: Viewer) -> None:
        self._enqueued_at[viewer] = self._clock()

    def record_left(self, viewer: Viewer) -> None:
        self._enqueued_at.pop(viewer, None)

    def oldest_s(self) -> float:
        """Return for how long the oldest has waited; 0 where none does."""
        now = self._clock()
        while self._enqueued_at:
            viewer, enqueued_at = next(iter(self._enqueued_at.items()))
            if viewer.tail == START and not viewer.failed and now - enqueued_at < OVERDUE_S:
                return now - enqueued_at
            del self._enqueued_at[viewer]
            self.claimed += viewer.tail != START
        return 0.0
