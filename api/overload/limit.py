"""When does an API process admit fewer requests than come, and how many?

It admits everything until something is late. Either its own loop is late, or the workers are: they have free slots, but take
jobs late. Something that is late now and then is a burst, and passes. Something that is late *all through* an interval is a
standing queue (CoDel).

The reduced rate is not guessed: no rate is cut and raised step by step. A late loop admits a fixed number of requests in each
of its turns. The more there is to do, the longer a turn takes. So it admits what it can serve at the moment. If the workers are
late, they get as many jobs as they lately took within the target, once the oldest job has been taken. So neither is idle while
there is work, and a busy neighbour on the same machine slows both down, but does not stop them. docs/decisions/shedding.md
lists what was tried.
"""

import time
from collections.abc import Callable
from typing import Literal

from api.overload.shares import Shares

LATE_S = 0.15  # This much lag without a tick in time: more than a burst, or than a neighbour's turn on the processor.
PER_TURN = 8  # Requests: about ten milliseconds of work for a turn, so that a refusal does not wait for longer.
DEBT_MIN = 50  # Up to this many more, or as many as in a second, are admitted for tenants that are within their shares.
OVER_S = 1.0  # After this long without a refusal, everything is admitted again.
RATE_S = 0.5  # The interval over which admitted requests are counted.

Reason = Literal["loop", "workers"]


class AdmissionLimit:
    """Call ``tick`` on every tick of the loop's clock, and ``turn`` in every turn of the loop in which it is asked.

    A target of 0 means no target: that delay limits nothing.
    """

    def __init__(self, lag_target_s: float, claim_target_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lag_target_s, self._claim_target_s = lag_target_s, claim_target_s
        self._clock = clock
        self._shares = Shares()
        self._late_s = 0.0
        self._is_late = False
        self._claim_delay_s, self._workers_late_at = 0.0, -OVER_S
        self._unclaimed, self._unclaimed_max, self._claimed = 0, PER_TURN, 0
        self._now = clock()
        self._room = 0  # For requests in this turn. It is below 0 after tenants within their shares were admitted beyond it.
        self._refused_at = 0.0
        self._counted_from = clock()
        self._admitted = self._refused = 0
        self.admitted_per_s = 0.0  # In the last interval.
        self.pressure = 1.0  # How many requests came for each admitted one, in the last interval.

    @property
    def reason(self) -> Reason | None:
        """Why fewer requests are admitted than come; None if all are admitted."""
        return "workers" if self._are_workers_late else "loop" if self._is_late else None

    @property
    def _are_workers_late(self) -> bool:
        return self._now - self._workers_late_at < OVER_S

    def tick(self, lag_s: float, claim_delay_s: float, unclaimed: int = 0, claimed: int = 0) -> None:
        """Record the loop's lag, and how long the oldest job of this process has waited although there were free slots.

        ``unclaimed`` jobs wait, or are on their way. ``claimed`` jobs have been taken since the process started.
        """
        now = self._now = self._clock()
        self._late_s = self._late_s + lag_s if 0 < self._lag_target_s < lag_s else 0.0
        if self._late_s >= LATE_S:
            if not self._is_late:
                self._refused_at = now
            self._is_late = True
        elif self._is_late and now - self._refused_at > OVER_S:
            self._is_late = False
        self._claim_delay_s, self._unclaimed = claim_delay_s, unclaimed
        if 0 < self._claim_target_s < claim_delay_s:
            self._workers_late_at = now
        self._shares.forget_idle(now)
        if now - self._counted_from >= RATE_S:
            self.admitted_per_s = self._admitted / (now - self._counted_from)
            self._unclaimed_max = max(PER_TURN, self._within_target(claimed, now - self._counted_from))
            self.pressure = (self._admitted + self._refused) / max(1, self._admitted)
            self._counted_from, self._admitted, self._refused = now, 0, 0

    def _within_target(self, claimed: int, since_s: float) -> int:
        """Return how many jobs the workers lately took within the target."""
        lately, self._claimed = claimed - self._claimed, claimed
        return int(lately / since_s * self._claim_target_s)

    def turn(self) -> None:
        """Begin another turn of the loop."""
        self._room = min(PER_TURN, self._room + PER_TURN)

    def admit(self, tenant: str, is_early: bool = False) -> bool:
        """Return whether a request of a tenant is admitted.

        ``is_early``: it came before anything was late. It is always admitted, in the place of one that comes later.
        """
        # Hot path: once per request.
        if not (self._is_late or self._are_workers_late):
            self._admitted += 1
            return True
        now = self._clock()
        has_room = self._room > 0 and not (self._are_workers_late and self._have_workers_enough())
        is_within_share = self._shares.spend(tenant, self.admitted_per_s, now)
        has_credit = is_within_share and self._room > -max(DEBT_MIN, self.admitted_per_s)
        if not has_room and not is_early and not has_credit:
            self._refused += 1
            self._refused_at = now
            if self._are_workers_late:
                self._workers_late_at = now
            return False
        self._room -= 1
        self._unclaimed += 1
        self._admitted += 1
        return True

    def _have_workers_enough(self) -> bool:
        return self._claim_delay_s > self._claim_target_s or self._unclaimed >= self._unclaimed_max
