"""What is known of a job while it runs, and what came of it?"""

import time
from dataclasses import dataclass, field

from common.canonical.errors import Failed
from common.canonical.events import Usage
from common.metering.attempts import Attempt
from workers.providers.base import Deployment


@dataclass(frozen=True, slots=True)
class RunsOn:
    """An answer in the background, paid for until it ends. Which of the keys it is known by may not be known here."""

    answer_id: str
    deployments: list[Deployment]


@dataclass(slots=True)
class Outcome:
    """What is known of a generation as it runs; ``failed`` None means completed."""

    waited_s: float
    is_background: bool = False
    began_at: float = field(default_factory=time.monotonic)
    dialect: str = ""
    is_stream: bool = False  # Whether the client gets one.
    provider: str = ""
    upstream_model: str = ""
    model: str = ""
    messages: int = 0
    tries: int = 0
    is_committed: bool = False
    ttft_ms: int | None = None
    output_events: int = 0
    finish_reason: str | None = None
    attempts: list[Attempt] = field(default_factory=list)  # Those that have ended, and count.
    reported: Usage | None = None  # By the last try's upstream.
    spent: Usage | None = None  # By the tries before it whose output the client has; the client's figures begin with it.
    has_brought_key: bool = False  # Whether the client pays, with a key that it brought.
    continuations: int = 0
    upstream_id: str = ""  # What an upstream that can be read again calls the answer.
    in_background: bool = False  # Whether that is the provider's id for one that it runs in the background,
    runs_on: RunsOn | None = None  # and that one, until its end is seen.
    tries_before: int = 0  # The last continuation, or the last time that it waited for its upstream; by whichever worker.
    is_cut: bool = False  # Whether a guardrail ended it before its upstream did.
    failed: Failed | None = None
    last_data: bytes = b""  # The client bytes that came last: a stream's last events, or a whole body.
    reply_headers: dict[str, str] = field(default_factory=dict)
    knows_past: bool = False  # What the claims before have written is among the attempts.
    is_reread: bool = False  # The last try reads the answer of the one before it again.

    @property
    def attempts_before(self) -> list[Attempt]:
        """Those before the one that runs now."""
        return self.attempts[:-1] if self.is_reread else self.attempts

    def note(self, deployment: Deployment) -> None:
        """Note who answers, or is about to, and who pays for it."""
        self.provider, self.upstream_model = deployment.provider, deployment.model
        self.has_brought_key = deployment.client_pays

    def elapsed_ms(self) -> int:
        """Return the time since the request was enqueued."""
        return round((time.monotonic() - self.began_at + self.waited_s) * 1000)
