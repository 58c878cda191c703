"""When does an API admit less, and how much is that?

It admits whatever comes until something is late: its own loop, or the workers, who have free slots and still take its jobs
late. What is late now and then is a burst, and passes; what is late *all through* an interval is a standing queue (CoDel).

How much less is not guessed: there is no rate that is cut and raised. A late loop admits so many requests in each of its
turns, which take the longer the more there is to do: what it admits is what it can serve, whatever that is just now. And
late workers get as many jobs as they have lately taken within the target, once the oldest one has been taken. So neither stands
idle while there is work, and a neighbour on the same machine slows both down, but does not close them.
docs/decisions/shedding.md has what was tried.
"""

import time
from collections.abc import Callable
from typing import Literal

from api.overload.shares import Shares

LATE_S = 0.15  # So much lag without a tick in between that was in time: more than a burst, or a neighbour's turn.
PER_TURN = 8  # Requests: some ten milliseconds of work for a turn, so that a refusal does not wait for longer.
DEBT_MIN = 50  # So many, or a second's, may be admitted beyond that, for tenants that are within their parts.
OVER_S = 1.0  # Nothing was refused for so long: everything is admitted again.
RATE_S = 0.5  # For which what was admitted is counted.

Reason = Literal["loop", "workers"]


class AdmissionLimit:
    """To be told of every tick of the loop (``tick``), and of every turn in which it was asked (``turn``).

    A target of 0 stands for none: that delay limits nothing.
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
        self._room = 0  # For requests in this turn; below 0 where tenants were within their shares.
        self._refused_at = 0.0
        self._counted_from = clock()
        self._admitted = self._refused = 0
        self.admitted_per_s = 0.0  # Lately.
        self.pressure = 1.0  # How many requests came for each that was admitted, lately.

    @property
    def reason(self) -> Reason | None:
        """Why less is admitted than comes; None where that is not so."""
        return "workers" if self._are_workers_late else "loop" if self._is_late else None

    @property
    def _are_workers_late(self) -> bool:
        return self._now - self._workers_late_at < OVER_S

    def tick(self, lag_s: float, claim_delay_s: float, unclaimed: int = 0, claimed: int = 0) -> None:
        """Take the loop's lag, and for how long the oldest of this process' jobs has waited beside free slots.

        ``unclaimed`` jobs wait, or are on their way; ``claimed`` have been taken since the process began.
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
        """How many jobs the workers have lately taken within the target."""
        lately, self._claimed = claimed - self._claimed, claimed
        return int(lately / since_s * self._claim_target_s)

    def turn(self) -> None:
        """Another turn of the loop has begun."""
        self._room = min(PER_TURN, self._room + PER_TURN)

    def admit(self, tenant: str, is_early: bool = False) -> bool:
        """Return whether a request of a tenant may come in.

        ``is_early``: it was there before anything was late, and comes in, in the place of one that comes later.
        """
        # Hot path: once per request.
        if not (self._is_late or self._are_workers_late):
            self._admitted += 1
            return True
        now = self._clock()
        has_room = self._room > 0 and not (self._are_workers_late and self._have_workers_enough())
        is_within = self._shares.take(tenant, self.admitted_per_s, now)
        if not has_room and not is_early and not (is_within and self._room > -max(DEBT_MIN, self.admitted_per_s)):
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
