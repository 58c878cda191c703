"""Who may answer a request: the deployments of its name in order, and which other models for which failure?

A fallback is called only if its route says so for this failure:

- ``exhausted``: none of the targets can answer now. Then it is simply the next deployment.
- ``context_overflow``: the model said that the conversation is too long for it, or that is known before the call.
- ``content_policy``: the vendor refused the request, or ended the answer as refused before its first output.
- ``retired``: the table of models has the day on which the vendor stops serving the model; or the vendor does not know it.

Pure: ``workers.attempt.failover`` makes the calls, ``workers.attempt.misfits`` says whether a fallback can take the request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import get_args

from common.canonical.errors import ErrorKind, Failed, Remedy
from common.config.route_rules import FallbackReason
from workers.providers.base import Deployment

FALLBACK_REASONS: frozenset[str] = frozenset(get_args(FallbackReason))
NAMED_REASONS = FALLBACK_REASONS | {"hedge"}  # Those that the client is told.
_REASON_OF: dict[ErrorKind, FallbackReason] = {
    ErrorKind.CONTEXT_LENGTH_EXCEEDED: "context_overflow",
    ErrorKind.CONTENT_POLICY_VIOLATION: "content_policy",
    ErrorKind.UPSTREAM_MODEL_NOT_FOUND: "retired",
}


@dataclass(frozen=True, slots=True)
class Fallback:
    """One model that is not a target, with a deployment for each of its keys."""

    deployments: Sequence[Deployment]
    when: Sequence[FallbackReason]


@dataclass(frozen=True, slots=True)
class Lineup:
    """``route`` and ``strategy`` are empty for a name without a route. ``strategy``: why the first one is the first."""

    deployments: list[Deployment]
    fallbacks: Sequence[Fallback] = ()
    route: str = ""
    strategy: str = ""
    hedge_after_s: float | None = None


def reason_of(failed: Failed) -> FallbackReason | None:
    """Return the reason for which a fallback may answer instead, other than ``exhausted``."""
    return _REASON_OF.get(failed.kind)


def today() -> date:
    return datetime.now(UTC).date()


def is_retired(deployment: Deployment, day: date) -> bool:
    return deployment.facts.retires is not None and deployment.facts.retires <= day.isoformat()


class Fallbacks:
    """The fallbacks of one generation that have not been called yet."""

    def __init__(self, lineup: Lineup, clock: Callable[[], date] = today) -> None:
        self._lineup = lineup
        self._clock = clock
        self._left = list(lineup.fallbacks)

    def serve(self, reason: FallbackReason) -> bool:
        return any(reason in fallback.when for fallback in self._left)

    def first_round(self) -> dict[FallbackReason | None, list[Deployment]]:
        """Return the deployments for the first calls, by the reason for which they are called; None: targets.

        A retired target is left out if a fallback replaces it.
        """
        own = self._lineup.deployments
        if not self._left:
            return {None: own}
        if self.serve("retired"):
            day = self._clock()
            own = [deployment for deployment in own if not is_retired(deployment, day)]
        replaced = [] if own else self.round_for("retired")
        spare = [one for one in self.round_for("exhausted") if one not in replaced]
        return {None: own, "retired": replaced, "exhausted": spare}

    def round_for(self, reason: FallbackReason) -> list[Deployment]:
        """Return the deployments of those that serve a reason, in order."""
        return [one for fallback in self._left if reason in fallback.when for one in fallback.deployments]

    def record_call(self, deployment: Deployment) -> None:
        """Never offer this deployment's model again."""
        self._left = [fallback for fallback in self._left if deployment not in fallback.deployments]


def is_answerable_later(failed: Failed) -> bool:
    """Whether the same request may succeed later, so that its client should learn of it rather than of an earlier refusal."""
    return failed.kind.remedy is not Remedy.NONE
