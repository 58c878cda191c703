"""How many requests a second may an API admit?

As many as come, until something is late: the process' own loop, or the workers, who have free slots and still take this
process' jobs late. What is late now and then is a burst, and passes. What is late *all through* an interval is a standing
queue (the idea of CoDel): from then on there is a limit, of what was admitted lately times target over delay, so that it is
cut in proportion to what is too much (a gradient, as in Netflix' concurrency limits), and raised a little at a time while
nothing is late (AIMD). It is gone once it has not been reached for a while. docs/decisions/shedding.md has the reasons.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

INTERVAL_S = 0.1  # Two ticks of the loop's lag or more.
WINDOW = 5  # Intervals over which the rate of what was admitted is taken.
CUT_MIN, CUT_MAX = 0.7, 0.95  # What a cut leaves.
RAISE = 1.03  # In each interval in which nothing was late.
FLOOR_PER_S = 5.0  # A limit must let in enough to find out that it is not needed any more.
UNREACHED = 2.0  # The limit is gone once it is so many times what is asked for…
UNREACHED_S = 1.0  # …for so long.

Reason = Literal["loop", "workers"]


class AdmissionLimit:
    """``per_s`` is the limit, None while there is none. To be told of every tick of the loop, and of what is admitted.

    A target of 0 stands for none: that delay limits nothing.
    """

    def __init__(self, lag_target_s: float, claim_target_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._targets: dict[Reason, float] = {"loop": lag_target_s, "workers": claim_target_s}
        self._clock = clock
        self._began_at = clock()
        self._least: dict[Reason, float] = {}
        self._admitted = self._refused = 0
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._next_cut_at = self._reached_at = 0.0
        self.per_s: float | None = None
        self.reason: Reason | None = None  # Why it was last cut.
        self.pressure = 1.0  # How many requests come for each that is admitted.

    def note(self, *, is_admitted: bool) -> None:
        # Hot path: once per request.
        if is_admitted:
            self._admitted += 1
        else:
            self._refused += 1

    def tick(self, lag_s: float, claim_delay_s: float) -> None:
        """Take the loop's lag, and for how long the oldest of this process' jobs has waited beside free slots."""
        self._least["loop"] = min(self._least.get("loop", lag_s), lag_s)
        self._least["workers"] = min(self._least.get("workers", claim_delay_s), claim_delay_s)
        now = self._clock()
        if now - self._began_at >= INTERVAL_S:
            self._close_interval(now)

    def _close_interval(self, now: float) -> None:
        self._rates.append(self._admitted / (now - self._began_at))
        least, self._least = self._least, {}
        if self._refused:
            self._reached_at = now
        self.pressure = 1 + self._refused / max(1, self._admitted)
        late = {reason: target / least[reason] for reason, target in self._targets.items() if 0 < target < least[reason]}
        if late:
            if now >= self._next_cut_at:
                self._cut(now, min(late, key=late.__getitem__), min(late.values()), max(least.values()))
        elif self.per_s is not None:
            self._raise(now)
        self._began_at, self._admitted, self._refused = now, 0, 0

    def _cut(self, now: float, reason: Reason, share: float, delay_s: float) -> None:
        lately = sum(self._rates) / len(self._rates)
        base = lately if self.per_s is None else min(self.per_s, max(lately, FLOOR_PER_S))
        self.per_s = max(FLOOR_PER_S, base * min(max(share, CUT_MIN), CUT_MAX))
        self.reason = reason
        self._reached_at = now
        self._next_cut_at = now + delay_s  # Sooner, what this cut does cannot be seen.

    def _raise(self, now: float) -> None:
        assert self.per_s is not None
        lately = sum(self._rates) / len(self._rates)
        if self.per_s < UNREACHED * lately:
            self._reached_at = now
        self.per_s *= RAISE
        if now - self._reached_at > UNREACHED_S:
            self.per_s = None
