"""Which deployment is called next, and when?

Before the commit point a failure is the gateway's to mend: some attempts at a deployment (three, unless set), then the
route's next one. After it, the client has seen output, and this file has no say.

A key that has no quota left, by its vendor's word or by ours, is passed over for the route's next place at once, and comes
back when its time is over; only where no other place is left does the generation wait. What the gateway itself refuses
has called nobody, so it counts as no attempt; it may take up as much waiting as one ``Retry-After`` that we obey. A place that
asks for more than that is left out: nobody knows when it is worth calling, so its status is worth more than a part of the wait.

A client whose HTTP status can still be a true one is not kept waiting past that moment: it retries a 429 or a 5xx by itself,
and cannot retry an error inside a 200.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.canonical.errors import Failed, Remedy
from workers.providers.base import Deployment
from workers.providers.shared.errors import UNREADABLE

ATTEMPTS_PER_DEPLOYMENT, BACKOFF_S = 3, 1.0  # Where the settings do not say otherwise.
JITTER = 0.25  # Either way, so that a fleet's retries do not come as one.


@dataclass(slots=True, eq=False)
class _Place:
    """``free_at``: not to be called before; ``due_at``: by then it surely may be."""

    deployment: Deployment
    tries: int = 0
    free_at: float = 0.0
    due_at: float = 0.0


class Tries:
    """The attempts of one generation. ``deployment`` is the one to call now; ``count`` is that of the calls so far.

    ``wait_max_s`` is the longest wait. ``status_by`` is the moment of ``clock`` until which the client can be given a status
    instead of a wait that ends later; None: it cannot, or need not. ``resumes_in_s``: when the next attempt would have been
    made, where that is why there is none.
    """

    def __init__(
        self,
        deployments: list[Deployment],
        wait_max_s: float,
        status_by: float | None = None,
        *,
        attempts_max: int = ATTEMPTS_PER_DEPLOYMENT,
        backoff_s: float = BACKOFF_S,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = [_Place(deployment) for deployment in deployments]
        self._at = self._places[0]
        self._wait_max_s = self._patience_s = wait_max_s
        self._status_by = status_by
        self._attempts_max = attempts_max  # Of each deployment.
        self._backoff_s = backoff_s  # Before the second; each further one waits for twice as long.
        self._chance = chance
        self._clock = clock
        self._due_later: list[float] = []  # Of the places that asked for too long a wait.
        self.count = 0
        self.resumes_in_s: float | None = None

    @property
    def deployment(self) -> Deployment:
        return self._at.deployment

    def begin(self) -> None:
        """Count a call of ``deployment``, which is made now."""
        self.count += 1
        self._at.tries += 1

    def after(self, failed: Failed) -> float | None:
        """Return how many seconds to wait before ``deployment`` (now perhaps another) is called, None to give up."""
        at, asked_s = self._at, failed.retry_after_s or 0.0
        match _remedy(failed, at.tries):
            case "same" | "next" if asked_s > self._wait_max_s:
                self._leave_out(asked_s)
            case "same" if at.tries < self._attempts_max:
                backoff_s = self._backoff_s * (1 << (at.tries - 1)) * (1 + JITTER * (2 * self._chance() - 1))
                wait_s = max(backoff_s, asked_s)
                if not asked_s and not self._costs_the_status(wait_s):
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
        if wait_s > self._wait_max_s:
            self._leave_out(wait_s)
        if self.soonest_s > self._patience_s:
            return None
        pause_s = self._next()
        if pause_s:
            self._patience_s -= pause_s
        return pause_s

    @property
    def soonest_s(self) -> float:
        """The seconds until one of the places surely may be called."""
        due = [*(place.due_at for place in self._places), *self._due_later]
        return max(0.0, min(due) - self._clock())

    def _leave_out(self, for_s: float) -> None:
        self._places.remove(self._at)
        self._due_later.append(self._clock() + for_s)

    def _next(self) -> float | None:
        """Go to the first place that is free, or to that which is so first; returns the seconds until then."""
        if not self._places:
            return None
        now = self._clock()
        free = (place for place in self._places if place.free_at <= now)
        self._at = next(free, None) or min(self._places, key=lambda place: place.free_at)
        wait_s = max(0.0, self._at.free_at - now)
        if not self._costs_the_status(wait_s):
            return wait_s
        self.resumes_in_s = self.soonest_s
        return None

    def _costs_the_status(self, wait_s: float) -> bool:
        """Whether a status could be given now, and no more after so long a wait."""
        return self._status_by is not None and self._clock() < self._status_by < self._clock() + wait_s


def _remedy(failed: Failed, tries_here: int) -> Remedy:
    """Return SAME (this deployment again), NEXT (another at once) or NONE."""
    match failed.kind.remedy:
        case Remedy.SAME_IF_IT_ANSWERED:
            # An upstream that said 408 or 504 answers at once; one that said nothing has used up its time.
            return Remedy.SAME if failed.status else Remedy.NEXT
        case Remedy.SAME_ONCE:
            return Remedy.SAME if tries_here == 1 and failed.code != UNREADABLE else Remedy.NEXT
        case remedy:
            return remedy
