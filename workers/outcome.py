"""What is the state of one generation: its job, the result of each upstream call, and their total?

``ActiveJob`` does not change. A ``CallResult`` belongs to one upstream call: it is created before the call and filled in during
it. ``Total`` combines the results of a generation into what its head, its end and its limits need. Only ``Total`` knows how
several calls make one answer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.canonical.errors import Failed
from common.canonical.events import Usage
from common.canonical.job import Job
from common.metering.attempt_cost import Attempt, merge_attempts, total_cost, total_usage
from common.metering.pricing import Price
from common.records.end import End
from workers.providers.base import Deployment


@dataclass(frozen=True, slots=True)
class ActiveJob:
    """A claimed job with its clock: its client waited ``waited_s`` in the queue, and waits since ``began_at`` (monotonic)."""

    job: Job
    waited_s: float = 0.0
    is_background: bool = False
    began_at: float = field(default_factory=time.monotonic)

    def elapsed_ms(self) -> int:
        """Return the time since the request was enqueued."""
        return round((time.monotonic() - self.began_at + self.waited_s) * 1000)


@dataclass(frozen=True, slots=True)
class BackgroundAnswer:
    """An answer that runs in the background at its provider, and is paid for until it ends.

    ``deployments``: one for each key that may have started it, because it may not be known which one did.
    """

    answer_id: str
    deployments: list[Deployment]


@dataclass(slots=True)
class CallResult:
    """The result of one upstream call. ``number`` counts the calls of a generation from 1, over all workers."""

    deployment: Deployment
    number: int = 1
    background_answer: BackgroundAnswer | None = (
        None  # What runs in the background until its end is seen: of this call, or of one before it.
    )
    is_reread: bool = False  # Whether this call reads the answer of the call before it again.
    is_committed: bool = False  # Whether the client has seen a part of it.
    ttft_ms: int | None = None  # Set when it is committed.
    headers: dict[str, str] = field(default_factory=dict)  # For the client's response.
    upstream_id: str = ""  # The upstream's id of the answer, if it can be read again there.
    messages: int = 0  # In the request.
    usage: Usage | None = None  # As the upstream reported it.
    output_events: int = 0
    finish_reason: str | None = None
    left_out: list[str] = field(default_factory=list)  # Parts of the answer that the client's format does not carry.
    is_cut: bool = False  # Whether a guardrail ended it before its upstream did.
    last_data: bytes = b""  # The client's last bytes: a stream's last events, or a complete body.
    attempt: Attempt | None = None  # Its usage and cost; None: it counts for nothing.
    dropped: list[str] = field(default_factory=list)  # Fields of the request that its provider did not get.
    route_reason: str = ""  # Why a route chose this deployment; empty: the name has no route.
    can_replace_refusal: Callable[[], bool] | None = None  # Whether another model can answer, if the vendor refuses to.
    race: "Race | None" = None  # Another call runs at the same time, and the first with output answers.
    charge: Callable[[], None] | None = None  # Sets ``attempt`` to what the call has cost so far.
    began_at: float = field(default_factory=time.monotonic)


class Race(Protocol):
    """Which of several calls answers? See ``workers.attempt.hedging``."""

    def claim(self, result: CallResult) -> None:
        """Let this call answer: it has output.

        Raises:
            CancelledError: another one answers.
        """
        ...


@dataclass(slots=True)
class Total:
    """The state of a generation so far. ``failed`` None means completed.

    ``provider`` and ``upstream_model`` name the deployment that answers, or is about to.
    """

    attempt_count: int = 0  # Including those of earlier claims.
    attempts: list[Attempt] = field(default_factory=list)  # Attempts that have ended and have usage.
    running: list[CallResult] = field(default_factory=list)  # Calls that have not ended: one, or two of a hedge.
    route_reason: str = ""  # Why the deployment that answers was chosen, if its route chose it.
    spent: Usage | None = None  # Usage of the attempts whose output the client already has. The client's figures include it.
    continuations: int = 0
    has_past: bool = False  # Whether ``attempts`` include those of earlier claims.
    provider: str = ""
    upstream_model: str = ""
    has_byok_key: bool = False  # Whether the client pays, with a key of its own.
    is_committed: bool = False  # Whether the client has seen a part of the last answer.
    ttft_ms: int | None = None
    messages: int = 0
    reported: Usage | None = None  # The usage that the last call's upstream reported.
    output_events: int = 0  # Of the last call.
    finish_reason: str | None = None
    left_out: list[str] = field(default_factory=list)
    is_cut: bool = False
    background_answer: BackgroundAnswer | None = None
    last_data: bytes = b""
    failed: Failed | None = None

    def set_deployment(self, deployment: Deployment) -> None:
        """Set the deployment that answers next, and who pays for it."""
        self.provider, self.upstream_model = deployment.provider, deployment.model
        self.has_byok_key = deployment.client_pays

    def begin_call(self, deployment: Deployment) -> CallResult:
        """Count a call that begins now, and return its result."""
        self.attempt_count += 1
        self.reported, self.output_events = None, 0
        result = CallResult(deployment, self.attempt_count, self.background_answer)
        self.running.append(result)
        return result

    def drop(self, result: CallResult) -> None:
        """End a call whose answer nobody gets, because another one was faster. What it has cost so far counts."""
        self._end_call(result)
        if result.charge:
            result.charge()
        if result.attempt:
            self.attempts.append(result.attempt)

    def _end_call(self, result: CallResult) -> None:
        self.running = [one for one in self.running if one is not result]

    def attempts_before(self, result: CallResult) -> list[Attempt]:
        """Return the attempts before a result that is not added yet. A result that rereads an answer replaces the last one."""
        return self.attempts[:-1] if result.is_reread else self.attempts

    def add(self, result: CallResult) -> None:
        """Add the result of a call that has ended, however it ended."""
        self._end_call(result)
        if result.attempt:
            self.attempts = [*self.attempts_before(result), result.attempt]
        if result.is_committed:
            self.is_committed, self.ttft_ms = True, result.ttft_ms
            self.route_reason = result.route_reason or self.route_reason
        self.messages, self.reported, self.output_events = result.messages, result.usage, result.output_events
        self.finish_reason, self.is_cut, self.background_answer = result.finish_reason, result.is_cut, result.background_answer
        self.left_out = list(dict.fromkeys([*(self.left_out if self.is_committed else ()), *result.left_out]))
        self.last_data = result.last_data or self.last_data

    def restore_past(self, attempts: Sequence[Attempt], ttft_ms: int | None, prices: Mapping[str, Price]) -> None:
        """Restore the attempts of earlier claims or calls, as the log has them."""
        self.attempts = [attempt.apply_prices(prices) for attempt in merge_attempts(attempts, self.attempts)]
        self.ttft_ms = ttft_ms

    def refine_last_attempt(self, usage: Usage, prices: Mapping[str, Price]) -> None:
        """Replace the last attempt's usage, which was estimated from its number of events, with a better estimate."""
        last = self.attempts[-1]
        known = last.usage or usage
        usage.model, usage.service_tier = known.model, known.service_tier
        last.usage, last.is_rough = usage, False
        last.apply_prices(prices)

    def end_record(self, active_job: ActiveJob) -> End:
        """Return the record for the end of the log. The ledger's row is made from it."""
        return End(
            error=self.failed.to_dict() if self.failed else None,
            finish_reason=self.finish_reason,
            usage=total_usage(self.attempts),
            is_estimated=any(attempt.is_estimated for attempt in self.attempts),
            provider=self.provider,
            upstream_model=self.upstream_model,
            has_byok_key=self.has_byok_key,
            continuations=self.continuations,
            attempt_count=self.attempt_count,
            queue_wait_ms=round(active_job.waited_s * 1000),
            ttft_ms=self.ttft_ms,
            duration_ms=active_job.elapsed_ms(),
            cost=total_cost(self.attempts),
            attempts=self.attempts,
            left_out=self.left_out,
            route_reason=self.route_reason,
        )
