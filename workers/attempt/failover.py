"""Which deployments are called, and in which order, until one answers?

First the targets of the name, as ``retries`` says. If none of them answers, and the route has a fallback for that failure, then
the fallback's deployments. A route may also have a call made twice if it is slow (``hedging``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, Remedy
from common.canonical.job import Job
from common.config.route_rules import FallbackReason
from workers.attempt.failure_report import report_failure
from workers.attempt.hedging import TwoCalls, call_twice
from workers.attempt.misfits import find_misfit, surely_overflows
from workers.attempt.prepare import reply_info
from workers.attempt.retries import AttemptPlan
from workers.attempt.retry_wait import postpone, wait_limits
from workers.metering.charging import pack_with_running
from workers.outcome import CallResult
from workers.providers.base import Deployment
from workers.quota.gate import CallUsage, Demand, Refused
from workers.quota.health import name_of
from workers.routing.lineup import Fallbacks, Lineup, is_answerable_later, reason_of
from workers.run_context import RunContext

log = structlog.get_logger()

Call = Callable[[RunContext, CallResult], Awaitable[None]]
Groups = Mapping[FallbackReason | None, list[Deployment]]  # By the reason for which fallbacks are called; None: targets.


async def call_deployments(context: RunContext, lineup: Lineup, call: Call) -> None:
    """Call deployments until one has answered. Each result is added to the total.

    Raises:
        GatewayError: no deployment answered, or one broke off after its commit point.
        Postponed: the upstream must be called later; the job goes back into the queue.
    """
    await _Failover(context, lineup, call).run()


class _Failover:
    def __init__(self, context: RunContext, lineup: Lineup, call: Call) -> None:
        self._context, self._lineup, self._call = context, lineup, call
        self._quota, self._total, self._demand = context.services.quota, context.total, Demand(context.job)
        self._fallbacks = Fallbacks(lineup)
        self._called: set[str] = set()  # Names of deployments.
        self._fits: dict[tuple[str, int], bool] = {}  # Names of fallbacks' deployments: whether they can take the request.
        self._dropped: set[str] = set()  # What the calls so far have lost of the request.
        self._refused_window = 0
        self._may_hedge = lineup.hedge_after_s is not None and not context.active_job.is_background
        if self._may_hedge:
            context.services.hedges.record_call(lineup.route)

    async def run(self) -> None:
        first: GatewayError | None = None
        groups = self._first_groups()
        while any(groups.values()):
            reason = None
            try:
                if await self._run_round(groups):
                    return
            except GatewayError as error:
                if self._total.is_committed:
                    raise
                first = error if first is None or is_answerable_later(error.failed) else first
                reason = reason_of(error.failed)
            groups = {reason: self._fallbacks.round_for(reason)} if reason else {}
        if first:
            raise first
        await self._run_round({None: self._lineup.deployments})  # No fallback can take the request.

    def _first_groups(self) -> Groups:
        own, overflow = self._lineup.deployments, self._fallbacks.round_for("context_overflow")
        if overflow and all(surely_overflows(self._context.job, one.facts) for one in own):
            self._refused_window = max(one.facts.context_tokens or 0 for one in own)
            if any(self._can_take(one, "context_overflow") for one in overflow):
                return {"context_overflow": overflow}
        return self._fallbacks.first_round()

    async def _run_round(self, groups: Groups) -> bool:
        """Call the deployments of some groups until one has answered. Return False if none can take the request.

        Raises:
            GatewayError, Postponed: as ``call_deployments``.
        """
        context, total, quota = self._context, self._total, self._quota
        reasons = {id(one): reason for reason, ones in groups.items() for one in ones}
        ordered, unwell = await quota.health.order(quota.affordable([one for ones in groups.values() for one in ones]))
        plan = AttemptPlan(
            ordered,
            *wait_limits(context.active_job, total, context.settings),
            attempts_max=context.settings.attempts_per_deployment,
            backoff_s=context.settings.retry_backoff_s,
            called_once=unwell,
            is_unwell=quota.health.rests,
        )
        failure: GatewayError | None = None
        is_asked_to_wait = False
        while True:
            deployment, reason = plan.deployment, reasons[id(plan.deployment)]
            if reason and not self._can_take(deployment, reason):
                wait_s = plan.skip()
            else:
                total.set_deployment(deployment)
                try:
                    await self._attempt(plan, reason, groups.get(None, []))
                    return True
                except Refused as refusal:
                    failure, is_asked_to_wait = refusal, True
                    wait_s = plan.delay_after_refusal(refusal.wait_s, refusal.earliest_s)
                except GatewayError as error:
                    failure = error
                    wait_s = self._after_failure(plan, error)
                    is_asked_to_wait = failure.failed.retry_after_s is not None
            if wait_s is None:
                if failure is None:
                    return False
                raise self._final(plan, failure)
            if is_asked_to_wait:
                postpone(wait_s, plan.soonest_s, context.active_job, total, context.settings)
            await asyncio.sleep(wait_s)

    def _after_failure(self, plan: AttemptPlan, error: GatewayError) -> float | None:
        """Record a failed call of ``plan.deployment``. Return the seconds until the next call; None: there is none.

        From then on the error is the one for the client.
        """
        deployment, metrics = plan.deployment, self._context.services.metrics
        failed = self._record_failure(deployment, error)
        wait_s = None if self._total.is_committed else plan.delay_after_failure(failed)
        report_failure(error, failed, deployment, self._total.attempt_count, wait_s, metrics)
        if wait_s is not None:
            metrics.retries.labels(plan.deployment.provider).inc()
        error.failed = failed
        return wait_s

    def _record_failure(self, deployment: Deployment, error: GatewayError) -> Failed:
        """Record a failed call, and return the failure as the client sees it."""
        failed = _as_client_failure(error.failed, self._context.job, deployment.provider)
        self._quota.record_failure(self._demand, deployment, error.failed)
        if not self._total.is_committed and error.failed.kind.remedy is not Remedy.NONE:
            self._context.services.traffic.record_failure(name_of(deployment))
        failed.retry_after_s = error.failed.retry_after_s
        if failed.kind is ErrorKind.CONTEXT_LENGTH_EXCEEDED:
            self._refused_window = max(self._refused_window, deployment.facts.context_tokens or 0)
        return failed

    def _final(self, plan: AttemptPlan, failure: GatewayError) -> GatewayError:
        """Return the failure of a round of which no deployment is left."""
        if isinstance(failure, Refused):
            self._context.services.metrics.errors.labels(failure.failed.kind).inc()
            return GatewayError.from_failed(failure.as_final_failure(plan.soonest_s))
        failure.failed.retry_after_s = plan.resumes_in_s or failure.failed.retry_after_s
        return failure

    # One attempt: a call, or two

    async def _attempt(self, plan: AttemptPlan, reason: FallbackReason | None, targets: list[Deployment]) -> None:
        """Call the plan's deployment. If its route hedges and the call is slow, call one of the ``targets`` beside it."""
        deployment = plan.deployment
        if reason or not self._may_hedge or not self._can_be_hedged(deployment):
            await self._make_call(plan, deployment, reason or "")
            return
        calls, legs = TwoCalls(self._total), [deployment]

        def call_beside() -> Awaitable[None] | None:
            beside = plan.next_for_hedge()
            if beside is None or beside not in targets or not self._can_be_hedged(beside):
                return None
            if not self._context.services.hedges.try_acquire(self._lineup.route):
                return None
            self._may_hedge = False  # At most one of a request.
            legs.append(beside)
            return self._make_call(plan, beside, "hedge", calls)

        def record_early(number: int, error: BaseException) -> None:
            self._record_early_failure(plan, legs[number], error)

        first, patience = self._make_call(plan, deployment, "", calls), asyncio.sleep(self._lineup.hedge_after_s or 0)
        number, failure = await call_twice(first, call_beside, patience, calls, record_early)
        if failure:
            plan.select(legs[number])
            raise failure

    def _can_be_hedged(self, deployment: Deployment) -> bool:
        """Whether an answer ends when its call is cancelled. One that can be read again goes on, and costs what it costs."""
        is_reattached = self._context.settings.provider(deployment.provider).continuation == "reattach"
        return not (deployment.in_background or is_reattached)

    def _record_early_failure(self, plan: AttemptPlan, deployment: Deployment, error: BaseException) -> None:
        if isinstance(error, GatewayError) and not isinstance(error, Refused):
            failed = self._record_failure(deployment, error)
            plan.record_failure_beside(deployment, failed)
            report_failure(error, failed, deployment, self._total.attempt_count, 0.0, self._context.services.metrics)
        elif not isinstance(error, Refused):
            log.error("hedged_call_broke", provider=deployment.provider, exc_info=error)

    async def _make_call(self, plan: AttemptPlan, deployment: Deployment, reason: str, calls: TwoCalls | None = None) -> None:
        context, total, name = self._context, self._total, name_of(deployment)
        async with self._quota.admitted(self._demand, deployment) as call_usage:
            plan.record_call(deployment if reason == "hedge" else None)
            result = total.begin_call(deployment)
            if self._lineup.route:
                self._prepare_result(result, reason)
            if calls:
                calls.enter(result)
            context.services.traffic.begin(name)
            try:
                await self._call(context, result)
                self._quota.health.record_success(deployment)
            except asyncio.CancelledError:
                self._quota.health.abandon_trial(deployment)
                raise
            finally:
                context.services.traffic.end(name)
                self._end_call(result, call_usage, is_lost=calls is not None and calls.is_lost(result))

    def _prepare_result(self, result: CallResult, reason: str) -> None:
        """Record why a route's deployment is called, and whether another model may answer if its vendor ends with a refusal."""
        deployment, route = result.deployment, self._lineup.route
        name = name_of(deployment)
        if not reason:
            reason = "retry" if name in self._called else "failover" if self._called else self._lineup.strategy
        elif reason != "hedge":
            log.info("route_fallback", route=route, reason=reason, provider=deployment.provider, model=deployment.model)
        self._called.add(name)
        self._fallbacks.record_call(deployment)
        result.route_reason = reason
        if self._fallbacks.serve("content_policy"):
            result.can_replace_refusal = self._can_replace_refusal
        target = f"{deployment.provider}/{deployment.model}"
        self._context.services.metrics.route_calls.labels(route, target, reason).inc()

    def _end_call(self, result: CallResult, call_usage: CallUsage, *, is_lost: bool) -> None:
        total = self._total
        self._dropped.update(result.dropped)
        usage, is_whole = result.usage, result.finish_reason is not None
        if is_lost:  # Its cost is in the total already.
            usage, is_whole = result.attempt.usage if result.attempt else None, True
        else:
            total.add(result)
        if not total.is_committed:
            self._context.writer.packed_attempts = pack_with_running(total, self._context.job)
        call_usage.record(usage, result.output_events, is_whole=is_whole)

    # Fallbacks

    def _can_replace_refusal(self) -> bool:
        return any(self._can_take(one, "content_policy") for one in self._fallbacks.round_for("content_policy"))

    def _can_take(self, deployment: Deployment, reason: FallbackReason) -> bool:
        """Whether a fallback's deployment can take the whole request."""
        context = self._context
        key = (name_of(deployment), self._refused_window)
        if key not in self._fits:
            info = reply_info(context.active_job, CallResult(deployment), self._total, context.settings)
            misfit = find_misfit(context.job, deployment, info, self._refused_window, self._dropped)
            self._fits[key] = misfit is None
            if misfit:
                target, route = f"{deployment.provider}/{deployment.model}", self._lineup.route
                log.info("route_fallback_skipped", route=route, target=target, reason=reason, misfit=misfit)
                context.services.metrics.route_skips.labels(route, target, misfit).inc()
        return self._fits[key]


def _as_client_failure(failed: Failed, job: Job, provider: str) -> Failed:
    """Return the failure as the client sees it: a refused key that the client brought is the client's problem, not ours."""
    if failed.kind is not ErrorKind.UPSTREAM_CREDENTIALS or job.brought_key is None:
        return failed
    message = f"The provider {provider} refused the key that this request sent for it. Check that key."
    return Failed(failed.kind, message, status=401, code="invalid_api_key")
