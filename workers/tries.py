"""Which deployment is tried next, and when?

Before the commit point a failure is the gateway's to mend: three tries at a deployment, then the route's next one. After
it, the client has seen output, and this file has no say.
"""

import random
from collections.abc import Callable

from common.errors import ErrorKind, Failed
from workers.providers.base import Deployment

TRIES_PER_DEPLOYMENT = 3
BACKOFF_S = (1.0, 2.0)  # Before the second try and before the third.
JITTER = 0.25  # Either way, so that a fleet's retries do not come as one.


class Tries:
    """The tries of one generation. ``deployment`` is the one to call now; ``count`` numbers the calls, from 1."""

    def __init__(
        self, deployments: list[Deployment], retry_after_max_s: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._left = list(deployments)
        self._retry_after_max_s = retry_after_max_s
        self._chance = chance
        self._tries_here = 1
        self.count = 1
        self.deployment = self._left.pop(0)

    def after(self, failed: Failed) -> float | None:
        """Return how many seconds to wait before ``deployment`` (now perhaps another) is called, None to give up."""
        match _remedy(failed, self._tries_here):
            case "same" if self._tries_here < TRIES_PER_DEPLOYMENT:
                wait_s = BACKOFF_S[self._tries_here - 1] * (1 + JITTER * (2 * self._chance() - 1))
                wait_s = max(wait_s, min(failed.retry_after_s or 0, self._retry_after_max_s))
                self._tries_here += 1
            case "same" | "next" if self._left:
                wait_s = 0.0
                self.deployment, self._tries_here = self._left.pop(0), 1
            case _:
                return None
        self.count += 1
        return wait_s


def _remedy(failed: Failed, tries_here: int) -> str:
    """Return "same" (this deployment again), "next" (another at once) or "none"."""
    match failed.kind:
        case ErrorKind.UPSTREAM_RATE_LIMITED | ErrorKind.UPSTREAM_UNAVAILABLE:
            return "same"
        case ErrorKind.UPSTREAM_TIMEOUT:
            # An upstream that said 408 or 504 answers at once; one that said nothing has used up its time.
            return "same" if failed.status else "next"
        case ErrorKind.UPSTREAM_PROTOCOL:
            return "same" if tries_here == 1 else "next"
        case ErrorKind.UPSTREAM_CREDENTIALS:
            return "next"
        case _:
            return "none"
