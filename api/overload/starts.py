"""Which of this process's jobs has no worker claimed yet, and for how long have they waited?

The first frame from a worker is the fence of its claim. It reaches the job's viewer like any frame. If workers have free slots,
that takes a millisecond or two. A job that waits longer waits for their processors.
"""

import time
from collections.abc import Callable

from api.relay.viewer import Viewer
from common.channel.base import START

OVERDUE_S = 5.0  # A job that waits this long beside free slots waits for something else, and says nothing about the others.


class Starts:
    """Interactive jobs in the order in which they were enqueued. The number of open responses bounds them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._enqueued_at: dict[Viewer, float] = {}
        self.claimed = 0  # Since the process started.

    def __len__(self) -> int:
        return len(self._enqueued_at)

    def record_enqueued(self, viewer: Viewer) -> None:
        self._enqueued_at[viewer] = self._clock()

    def record_left(self, viewer: Viewer) -> None:
        self._enqueued_at.pop(viewer, None)

    def oldest_s(self) -> float:
        """Return how long the oldest job has waited; 0 if none waits."""
        now = self._clock()
        while self._enqueued_at:
            viewer, enqueued_at = next(iter(self._enqueued_at.items()))
            if viewer.tail == START and not viewer.failed and now - enqueued_at < OVERDUE_S:
                return now - enqueued_at
            del self._enqueued_at[viewer]
            self.claimed += viewer.tail != START
        return 0.0
