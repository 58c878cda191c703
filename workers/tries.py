"""Which deployment is tried next, and when?

Before the commit point a failure is the gateway's to mend: three tries at a deployment, then the route's next one. After
it, the client has seen output, and this file has no say.

A key that has no quota left, by its vendor's word or by ours, is passed over for the route's next place at once, and comes
back when its time is over; only where no other place is left does the generation wait. What the gateway itself refuses
has called nobody, so it counts as no try; it may take up as much waiting as one ``Retry-After`` that we obey.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import ErrorKind, Failed
from workers.providers.base import Deployment
from workers.providers.errors import UNREADABLE

TRIES_PER_DEPLOYMENT = 3
BACKOFF_S = (1.0, 2.0)  # Before the second try and before the third.
JITTER = 0.25  # Either way, so that a fleet's retries do not come as one.


@dataclass(slots=True, eq=False)
class _Place:
    """``free_at``: not to be called before; ``due_at``: by then it surely may be."""

    deployment: Deployment
    tries: int = 0
    free_at: float = 0.0
    due_at: float = 0.0


class Tries:
    """The tries of one generation. ``deployment`` is the one to call now; ``count`` is that of the calls so far."""

    def __init__(
        self,
        deployments: list[Deployment],
        retry_after_max_s: float,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = [_Place(deployment) for deployment in deployments]
        self._at = self._places[0]
        self._retry_after_max_s = self._patience_s = retry_after_max_s
        self._chance = chance
        self._clock = clock
        self.count = 0

    @property
    def deployment(self) -> Deployment:
        return self._at.deployment

    def begin(self) -> None:
        """Count a call of ``deployment``, which is made now."""
        self.count += 1
        self._at.tries += 1

    def after(self, failed: Failed) -> float | None:
        """Return how many seconds to wait before ``deployment`` (now perhaps another) is called, None to give up."""
        at = self._at
        match _remedy(failed, at.tries):
            case "same" if at.tries < TRIES_PER_DEPLOYMENT:
                backoff_s = BACKOFF_S[at.tries - 1] * (1 + JITTER * (2 * self._chance() - 1))
                wait_s = max(backoff_s, min(failed.retry_after_s or 0, self._retry_after_max_s))
                if failed.kind is not ErrorKind.UPSTREAM_RATE_LIMITED or not failed.retry_after_s:
                    return wait_s
                at.free_at = at.due_at = self._clock() + wait_s
            case "same" | "next":
                self._places.remove(at)
            case _:
                return None
        return self._next()

    def refused(self, wait_s: float, look_s: float) -> float | None:
        """The same where ``deployment`` was not called: it surely may be after ``wait_s``, and perhaps after ``look_s``.

        None: nothing is free soon enough; ``soonest_s`` tells when something is.
        """
        now = self._clock()
        # Later only, and not all at once: whoever waits for the same quota would come as one.
        self._at.free_at = now + look_s + min(look_s, 1.0) * JITTER * self._chance()
        self._at.due_at = now + wait_s
        if self.soonest_s > self._patience_s:
            return None
        pause_s = self._next()
        if pause_s:
            self._patience_s -= pause_s
        return pause_s

    @property
    def soonest_s(self) -> float:
        """The seconds until one of the places surely may be called."""
        return max(0.0, min(place.due_at for place in self._places) - self._clock())

    def _next(self) -> float | None:
        """Go to the first place that is free, or to that which is so first; returns the seconds until then."""
        if not self._places:
            return None
        now = self._clock()
        free = (place for place in self._places if place.free_at <= now)
        self._at = next(free, None) or min(self._places, key=lambda place: place.free_at)
        return max(0.0, self._at.free_at - now)


def _remedy(failed: Failed, tries_here: int) -> str:
    """Return "same" (this deployment again), "next" (another at once) or "none"."""
    match failed.kind:
        case ErrorKind.UPSTREAM_RATE_LIMITED | ErrorKind.UPSTREAM_UNAVAILABLE:
            return "same"
        case ErrorKind.UPSTREAM_TIMEOUT:
            # An upstream that said 408 or 504 answers at once; one that said nothing has used up its time.
            return "same" if failed.status else "next"
        case ErrorKind.UPSTREAM_PROTOCOL:
            return "same" if tries_here == 1 and failed.code != UNREADABLE else "next"
        case ErrorKind.UPSTREAM_CREDENTIALS:
            return "next"
        case _:
            return "none"
