"""May this request come in?

Asked by the connection for each request that would start a generation, once its head is there: nothing of it has been read
or looked up by then, so that a refusal costs next to nothing. Two things refuse: the limit on what is admitted
(``limit``), divided over the tenants that ask (``shares``), and for interactive requests a line so long that they would
wait for longer than ``queue_wait_s``. Reads, health, metrics and the admin API are never refused here.
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
from api.overload.answers import Answers, overloaded
from api.overload.limit import AdmissionLimit
from api.overload.shares import Credentials, Known, credential_of
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

_BACKGROUND_PATH = "/v1/generations"  # What it starts is work for later, unless a header says otherwise.
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
_TELLS_IN_BODY = "/v1/responses"  # Whether it is background work.
_AGENTARY = "/api/"
_CREDENTIAL = "credential"  # In a scope's state.
ORIGINS_MAX = 1_000
RETRY_WITHIN_S, RETRY_WITHIN_MAX_S = 2.0, 30.0
GROWN_TICKS = 3  # Of 50 ms: five hundred clients who come at once do not make a line grow for so long.
OVER_S = 5.0  # Without a refusal for so long, the overload is over.

Reason = Literal["loop", "workers", "starting", "wait"]
_Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Spell:
    """A time of overload: from its first refusal until ``OVER_S`` after its last."""

    began_at: float
    last_at: float = 0.0
    refused: int = 0
    reasons: set[Reason] = field(default_factory=set)


class _Line:
    """The connections that wait to be made. A line that shrinks is a burst, and will be over; one that grows, tick after
    tick, is late by as long as it has stood."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._count = self._count_before = 0
        self._grown_ticks = 0

    def note(self, count: int) -> None:
        self._count = count
        self._since = (self._since or self._clock()) if count else None

    def lag_s(self) -> float:
        """To be asked once per tick."""
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
        answers: Answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._load = load
        self._metrics = metrics
        self._answers = answers
        self._clock = clock
        self._credentials = Credentials()
        self._origins: dict[bytes, None] = {}
        self._spell: _Spell | None = None
        self._starts = Starts(clock)
        self._is_turn_known = False
        self._line = _Line(clock)
        self.starting = 0  # Requests that are complete, and not in line yet.
        self.limit = AdmissionLimit(settings.overload_lag_ms / 1000, settings.overload_claim_ms / 1000, clock)

    def start(self) -> None:
        loop_lag().observe(self.tick)

    # Each request

    @property
    def is_refusing(self) -> bool:
        """Whether something was refused lately, so that the next request may be as well."""
        return self._spell is not None or self.limit.reason is not None

    def record_waiting(self, count: int) -> None:
        """So many connections wait to be made."""
        self._line.note(count)

    def refusal(self, scope: Scope, *, is_last: bool, is_early: bool = False) -> bytes | None:
        """Return the response to a request that may not come in.

        Args:
            is_last: Whether its connection ends behind it.
            is_early: Whether it came before there was an overload, and only was not read: no limit applies to it.
        """
        # Hot path: once per request.
        path, headers = scope["path"], scope["headers"]
        if scope["method"] != "POST" or not (path in _PATHS or path.startswith(_AGENTARY)):
            return None
        credential = scope["state"][_CREDENTIAL] = credential_of(headers)
        known = self._credentials.find(credential)
        reason, within_s = self._judge(known, path, headers, is_early)
        if reason is None:
            return None
        self._note_refused(reason)
        origin = next((value for name, value in headers if name == b"origin" and value in self._origins), b"")
        wait_s = math.ceil(retry_after_s(min(within_s, RETRY_WITHIN_MAX_S)))
        return self._answers.refusal(path, headers, wait_s, origin=origin, is_last=is_last)

    def _judge(self, known: Known, path: str, headers: _Headers, is_early: bool) -> tuple[Reason | None, float]:
        """Return why a request may not come in, and over how many seconds such clients are to spread; None: it may."""
        if self.starting >= self._settings.starting_max:
            return "starting", RETRY_WITHIN_S
        if self._load.reading.waiting and self._is_too_long(known.tenant) and not _is_background(path, headers, known):
            return "wait", RETRY_WITHIN_MAX_S
        reason = self.limit.reason
        if reason and not self._is_turn_known:
            self._is_turn_known = True
            self.limit.turn()
            asyncio.get_running_loop().call_soon(self._end_turn)
        if self.limit.admit(known.tenant, is_early):
            self._metrics.admitted.inc()
            return None, 0
        return reason, RETRY_WITHIN_S * self.limit.pressure

    def _end_turn(self) -> None:
        self._is_turn_known = False

    def _is_too_long(self, tenant: str) -> bool:
        """Whether a job that came now would wait for longer than it may. Beside free slots it does not wait for one."""
        if self._load.reading.has_free_slots:
            return False
        wait_s = self._load.wait_s(tenant)
        return wait_s is not None and wait_s > self._settings.queue_wait_s

    def remember_credential(self, scope: Scope, principal: Principal) -> None:
        """A request's credential was good: remember whose it is."""
        credential = scope.get("state", {}).get(_CREDENTIAL)
        if credential is not None:
            is_background = JobClass(principal.highest_class) is JobClass.BACKGROUND
            self._credentials.learn(credential, Known(safe_name(principal.tenant), is_background))

    def remember_origin(self, origin: bytes) -> None:
        """Pages of an origin may read our answers, and so our refusals."""
        if origin not in self._origins:
            self._origins[origin] = None
            if len(self._origins) > ORIGINS_MAX:
                del self._origins[next(iter(self._origins))]

    # On the way into the queue

    def check_wait(self, principal: Principal, job_class: JobClass) -> None:
        """Refuse an interactive request of which the class was not known before its body was.

        Raises:
            GatewayError: OVERLOADED.
        """
        if job_class is JobClass.INTERACTIVE and self._load.reading.waiting and self._is_too_long(safe_name(principal.tenant)):
            self._note_refused("wait")
            raise GatewayError.from_failed(overloaded(math.ceil(retry_after_s(RETRY_WITHIN_MAX_S))))

    def record_enqueued(self, viewer: Viewer, job_class: JobClass) -> None:
        if job_class is JobClass.INTERACTIVE:
            self._starts.record_enqueued(viewer)

    def record_left(self, viewer: Viewer) -> None:
        self._starts.record_left(viewer)

    # How it stands

    def tick(self, lag_s: float) -> None:
        """Take the loop's lag; called for each of its ticks."""
        oldest_s = self._starts.oldest_s()
        lag_s = max(lag_s, self._line.lag_s())
        delay_s = oldest_s if self._load.has_free_slots else 0.0
        self.limit.tick(lag_s, delay_s, len(self._starts) + self.starting, self._starts.claimed)
        now = self._clock()
        spell = self._spell
        if spell and now - spell.last_at > OVER_S:
            log.info("overload_over", refused=spell.refused, lasted_s=round(spell.last_at - spell.began_at, 1))
            self._spell = None

    def state(self) -> dict[str, Any]:
        """What ``/health`` says."""
        return {
            "is_overloaded": self._spell is not None,
            "reasons": sorted(self._spell.reasons) if self._spell else [],
            "admission_limit_per_s": self.limit_per_s(),
            "estimated_wait_s": self.estimated_wait_s(),
        }

    def limit_per_s(self) -> int | None:
        """How many requests a second are admitted; None while that is as many as come."""
        return round(self.limit.admitted_per_s) if self.limit.reason else None

    def estimated_wait_s(self) -> float | None:
        """For how long a tenant's first interactive job would wait; None where that is not known."""
        wait_s = self._load.wait_s("")
        return None if wait_s is None else round(wait_s, 3)

    def _note_refused(self, reason: Reason) -> None:
        self._metrics.shed.labels(reason).inc()
        now = self._clock()
        if self._spell is None:
            self._spell = _Spell(now)
            log.warning(
                "overloaded",
                reason=reason,
                loop_lag_ms=round(loop_lag().now_s * 1000),
                starting=self.starting,
                waiting=self._load.reading.waiting,
            )
        self._spell.last_at = now
        self._spell.refused += 1
        self._spell.reasons.add(reason)


def _is_background(path: str, headers: _Headers, known: Known) -> bool:
    """Whether a request is for background work, or may be: where its body says so, ``check_wait`` looks again."""
    said = next((value for name, value in headers if name == b"x-sluice-class"), b"")
    if said:
        return said.strip().lower() == JobClass.BACKGROUND.encode()
    return known.is_background or path in (_BACKGROUND_PATH, _TELLS_IN_BODY)
