"""May this request come in?

The connection asks this for each request that would start a generation, once the request's head has arrived. By then nothing of
it has been read or looked up, so a refusal costs almost nothing. Two things refuse a request. One is the limit on admission
(``limit``), which is divided between the tenants that send requests (``shares``). The other concerns interactive requests only:
the queue is so long that they would wait for longer than ``queue_wait_s``. Reads, health, metrics and the admin API are never
refused here.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from starlette.types import Scope

from api.metrics import ApiMetrics
from api.overload.answers import RefusalResponses, overloaded
from api.overload.limit import AdmissionLimit
from api.overload.shares import CredentialCache, CredentialOwner, credential_of
from api.overload.starts import Starts
from api.relay.viewer import Viewer
from api.server.retry_after import retry_after_s
from common.access.principal import Principal
from common.canonical.errors import GatewayError
from common.config.settings import Settings
from common.limits.charges import safe_name
from common.process.loop_lag import loop_lag
from common.queue.jobs import JobClass
from common.queue.load import QueueLoad

log = structlog.get_logger()

_BACKGROUND_PATH = "/v1/generations"  # It starts background work, unless a header says otherwise.
_PATHS = frozenset(
    {
        _BACKGROUND_PATH,
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/chat",
    }
)
_CLASS_IN_BODY_PATH = "/v1/responses"  # Its body says whether it is background work.
_AGENTARY = "/api/"
_CREDENTIAL = "credential"  # A key in a scope's state.
ORIGINS_MAX = 1_000
RETRY_WITHIN_S, RETRY_WITHIN_MAX_S = 2.0, 30.0
GROWN_TICKS = 3  # Of 50 ms each. When five hundred clients come at once, the queue does not grow for that long.
OVER_S = 5.0  # An overload is over after this long without a refusal.

Reason = Literal["loop", "workers", "starting", "wait"]
_Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Overload:
    """One overload: from its first refusal until ``OVER_S`` after its last one."""

    started_at: float
    last_at: float = 0.0
    refused: int = 0
    reasons: set[Reason] = field(default_factory=set)


class _AcceptQueue:
    """The accepted connections that wait to be created. A queue that shrinks is only a burst. A queue that grows tick after
    tick is late by as long as it has existed.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._count = self._count_before = 0
        self._grown_ticks = 0

    def record(self, count: int) -> None:
        self._count = count
        self._since = (self._since or self._clock()) if count else None

    def lag_s(self) -> float:
        """Return how late the queue is. Must be called once per tick."""
        self._grown_ticks = self._grown_ticks + 1 if self._count > self._count_before else 0
        self._count_before = self._count
        if self._since is None or self._grown_ticks < GROWN_TICKS:
            return 0.0
        return self._clock() - self._since


class Gate:
    """One per process. ``start`` must be called within its loop."""

    def __init__(
        self,
        settings: Settings,
        load: QueueLoad,
        metrics: ApiMetrics,
        responses: RefusalResponses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._load = load
        self._metrics = metrics
        self._responses = responses
        self._clock = clock
        self._credentials = CredentialCache()
        self._origins: dict[bytes, None] = {}
        self._overload: _Overload | None = None
        self._starts = Starts(clock)
        self._is_turn_counted = False
        self._accept_queue = _AcceptQueue(clock)
        self.starting = 0  # Requests that have arrived completely, but are not in the queue yet.
        self.limit = AdmissionLimit(settings.overload_lag_ms / 1000, settings.overload_claim_ms / 1000, clock)

    def start(self) -> None:
        loop_lag().observe(self.tick)

    # Each request

    @property
    def is_refusing(self) -> bool:
        """Whether a request was refused lately, so that the next one may be refused too."""
        return self._overload is not None or self.limit.reason is not None

    def record_waiting(self, count: int) -> None:
        """Record how many accepted connections wait to be created."""
        self._accept_queue.record(count)

    def refusal(self, scope: Scope, *, is_last: bool, is_early: bool = False) -> bytes | None:
        """Return the response for a request that is refused; None if it is admitted.

        Args:
            is_last: Whether the connection is closed after the response.
            is_early: Whether the request came before the overload, and was only not read yet. Then no limit applies to it.
        """
        # Hot path: once per request.
        path, headers = scope["path"], scope["headers"]
        if scope["method"] != "POST" or not (path in _PATHS or path.startswith(_AGENTARY)):
            return None
        credential = scope["state"][_CREDENTIAL] = credential_of(headers)
        owner = self._credentials.find(credential)
        reason, within_s = self._check(owner, path, headers, is_early)
        if reason is None:
            return None
        self._record_refusal(reason)
        origin = next((value for name, value in headers if name == b"origin" and value in self._origins), b"")
        wait_s = math.ceil(retry_after_s(min(within_s, RETRY_WITHIN_MAX_S)))
        return self._responses.refusal(path, headers, wait_s, origin=origin, is_last=is_last)

    def _check(self, owner: CredentialOwner, path: str, headers: _Headers, is_early: bool) -> tuple[Reason | None, float]:
        """Return why a request is refused (None: admitted), and over how many seconds the retries must spread."""
        if self.starting >= self._settings.starting_max:
            return "starting", RETRY_WITHIN_S
        if self._load.reading.waiting and self._is_wait_too_long(owner.tenant) and not _is_background(path, headers, owner):
            return "wait", RETRY_WITHIN_MAX_S
        reason = self.limit.reason
        if reason and not self._is_turn_counted:
            self._is_turn_counted = True
            self.limit.turn()
            asyncio.get_running_loop().call_soon(self._end_turn)
        if self.limit.admit(owner.tenant, is_early):
            self._metrics.admitted.inc()
            return None, 0
        return reason, RETRY_WITHIN_S * self.limit.pressure

    def _end_turn(self) -> None:
        self._is_turn_counted = False

    def _is_wait_too_long(self, tenant: str) -> bool:
        """Whether a new job would wait for longer than allowed. If there are free slots, it does not wait for one."""
        if self._load.reading.has_free_slots:
            return False
        wait_s = self._load.wait_s(tenant)
        return wait_s is not None and wait_s > self._settings.queue_wait_s

    def remember_credential(self, scope: Scope, principal: Principal) -> None:
        """Remember the owner of a request's credential, after it was authenticated."""
        credential = scope.get("state", {}).get(_CREDENTIAL)
        if credential is not None:
            is_background = JobClass(principal.highest_class) is JobClass.BACKGROUND
            self._credentials.add(credential, CredentialOwner(safe_name(principal.tenant), is_background))

    def remember_origin(self, origin: bytes) -> None:
        """Remember an origin whose pages may read our responses, so that they can read refusals too."""
        if origin not in self._origins:
            self._origins[origin] = None
            if len(self._origins) > ORIGINS_MAX:
                del self._origins[next(iter(self._origins))]

    # On the way into the queue

    def check_wait(self, principal: Principal, job_class: JobClass) -> None:
        """Refuse an interactive request whose class was not known until its body was read.

        Raises:
            GatewayError: OVERLOADED.
        """
        is_interactive = job_class is JobClass.INTERACTIVE
        if is_interactive and self._load.reading.waiting and self._is_wait_too_long(safe_name(principal.tenant)):
            self._record_refusal("wait")
            raise GatewayError.from_failed(overloaded(math.ceil(retry_after_s(RETRY_WITHIN_MAX_S))))

    def record_enqueued(self, viewer: Viewer, job_class: JobClass) -> None:
        if job_class is JobClass.INTERACTIVE:
            self._starts.record_enqueued(viewer)

    def record_left(self, viewer: Viewer) -> None:
        self._starts.record_left(viewer)

    # State and reports

    def tick(self, lag_s: float) -> None:
        """Update the limit with the loop's lag. Called on each tick of the loop's clock."""
        oldest_s = self._starts.oldest_s()
        lag_s = max(lag_s, self._accept_queue.lag_s())
        delay_s = oldest_s if self._load.has_free_slots else 0.0
        self.limit.tick(lag_s, delay_s, len(self._starts) + self.starting, self._starts.claimed)
        now = self._clock()
        overload = self._overload
        if overload and now - overload.last_at > OVER_S:
            log.info("overload_over", refused=overload.refused, lasted_s=round(overload.last_at - overload.started_at, 1))
            self._overload = None

    def state(self) -> dict[str, Any]:
        """Return what ``/health`` reports."""
        return {
            "is_overloaded": self._overload is not None,
            "reasons": sorted(self._overload.reasons) if self._overload else [],
            "admission_limit_per_s": self.limit_per_s(),
            "estimated_wait_s": self.estimated_wait_s(),
        }

    def limit_per_s(self) -> int | None:
        """Return how many requests per second are admitted; None while all are admitted."""
        return round(self.limit.admitted_per_s) if self.limit.reason else None

    def estimated_wait_s(self) -> float | None:
        """Return how long a tenant's first interactive job would wait; None if that is not known."""
        wait_s = self._load.wait_s("")
        return None if wait_s is None else round(wait_s, 3)

    def _record_refusal(self, reason: Reason) -> None:
        self._metrics.shed.labels(reason).inc()
        now = self._clock()
        if self._overload is None:
            self._overload = _Overload(now)
            log.warning(
                "overloaded",
                reason=reason,
                loop_lag_ms=round(loop_lag().now_s * 1000),
                starting=self.starting,
                waiting=self._load.reading.waiting,
            )
        self._overload.last_at = now
        self._overload.refused += 1
        self._overload.reasons.add(reason)


def _is_background(path: str, headers: _Headers, owner: CredentialOwner) -> bool:
    """Whether a request is for background work, or may be. If only its body says so, ``check_wait`` checks it again."""
    class_name = next((value for name, value in headers if name == b"x-sluice-class"), b"")
    if class_name:
        return class_name.strip().lower() == JobClass.BACKGROUND.encode()
    return owner.is_background or path in (_BACKGROUND_PATH, _CLASS_IN_BODY_PATH)
