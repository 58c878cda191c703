"""What was asked, what came of each upstream call, and what do they come to together?

``Ask`` does not change. A ``Reply`` is one call's own: made before it, filled in while it runs. ``Total`` folds the replies of
a generation into what its head, its end and its limits tell; what several calls mean for one answer stands there alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.canonical.errors import Failed
from common.canonical.events import Usage
from common.canonical.job import Job
from common.metering.attempt_cost import Attempt, merge_attempts, total_cost, total_usage
from common.metering.pricing import Price
from common.records.end import End
from workers.providers.base import Deployment


@dataclass(frozen=True, slots=True)
class Ask:
    """A claimed job, and since when its client waits: ``waited_s`` in the queue, then from ``began_at`` on (monotonic)."""

    job: Job
    waited_s: float = 0.0
    is_background: bool = False
    began_at: float = field(default_factory=time.monotonic)

    def elapsed_ms(self) -> int:
        """Return the time since the request was enqueued."""
        return round((time.monotonic() - self.began_at + self.waited_s) * 1000)


@dataclass(frozen=True, slots=True)
class RunsOn:
    """An answer in the background, paid for until it ends. Which of the keys it is known by may not be known here."""

    answer_id: str
    deployments: list[Deployment]


@dataclass(slots=True)
class Reply:
    """What came of one upstream call. ``number`` counts the calls of a generation from 1, by whichever worker."""

    deployment: Deployment
    number: int = 1
    runs_on: RunsOn | None = None  # What runs in the background until its end is seen: of this call, or of one before it.
    is_reread: bool = False  # Whether it reads the answer of the call before it again.
    is_committed: bool = False  # Whether the client has seen a part of it.
    ttft_ms: int | None = None  # Set when it is committed.
    headers: dict[str, str] = field(default_factory=dict)  # The client's.
    upstream_id: str = ""  # What an upstream that can be read again calls the answer.
    messages: int = 0  # In the request.
    usage: Usage | None = None  # As the upstream reported it.
    output_events: int = 0
    finish_reason: str | None = None
    is_cut: bool = False  # Whether a guardrail ended it before its upstream did.
    last_data: bytes = b""  # The client bytes that came last: a stream's last events, or a whole body.
    attempt: Attempt | None = None  # What it counts for; None: for nothing.


@dataclass(slots=True)
class Total:
    """What is known of a generation so far; ``failed`` None means completed. ``provider`` and ``upstream_model`` are who
    answers, or is about to."""

    tries: int = 0  # Those of the claims before among them.
    attempts: list[Attempt] = field(default_factory=list)  # Those that have ended, and count.
    spent: Usage | None = None  # By those whose output the client has; the figures that it is told begin with it.
    continuations: int = 0
    knows_past: bool = False  # What the claims before have written is among the attempts.
    provider: str = ""
    upstream_model: str = ""
    has_brought_key: bool = False  # Whether the client pays, with a key that it brought.
    is_committed: bool = False  # Whether the client has seen a part of the last reply.
    ttft_ms: int | None = None
    messages: int = 0
    reported: Usage | None = None  # By the last reply's upstream.
    output_events: int = 0  # Of the last reply.
    finish_reason: str | None = None
    is_cut: bool = False
    runs_on: RunsOn | None = None
    last_data: bytes = b""
    failed: Failed | None = None

    def note(self, deployment: Deployment) -> None:
        """Note who answers, or is about to, and who pays for it."""
        self.provider, self.upstream_model = deployment.provider, deployment.model
        self.has_brought_key = deployment.client_pays

    def begin(self, deployment: Deployment) -> Reply:
        """Return the record of a call that begins now."""
        self.tries += 1
        self.reported, self.output_events = None, 0
        return Reply(deployment, self.tries, self.runs_on)

    def before(self, reply: Reply) -> list[Attempt]:
        """Return the attempts before a reply that is not added yet: what reads an answer again takes the place of the one that
        began it."""
        return self.attempts[:-1] if reply.is_reread else self.attempts

    def add(self, reply: Reply) -> None:
        """Add a reply that has ended, however it did."""
        if reply.attempt:
            self.attempts = [*self.before(reply), reply.attempt]
        if reply.is_committed:
            self.is_committed, self.ttft_ms = True, reply.ttft_ms
        self.messages, self.reported, self.output_events = reply.messages, reply.usage, reply.output_events
        self.finish_reason, self.is_cut, self.runs_on = reply.finish_reason, reply.is_cut, reply.runs_on
        self.last_data = reply.last_data or self.last_data

    def take_past(self, attempts: Sequence[Attempt], ttft_ms: int | None, prices: Mapping[str, Price]) -> None:
        """Take over what the log tells of the claims, or the calls, before."""
        self.attempts = [each.apply_prices(prices) for each in merge_attempts(attempts, self.attempts)]
        self.ttft_ms = ttft_ms

    def refine_last(self, usage: Usage, prices: Mapping[str, Price]) -> None:
        """Take a better estimate for the last attempt than by the number of its events."""
        last = self.attempts[-1]
        known = last.usage or usage
        usage.model, usage.service_tier = known.model, known.service_tier
        last.usage, last.is_rough = usage, False
        last.apply_prices(prices)

    def end(self, ask: Ask) -> End:
        """Return what the end of the log says of all this, from which the ledger's row is made."""
        return End(
            error=self.failed.to_dict() if self.failed else None,
            finish_reason=self.finish_reason,
            usage=total_usage(self.attempts),
            is_estimated=any(attempt.is_estimated for attempt in self.attempts),
            provider=self.provider,
            upstream_model=self.upstream_model,
            has_brought_key=self.has_brought_key,
            continuations=self.continuations,
            tries=self.tries,
            queue_wait_ms=round(ask.waited_s * 1000),
            ttft_ms=self.ttft_ms,
            duration_ms=ask.elapsed_ms(),
            cost=total_cost(self.attempts),
            attempts=self.attempts,
        )
