"""How busy and how fast is each deployment, as this worker sees it?

The time to the first token is a peak EWMA (https://linkerd.io/2016/03/16/beyond-round-robin-load-balancing-for-latency): it
rises at once and falls slowly, so a deployment that becomes slow is noticed with its first slow answer.
"""

import math
from collections import Counter
from collections.abc import Callable

DECAY_S = 30.0  # After this time a figure counts for about a third.
NAMES_MAX = 2_000  # Clients choose names of models freely.


class Traffic:
    """The running calls of each deployment, and its recent time to the first token. Names are those of ``quota.health``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._ttft_s: dict[str, tuple[float, float]] = {}  # The figure, and when it was made.

    def begin(self, name: str) -> None:
        self._running[name] += 1

    def end(self, name: str) -> None:
        self._running[name] -= 1
        if self._running[name] <= 0:
            del self._running[name]

    def record_ttft(self, name: str, ttft_s: float) -> None:
        now = self._clock()
        known = self._ttft_s.pop(name, None)
        if known and ttft_s < known[0]:
            share = math.exp(-(now - known[1]) / DECAY_S)
            ttft_s = known[0] * share + ttft_s * (1 - share)
        elif len(self._ttft_s) >= NAMES_MAX:
            del self._ttft_s[next(iter(self._ttft_s))]
        self._ttft_s[name] = (ttft_s, now)

    def running(self, name: str) -> int:
        return self._running[name]

    def expected_s(self, name: str) -> float:
        """Return how long a new call would probably wait for its first token. 0: nothing is known, so it should be tried."""
        ttft_s, _ = self._ttft_s.get(name, (0.0, 0.0))
        return ttft_s * (self._running[name] + 1)
