"""May a vendor's key be called now, for this request?

There are three reasons to say no, and none of them costs a call to the vendor: the vendor has told us to wait (``pauses``), a
quota in our own settings is used up (``reservations``): the key's, or that of the route's target; or the gateway's budget for
this provider is spent (``budgets``).
After a refusal the route's next key is used at once, or the generation waits: ``workers/attempt/retries.py`` decides.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path

import orjson

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.events import Usage
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.canonical.wording import try_again
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.limits.shared_lua import WINDOW
from common.metering.token_estimate import estimate_tokens, reserved_tokens
from common.process.process import supervised
from common.process.rhythm import until_turn_s
from common.redis import keyspace
from common.redis.client import Client, ms
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.quota.health import KEPT_S, NAMES_MAX, PROBE_S, Health
from workers.quota.pauses import PAUSES_MAX, Pauses
from workers.quota.provider_budgets import ProviderBudgets
from workers.quota.reservations import BUSY_RECHECK_S, Reservation, Reservations, Shortage
from workers.quota.vendor_headers import pause_s

FLUSH_S = 0.5  # A settlement wakes the flush. Without one, it checks this often whether places must be renewed.


class Refused(GatewayError):
    """A call that was not made. After ``wait_s`` it can surely be made, after ``earliest_s`` perhaps.

    Clients get ``wait_s``. It is the vendor's own value if the vendor sent one.
    """

    def __init__(self, limit: str, message: str, wait_s: float, earliest_s: float) -> None:
        kind = ErrorKind.OVERLOADED if limit == "redis_away" else ErrorKind.UPSTREAM_RATE_LIMITED
        super().__init__(kind, message, code="upstream_quota", retry_after_s=wait_s)
        self.limit, self.wait_s, self.earliest_s = limit, wait_s, earliest_s

    def as_final_failure(self, soonest_s: float) -> Failed:
        """Return the failure for the client, if no deployment of its route is free before ``soonest_s``."""
        self.failed.retry_after_s = soonest_s
        self.failed.message += f" {try_again(soonest_s)}"
        return self.failed


class Demand:
    """What one generation needs of a quota. It is estimated once, and only when it is used."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.refused_by: set[tuple[str, str]] = set()  # Pairs of key and limit: the metric counts each pair once.

    @property
    def is_generation(self) -> bool:
        """Whether the generation limits apply. Token counting has its own limits, or none."""
        return self.job.operation == "generate"

    @cached_property
    def _request(self) -> GenerationRequest:
        return DIALECTS[self.job.dialect].parse(orjson.loads(self.job.body))

    @cached_property
    def input_tokens(self) -> int:
        return estimate_tokens(self._request)

    @cached_property
    def tokens(self) -> int:
        return reserved_tokens(self._request)


class CallUsage:
    """The tokens that an admitted call used, as far as they are known."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._usage: Usage | None = None
        self._output_events = 0
        self._is_whole = False

    def record(self, usage: Usage | None, output_events: int, *, is_whole: bool) -> None:
        self._usage, self._output_events, self._is_whole = usage, output_events, is_whole

    @property
    def tokens(self) -> int:
        if self._usage and self._is_whole:
            return self._usage.input_tokens + self._usage.output_tokens
        if self._usage is None and not self._output_events:
            return 0  # Refused, or never reached.
        usage = self._usage or Usage()
        # An answer that broke off may have reported its input only, or nothing. An event has at least one token.
        return (usage.input_tokens or self._demand.input_tokens) + max(usage.output_tokens, self._output_events)


def scripts_of(redis: Client) -> Scripts:
    return Scripts(redis, Path(__file__).parent, WINDOW)


class Quota:
    """One worker's gate. It needs Redis only for providers and targets of routes with limits in the settings."""

    def __init__(self, redis: Client, pulse: Pulse, settings: Settings, metrics: Metrics) -> None:
        self._scripts = scripts_of(redis)
        self._pulse = pulse
        self._settings = settings
        self._metrics = metrics
        self.pauses = Pauses(time.monotonic)
        self.health = Health(time.monotonic, self._claim_probe)
        self.budgets = self._read_budgets = ProviderBudgets(settings)
        self._reservations = Reservations(self._scripts, settings.lease_s, settings.renew_s)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._shown_providers: set[str] = set()

    # Before a call

    def affordable(self, candidates: list[Deployment]) -> list[Deployment]:
        """Return the deployments whose provider's budget is not spent, and those that the client pays for.

        Raises:
            GatewayError: BUDGET_EXCEEDED, there is no such deployment.
        """
        return self.budgets.within_budget(candidates)

    @asynccontextmanager
    async def admitted(self, demand: Demand, deployment: Deployment) -> AsyncIterator[CallUsage]:
        """Admit a call, which is made inside this context. Its usage is settled at the end of the context.

        Raises:
            Refused: the call must not be made now.
        """
        call_usage, reservation = CallUsage(demand), None
        if demand.is_generation:
            self._check_pause(demand, deployment)
            reservation = await self._reserve(demand, deployment)
        try:
            yield call_usage
        finally:
            if reservation:
                self._reservations.release(reservation, call_usage.tokens if reservation.tokens else 0)
                self._wake.set()

    def _check_pause(self, demand: Demand, deployment: Deployment) -> None:
        remaining = self.pauses.remaining(_pause_name(deployment))
        if remaining:
            message = f"The provider {deployment.provider} accepts no more requests for this model at the moment."
            raise self._refusal(demand, deployment, "paused", message, remaining.promise_s, remaining.pause_s)

    async def _reserve(self, demand: Demand, deployment: Deployment) -> Reservation | None:
        if deployment.client_pays:
            return None  # We do not know the quota of a client's own key.
        quotas = {
            deployment.quota_id or deployment.key_id: self._settings.provider(deployment.provider).limits,
            deployment.route_quota: deployment.route_limits,
        }
        quotas = {name: limits for name, limits in quotas.items() if limits.is_set}
        if not quotas:
            return None
        try:
            needs_tokens = any(limits.tokens for limits in quotas.values())
            answer = await self._reservations.reserve(quotas, demand.tokens if needs_tokens else 0)
        except StoreUnavailable as error:
            message = "The gateway cannot check its quota at the moment."
            raise self._refusal(demand, deployment, "redis_away", message, BUSY_RECHECK_S, BUSY_RECHECK_S) from error
        if isinstance(answer, Shortage):
            is_of_route = answer.quota == deployment.route_quota
            whose = "The route has used up its limit" if is_of_route else "The gateway has used up its quota"
            message = f"{whose} of {_LIMIT_TEXTS[answer.limit]} at the provider {deployment.provider} for now."
            limit = f"route_{answer.limit}" if is_of_route else answer.limit
            raise self._refusal(demand, deployment, limit, message, answer.wait_s, answer.earliest_s)
        return answer

    def _refusal(
        self, demand: Demand, deployment: Deployment, limit: str, message: str, wait_s: float, earliest_s: float
    ) -> Refused:
        if (deployment.key_id, limit) not in demand.refused_by:
            demand.refused_by.add((deployment.key_id, limit))
            self._metrics.quota_refusals.labels(deployment.provider, limit).inc()
        return Refused(limit, message, wait_s, earliest_s)

    # After a call

    def read_headers(self, deployment: Deployment, headers: Mapping[str, str]) -> None:
        """Pause a key if an answer's headers say that its quota is used up. Header names are in lower case."""
        if (seconds := pause_s(headers)) > 0:
            self._pause(deployment, seconds)

    def record_failure(self, demand: Demand, deployment: Deployment, failed: Failed) -> None:
        """Pause a key that was refused for its rate. If the refusal has no ``retry_after_s``, set it from a known pause.

        Other failures count for the deployment's health.
        """
        self.health.record_failure(deployment, failed)
        self._wake.set()
        if failed.kind is not ErrorKind.UPSTREAM_RATE_LIMITED or not demand.is_generation:
            return
        if failed.retry_after_s:
            self._pause(deployment, failed.retry_after_s)
        elif remaining := self.pauses.remaining(_pause_name(deployment)):
            failed.retry_after_s = remaining.promise_s

    def _pause(self, deployment: Deployment, seconds: float) -> None:
        if self.pauses.pause(_pause_name(deployment), seconds, self._settings.retry_after_max_s):
            self._wake.set()

    # Independent of single calls

    def use_settings(self, settings: Settings, budgets: ProviderBudgets) -> None:
        """Use other limits and budgets from now on. Reservations that were made stay as they are."""
        budgets.follow(self.budgets)
        self._settings, self.budgets = settings, budgets

    def _budgets_command(self) -> tuple[str, ...]:
        self._read_budgets = self.budgets  # A reload may replace them before the answer comes.
        return self._read_budgets.command()

    def start(self) -> None:
        self._pulse.watch(("HGETALL", keyspace.PAUSED), lambda stored: self.pauses.merge(stored, self._pulse.redis_ms))
        self._pulse.watch(("HGETALL", keyspace.UNWELL), lambda stored: self.health.merge(stored, self._pulse.redis_ms))
        self._pulse.watch(self._budgets_command, lambda values: self._read_budgets.update(values))
        self._task = supervised(self._flush_for_ever, "quota")

    async def stop(self) -> None:
        """Stop the flush task, and settle the calls that have ended."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.flush()

    def collect(self) -> None:
        """Set the gauges."""
        paused_counts, unwell_counts = self.pauses.by_provider(), self.health.unwell_by_provider()
        self._shown_providers |= paused_counts.keys() | unwell_counts.keys()
        for provider in self._shown_providers:
            self._metrics.paused.labels(provider).set(paused_counts[provider])
            self._metrics.unwell.labels(provider).set(unwell_counts[provider])

    async def _flush_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(until_turn_s(FLUSH_S)):
                    await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send released reservations, new pauses and new rests to Redis."""
        await self._reservations.flush()
        if new_pauses := self.pauses.pop_unshared():
            args = [value for pause in new_pauses for value in pause]
            with suppress(StoreUnavailable):  # Then the vendor will tell the other workers itself.
                await self._scripts.run("pause", [keyspace.PAUSED], [PAUSES_MAX, *args])
        if changes := self.health.pop_changes():
            args = [NAMES_MAX, ms(KEPT_S), *(value for change in changes for value in change)]
            with suppress(StoreUnavailable):  # Then the other workers will notice it by themselves.
                await self._scripts.run("rests", [keyspace.UNWELL], args)

    async def _claim_probe(self, name: str) -> bool:
        return bool(await self._scripts.run("probe", [keyspace.UNWELL], [name, ms(PROBE_S)]))


_LIMIT_TEXTS = {"requests": "requests", "tokens": "tokens", "concurrent": "calls at a time"}


def _pause_name(deployment: Deployment) -> str:
    return f"{deployment.key_id}:{deployment.model[:100]}"
