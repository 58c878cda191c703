"""How busy and how fast is each deployment, as this worker sees it?

The time to the first token is a peak EWMA (https://linkerd.io/2016/03/16/beyond-round-robin-load-balancing-for-latency): it
rises at once and falls slowly, so a deployment that becomes slow is noticed with its first slow answer. It also falls while
nothing is measured: a deployment that nobody calls because it was slow is tried again some time later.

A call that fails at once leaves its deployment idle, and says nothing of its time to the first token. It must not look better
for that: it counts like a slow answer, and like a running call for a while.
"""

import math
from collections import Counter
from collections.abc import Callable

DECAY_S = 30.0  # After this time a figure counts for about a third.
SLOW_S = 10.0  # The time to the first token of a call that failed, or that nobody can know yet.
NAMES_MAX = 2_000  # Clients choose names of models freely.


class _Fading:
    """Figures by name, each of which fades from the moment when it was set."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._figures: dict[str, tuple[float, float]] = {}  # The figure, and when it was set.

    def __len__(self) -> int:
        return len(self._figures)

    def get(self, name: str) -> float | None:
        known = self._figures.get(name)
        return known[0] * self._share_left(known[1]) if known else None

    def set(self, name: str, figure: float) -> None:
        self._figures.pop(name, None)
        if len(self._figures) >= NAMES_MAX:
            del self._figures[next(iter(self._figures))]
        self._figures[name] = figure, self._clock()

    def average_in(self, name: str, figure: float) -> None:
        """Set the average of the old figure and a new one: the longer ago the old one was set, the less it counts."""
        old, set_at = self._figures[name]
        share = self._share_left(set_at)
        self.set(name, old * share + figure * (1 - share))

    def _share_left(self, set_at: float) -> float:
        return math.exp(-(self._clock() - set_at) / DECAY_S)


class Traffic:
    """The running calls of each deployment, its recent failures, and its recent time to the first token.

    Names are those of ``quota.health``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._running: Counter[str] = Counter()
        self._ttft_s = _Fading(clock)
        self._failed = _Fading(clock)

    def begin(self, name: str) -> None:
        self._running[name] += 1

    def end(self, name: str) -> None:
        self._running[name] -= 1
        if self._running[name] <= 0:
            del self._running[name]

    def record_ttft(self, name: str, ttft_s: float) -> None:
        if ttft_s < (self._ttft_s.get(name) or 0.0):
            self._ttft_s.average_in(name, ttft_s)
        else:
            self._ttft_s.set(name, ttft_s)

    def record_failure(self, name: str) -> None:
        """Record a call that failed before its first token, for a reason that another deployment may not have."""
        self._failed.set(name, (self._failed.get(name) or 0.0) + 1)
        self._ttft_s.set(name, max(SLOW_S, self._ttft_s.get(name) or 0.0))

    def load(self, name: str) -> float:
        """Return the running calls, and those that failed a short time ago."""
        return self._running[name] + (self._failed.get(name) or 0.0)

    def expected_s(self, name: str) -> float:
        """Return how long a new call would probably wait for its first token. 0: nothing is known, so it should be tried.

        While the first call of an unknown deployment runs, others do not follow it.
        """
        ttft_s = self._ttft_s.get(name)
        return self._running[name] * SLOW_S if ttft_s is None else ttft_s * (self._running[name] + 1)
