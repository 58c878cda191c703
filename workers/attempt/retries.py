"""Which deployment is called next, and when?

Before the commit point the gateway handles failures itself: it makes some attempts at one deployment (three by default), then
goes to the next deployment of the route. After the commit point the client has seen output, and this file is not used.

If a key has no quota left (by the vendor's answer or by our own settings), the next deployment of the route is called at once.
The first key is used again when its wait is over. The generation waits only if no other deployment is left. A refusal by the
gateway itself made no call, so it does not count as an attempt. All such waits together may last as long as one ``Retry-After``
that we obey. A deployment that asks for a longer wait is excluded: the client gets its status instead of a part of the wait.

A deployment that becomes unwell meanwhile (``workers.quota.health``) is not called again while a well one is left. An address
that gave no sign of life is not called again while there is another one: its other keys and models come last.

While the client can still get a true HTTP status, it does not wait past that moment: a client retries a 429 or a 5xx by itself,
but it cannot retry an error inside a 200.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.canonical.errors import ErrorKind, Failed, Remedy
from workers.providers.base import Deployment
from workers.providers.shared.errors import UNREADABLE

ATTEMPTS_PER_DEPLOYMENT, BACKOFF_S = 3, 1.0  # The defaults of the settings.
JITTER = 0.25  # Plus or minus, so that the retries of many workers do not come at the same moment.


@dataclass(slots=True, eq=False)
class _DeploymentState:
    """``free_at``: the earliest time to call it. ``due_at``: from then on it can surely be called."""

    deployment: Deployment
    attempts_max: int
    attempts: int = 0
    free_at: float = 0.0
    due_at: float = 0.0


class AttemptPlan:
    """The attempts of one generation. ``deployment`` is the one to call now; ``attempt_count`` counts the calls so far.

    Args:
        wait_max_s: The longest wait between two attempts, in seconds.
        status_deadline: Until this time of ``clock`` the client can still get an HTTP status instead of a longer wait. None: it
            cannot, or it does not need one.
        attempts_max: How often each deployment is called at most.
        called_once: Those of them that are called at most once.
        is_unwell: Whether a deployment is unwell now.

    ``resumes_in_s``: if there is no next attempt only because of ``status_deadline``, the seconds until it would have been
    made.
    """

    def __init__(
        self,
        deployments: list[Deployment],
        wait_max_s: float,
        status_deadline: float | None = None,
        *,
        attempts_max: int = ATTEMPTS_PER_DEPLOYMENT,
        backoff_s: float = BACKOFF_S,
        called_once: Sequence[Deployment] = (),
        is_unwell: Callable[[Deployment], bool] = lambda _: False,
        random_unit: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._states = [
            _DeploymentState(deployment, 1 if deployment in called_once else attempts_max) for deployment in deployments
        ]
        self._current = self._states[0]
        self._wait_max_s = self._wait_left_s = wait_max_s
        self._status_deadline = status_deadline
        self._backoff_s = backoff_s  # Before the second attempt. Each further attempt waits twice as long.
        self._is_unwell = is_unwell
        self._random = random_unit
        self._clock = clock
        self._excluded_due: list[float] = []  # When the excluded deployments can be called again.
        self.attempt_count = 0
        self.resumes_in_s: float | None = None

    @property
    def deployment(self) -> Deployment:
        return self._current.deployment

    def record_call(self, beside: Deployment | None = None) -> None:
        """Count a call that is made now, of ``deployment``, or ``beside`` it of ``next_for_hedge``."""
        self.attempt_count += 1
        (self._state_of(beside) if beside else self._current).attempts += 1

    def next_for_hedge(self) -> Deployment | None:
        """Return the deployment that can be called now beside ``deployment``; None: there is none that is well and unused."""
        now, current = self._clock(), self._current
        unused = (state for state in self._states if state is not current and not state.attempts and state.free_at <= now)
        return next((state.deployment for state in unused if not self._is_unwell(state.deployment)), None)

    def select(self, deployment: Deployment) -> None:
        """Make this the present deployment: of two that were called at the same time, its call failed last."""
        self._current = self._state_of(deployment)

    def record_failure_beside(self, deployment: Deployment, failed: Failed) -> None:
        """Record that a call failed while another one still runs, which decides what happens next."""
        state, current, resumes_in_s = self._state_of(deployment), self._current, self.resumes_in_s
        self._current = state
        self.delay_after_failure(failed)
        if failed.kind.remedy is Remedy.NONE:
            self._states.remove(state)
        self._current, self.resumes_in_s = current, resumes_in_s

    def skip(self) -> float | None:
        """Leave out the present deployment, which cannot take the request. The same answer as after a failure."""
        self._states.remove(self._current)
        return self._advance()

    def _state_of(self, deployment: Deployment) -> _DeploymentState:
        return next(state for state in [self._current, *self._states] if state.deployment is deployment)

    def delay_after_failure(self, failed: Failed) -> float | None:
        """Return how many seconds to wait before the next call of ``deployment`` (which may have changed); None: give up."""
        current, requested_s = self._current, failed.retry_after_s or 0.0
        if self._is_dead(failed):
            address = current.deployment.base_url
            self._states.sort(key=lambda state: state.deployment.base_url == address)
        match _remedy(failed, current.attempts):
            case "same" | "next" if requested_s > self._wait_max_s:
                self._exclude_current(requested_s)
            case "same" if current.attempts < current.attempts_max and not self._is_passed_over(failed):
                backoff_s = self._backoff_s * (1 << (current.attempts - 1)) * (1 + JITTER * (2 * self._random() - 1))
                wait_s = max(backoff_s, requested_s)
                current.free_at = current.due_at = self._clock() + wait_s
                if not requested_s and not self._would_miss_status(wait_s):
                    return wait_s
            case "same" | "next":
                self._states.remove(current)
            case _:
                return None
        return self._advance()

    def delay_after_refusal(self, wait_s: float, earliest_s: float) -> float | None:
        """The same after a refusal by the gateway: ``deployment`` was not called.

        Args:
            wait_s: After this time it can surely be called.
            earliest_s: After this time it can perhaps be called.
        Returns:
            Seconds to wait; None: no deployment is free soon enough, see ``soonest_s``.
        """
        now = self._clock()
        # The jitter only adds: everybody who waits for the same quota must not come at the same moment.
        self._current.free_at = now + earliest_s + min(earliest_s, 1.0) * JITTER * self._random()
        self._current.due_at = now + wait_s
        if wait_s > self._wait_max_s:
            self._exclude_current(wait_s)
        if self.soonest_s > self._wait_left_s:
            return None
        pause_s = self._advance()
        if pause_s:
            self._wait_left_s -= pause_s
        return pause_s

    @property
    def soonest_s(self) -> float:
        """The seconds until one of the deployments can surely be called."""
        due_times = [*(state.due_at for state in self._states), *self._excluded_due]
        return max(0.0, min(due_times) - self._clock())

    def _is_passed_over(self, failed: Failed) -> bool:
        """Whether the present deployment is not called again: it is dead or unwell, and a better one is left."""
        if self._is_dead(failed):
            return True
        return self._is_unwell(self.deployment) and not all(self._is_unwell(state.deployment) for state in self._states)

    def _is_dead(self, failed: Failed) -> bool:
        """Whether the present deployment gave no sign of life, and another one at another address can be called at once."""
        is_silent = failed.kind in (ErrorKind.UPSTREAM_UNAVAILABLE, ErrorKind.UPSTREAM_TIMEOUT) and failed.status is None
        address = self._current.deployment.base_url
        return is_silent and any(state.deployment.base_url != address for state in self._states)

    def _exclude_current(self, wait_s: float) -> None:
        self._states.remove(self._current)
        self._excluded_due.append(self._clock() + wait_s)

    def _advance(self) -> float | None:
        """Select the first deployment that is free and well, or else the first one that is free, or else the one that is free
        first. Return the seconds until then.
        """
        if not self._states:
            return None
        now = self._clock()
        free_states = [state for state in self._states if state.free_at <= now]
        well_states = (state for state in free_states if not self._is_unwell(state.deployment))
        self._current = (
            next(well_states, None) or next(iter(free_states), None) or min(self._states, key=lambda state: state.free_at)
        )
        wait_s = max(0.0, self._current.free_at - now)
        if not self._would_miss_status(wait_s):
            return wait_s
        self.resumes_in_s = self.soonest_s
        return None

    def _would_miss_status(self, wait_s: float) -> bool:
        """Whether the client could get an HTTP status now, but no longer after this wait."""
        return self._status_deadline is not None and self._clock() < self._status_deadline < self._clock() + wait_s


def _remedy(failed: Failed, attempts_here: int) -> Remedy:
    """Return SAME (call this deployment again), NEXT (call another one at once) or NONE."""
    match failed.kind.remedy:
        case Remedy.SAME_IF_IT_ANSWERED:
            # An upstream that sends 408 or 504 at least answers. One that sends nothing has used up its time.
            return Remedy.SAME if failed.status else Remedy.NEXT
        case Remedy.SAME_ONCE:
            return Remedy.SAME if attempts_here == 1 and failed.code != UNREADABLE else Remedy.NEXT
        case remedy:
            return remedy
