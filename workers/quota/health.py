"""Which deployments are unwell, so that others of their route are called first?

A deployment here is one model with one key of a provider. It is unwell if most of its calls failed within half a minute, if two
calls in a row got no sign of life, or if its key was refused or has no credit left. Clients' own errors do not count. A rate
limit counts only if its vendor does not say for how long (else ``pauses.py`` knows). While a deployment is unwell, it is called
last, once per request. So a route never has fewer deployments than without this, and a route with one is not affected. When its
rest is over, one request of all workers, for which it is the first choice, tries it again. A complete answer makes it well for
everybody: one that begins and breaks off is what other clients must be kept from. A failure doubles the rest.

What one worker learns counts for all: the end of each rest and the number of rests in a row are in Redis, and each worker reads
all of them with its regular poll.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from workers.providers.base import Deployment

log = structlog.get_logger()

WINDOW_S = 30.0
FAILURES_MIN, FAILURE_SHARE = 5, 0.5  # So many failures in a window, which are at least this share of its calls.
SILENT_MIN = 2  # So many calls in a row without a sign of life: each of them costs its client the whole timeout.
REST_S, REST_MAX_S = 5.0, 60.0
KEY_REST_S = 60.0  # Of a key that is refused or has no credit left: an operator must replace it, or pay.
PROBE_S = 30.0  # For so long nobody else tries a deployment that one request tries again.
REQUEST_TRIES_EVERY = 4  # So often in a row, whatever active probes say: a list may be refused where the model would answer.
KEPT_S = 600.0  # After its rest, a deployment that nobody has tried again is forgotten.
SENT_S = 3.0  # By then, what was sent to Redis is read back from there.
NAMES_MAX = 1_000  # In Redis and here. Clients choose names of models freely.
TIMES_MAX = 16
_TIMES = (
    " times"  # After a name in Redis: the field with the number of its rests in a row. Version 1 took it for one more name.
)
_REASONS = {ErrorKind.UPSTREAM_CREDENTIALS: "key_refused", ErrorKind.UPSTREAM_QUOTA_SPENT: "quota_spent"}

# Tells whether this worker may try a deployment again. At most one of all workers may.
ClaimProbe = Callable[[str], Awaitable[bool]]


@dataclass(slots=True)
class _Window:
    """The calls since the first failure, as far as they are in the window: when, and whether they succeeded."""

    calls: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=200))
    silent: int = 0  # Calls in a row without a sign of life.


@dataclass(slots=True)
class _Rest:
    """``until`` is by our own clock. ``times`` counts the rests in a row."""

    until: float
    times: int = 1
    is_probed_here: bool = False
    is_shared: bool = False  # Whether it is from Redis, or was sent there.
    since: float = 0.0
    deployment: Deployment | None = None  # For an active probe, if this worker made it rest. None: requests try it.


class Health:
    """The health of all deployments, as one worker knows it."""

    def __init__(self, clock: Callable[[], float], claim_probe: ClaimProbe, rest_max_s: float = REST_MAX_S) -> None:
        self._clock = clock
        self._claim_probe = claim_probe
        self._rest_max_s = rest_max_s
        self._windows: dict[str, _Window] = {}
        self._rests: dict[str, _Rest] = {}
        self._changed: set[str] = set()

    # Before a request's calls

    async def order(self, candidates: Sequence[Deployment]) -> tuple[list[Deployment], list[Deployment]]:
        """Return the deployments in the order in which they are called, and those of them that are called only once."""
        if not self._rests or len(candidates) == 1:
            return list(candidates), []
        well: list[Deployment] = []
        unwell: list[Deployment] = []
        for deployment in candidates:
            name = name_of(deployment)
            rest = self._rests.get(name)
            # Only the first choice is tried again. A trial that is claimed and not made would keep all others from it.
            is_well = rest is None or (not well and await self._may_try(name, rest))
            (well if is_well else unwell).append(deployment)
        return well + unwell, unwell if well else []

    async def _may_try(self, name: str, rest: _Rest) -> bool:
        if rest.until > self._clock():
            return False
        # Other requests of this worker do not claim it as well.
        rest.until, rest.since = self._clock() + PROBE_S, self._clock()
        try:
            rest.is_probed_here = await self._claim_probe(name)
        except StoreUnavailable:
            rest.is_probed_here = True  # Each worker decides for itself.
        return rest.is_probed_here

    def rests(self, deployment: Deployment) -> bool:
        """Whether a deployment is unwell, and it is not time to try it again."""
        if not self._rests:
            return False
        rest = self._rests.get(name_of(deployment))
        return rest is not None and rest.until > self._clock()

    # After a call

    def record_begun(self, deployment: Deployment) -> None:
        """Record that a deployment has begun to answer: it is not silent."""
        if self._windows and (window := self._windows.get(name_of(deployment))):
            window.silent = 0

    def record_success(self, deployment: Deployment) -> None:
        """Record that a deployment has answered to the end."""
        # Hot path: once per call. Nearly always nothing is known about it.
        if not (self._windows or self._rests):
            return
        name = name_of(deployment)
        if window := self._windows.get(name):
            window.calls.append((self._clock(), True))
            window.silent = 0
        if self._rests.pop(name, None):
            self._windows.pop(name, None)
            self._changed.add(name)
            log.info("deployment_well", provider=deployment.provider, model=deployment.model, key=deployment.key_label)

    def record_failure(self, deployment: Deployment, failed: Failed) -> None:
        """Record a call that failed before its client saw anything, or broke off."""
        reason = _REASONS.get(failed.kind)
        # Nobody knows how long to wait, so it is found out as for other failures.
        is_endless_limit = failed.kind is ErrorKind.UPSTREAM_RATE_LIMITED and not failed.retry_after_s
        if deployment.client_pays:
            return
        name, now = name_of(deployment), self._clock()
        rest = self._rests.get(name)
        if not (failed.kind.is_loss or reason or is_endless_limit):
            if rest and rest.is_probed_here:
                self._end_rest(name, rest)  # The trial said nothing, so the next request makes one.
            return
        if rest and rest.until > now and not rest.is_probed_here:
            return  # It began before the rest, or had no other deployment.
        usual_s = KEY_REST_S if reason else 0.0
        reason = reason or ("probe_failed" if rest else self._count(name, failed, now))
        if reason:
            self._rest(deployment, reason, usual_s, failed.retry_after_s or 0)

    def _rest(self, deployment: Deployment, reason: str, usual_s: float, requested_s: float) -> None:
        """Make a deployment rest, for longer than the last time if it has not been well since. ``usual_s`` 0: as others."""
        name, now = name_of(deployment), self._clock()
        rest = self._rests.get(name)
        times = min(rest.times + 1, TIMES_MAX) if rest else 1
        usual_s = usual_s or REST_S * 2 ** (times - 1)
        rest_s = max(min(usual_s, self._rest_max_s), min(requested_s, self._rest_max_s))
        self._rests[name] = _Rest(now + rest_s, times, since=now, deployment=deployment)
        self._windows.pop(name, None)
        self._changed.add(name)
        key = deployment.key_label
        log.warning(
            "deployment_unwell", provider=deployment.provider, model=deployment.model, key=key, reason=reason, rest_s=rest_s
        )

    def _count(self, name: str, failed: Failed, now: float) -> str | None:
        """Count a failure. Return why the deployment is unwell now; None: it is not."""
        while len(self._windows) >= NAMES_MAX and name not in self._windows:
            del self._windows[next(iter(self._windows))]
        window = self._windows.setdefault(name, _Window())
        is_silent = failed.kind is ErrorKind.UPSTREAM_TIMEOUT and failed.status is None
        window.silent = window.silent + 1 if is_silent else 0
        window.calls.append((now, False))
        while window.calls[0][0] < now - WINDOW_S:
            window.calls.popleft()
        failures = sum(not is_success for _, is_success in window.calls)
        if window.silent >= SILENT_MIN:
            return "silent"
        return "errors" if failures >= FAILURES_MIN and failures >= FAILURE_SHARE * len(window.calls) else None

    # Active probes

    def due(self, lead_s: float) -> list[Deployment]:
        """Return the deployments to probe: this worker made them rest, and that is over in ``lead_s`` or sooner."""
        if not self._rests:
            return []
        until = self._clock() + lead_s
        due = [rest for rest in self._rests.values() if rest.until <= until and rest.times % REQUEST_TRIES_EVERY]
        return [rest.deployment for rest in due if rest.deployment]

    def hold(self, deployment: Deployment, hold_s: float) -> None:
        """Keep requests from a deployment while it is probed. Redis has the same time."""
        if rest := self._rests.get(name_of(deployment)):
            rest.until, rest.since = self._clock() + hold_s, self._clock()

    def leave_to_requests(self, deployment: Deployment | None = None) -> None:
        """Probe a deployment, or all of them, no more until they rest again."""
        for rest in [self._rests.get(name_of(deployment))] if deployment else self._rests.values():
            if rest:
                rest.deployment = None

    def record_probe(self, deployment: Deployment, *, is_reached: bool) -> None:
        """Let a request try a deployment that is reached again. Let one that is not rest on."""
        name = name_of(deployment)
        rest = self._rests.get(name)
        if rest is None:
            return  # A request that had no other deployment has had an answer meanwhile.
        if is_reached:
            rest.deployment = None
            self._end_rest(name, rest)
        else:
            self._rest(deployment, "probe_failed", 0.0, 0.0)

    def abandon_trial(self, deployment: Deployment) -> None:
        """Record that the request that tried a deployment again has gone before its end: the next one makes a trial."""
        if self._rests and (rest := self._rests.get(name_of(deployment))) and rest.is_probed_here:
            self._end_rest(name_of(deployment), rest)

    def _end_rest(self, name: str, rest: _Rest) -> None:
        """Let one request of all workers try a deployment from now on."""
        rest.until = rest.since = self._clock()
        rest.is_probed_here = False
        self._changed.add(name)

    # All workers

    def pop_changes(self) -> list[tuple[str, int, int]]:
        """Return what other workers do not know yet, once: name, for how many ms it rests (0: it is well), and its rests in a
        row.
        """
        changed, now = self._changed, self._clock()
        self._changed = set()
        changes = []
        for name in changed:
            rest = self._rests.get(name)
            if rest:
                rest.is_shared = True
            changes.append((name, max(1, round((rest.until - now) * 1000)), rest.times) if rest else (name, 0, 0))
        return changes

    def merge(self, stored: Mapping[bytes, bytes], redis_ms: int) -> None:
        """Merge the rests that Redis has: their ends (ms) by Redis' clock. One that is gone there is over."""
        now = self._clock()
        fields = {field.decode(): int(value) for field, value in stored.items()}
        ends = {name: now + (until_ms - redis_ms) / 1000 for name, until_ms in fields.items() if not name.endswith(_TIMES)}
        for name, until in ends.items():
            rest, times = self._rests.get(name), min(max(1, fields.get(name + _TIMES, 1)), TIMES_MAX)
            if name in self._changed:
                continue
            if rest is None:
                self._rests[name] = _Rest(until, times, is_shared=True, since=now)
            elif not rest.is_probed_here:
                # Redis knows best, unless it was asked before it heard of this rest.
                is_older = rest.since >= now - SENT_S
                rest.until, rest.times = max(until, rest.until) if is_older else until, max(times, rest.times)
                rest.is_shared = True
        # What was read may be older than what was sent a moment ago.
        known = {name for name, rest in self._rests.items() if rest.is_shared and rest.since < now - SENT_S}
        for name in known - ends.keys() - self._changed:
            del self._rests[name]

    def unwell_by_provider(self) -> Counter[str]:
        return Counter(name.partition(":")[0] for name in self._rests)


def name_of(deployment: Deployment) -> str:
    return f"{deployment.key_id}:{deployment.model[:100]}"
