"""Which deployments are called, and in which order, until one answers?"""

import asyncio
from collections.abc import Awaitable, Callable

from common.canonical.errors import ErrorKind, Failed, GatewayError, Remedy
from common.canonical.job import Job
from common.metering.attempt_cost import pack
from workers.attempt.failure_report import report_failure
from workers.attempt.retries import AttemptPlan
from workers.attempt.retry_wait import postpone, wait_limits
from workers.outcome import CallResult
from workers.providers.base import Deployment
from workers.quota.gate import Demand, Refused
from workers.quota.health import name_of
from workers.run_context import RunContext

Call = Callable[[RunContext, CallResult], Awaitable[None]]


async def call_deployments(context: RunContext, candidates: list[Deployment], call: Call) -> None:
    """Call deployments until one has answered. Each result is added to the total.

    Raises:
        GatewayError: no deployment answered, or one broke off after its commit point.
        Postponed: the upstream must be called later; the job goes back into the queue.
    """
    quota, total, metrics = context.services.quota, context.total, context.services.metrics
    demand, traffic = Demand(context.job), context.services.traffic
    ordered, unwell = await quota.health.order(quota.affordable(candidates))
    plan = AttemptPlan(
        ordered,
        *wait_limits(context.active_job, total, context.settings),
        attempts_max=context.settings.attempts_per_deployment,
        backoff_s=context.settings.retry_backoff_s,
        called_once=unwell,
        is_unwell=quota.health.rests,
    )
    while True:
        deployment = plan.deployment
        total.set_deployment(deployment)
        try:
            async with quota.admitted(demand, deployment) as call_usage:
                plan.record_call()
                result = total.begin_call(deployment)
                traffic.begin(name_of(deployment))
                try:
                    await call(context, result)
                    return quota.health.record_success(deployment)
                finally:
                    traffic.end(name_of(deployment))
                    total.add(result)
                    if not total.is_committed:
                        context.writer.packed_attempts = pack(total.attempts)
                    call_usage.record(result.usage, result.output_events, is_whole=result.finish_reason is not None)
        except Refused as refusal:
            wait_s, is_asked_to_wait = plan.delay_after_refusal(refusal.wait_s, refusal.earliest_s), True
            if wait_s is None:
                metrics.errors.labels(refusal.failed.kind).inc()
                raise GatewayError.from_failed(refusal.as_final_failure(plan.soonest_s)) from refusal
        except GatewayError as error:
            failed = _as_client_failure(error.failed, context.job, deployment.provider)
            quota.record_failure(demand, deployment, error.failed)
            if not total.is_committed and error.failed.kind.remedy is not Remedy.NONE:
                traffic.record_failure(name_of(deployment))
            failed.retry_after_s = error.failed.retry_after_s
            wait_s = None if total.is_committed else plan.delay_after_failure(failed)
            report_failure(error, failed, deployment, total.attempt_count, wait_s, metrics)
            if wait_s is None:
                failed.retry_after_s = plan.resumes_in_s or failed.retry_after_s
                raise GatewayError.from_failed(failed) from error
            metrics.retries.labels(plan.deployment.provider).inc()
            is_asked_to_wait = failed.retry_after_s is not None
        if is_asked_to_wait:
            postpone(wait_s, plan.soonest_s, context.active_job, total, context.settings)
        await asyncio.sleep(wait_s)


def _as_client_failure(failed: Failed, job: Job, provider: str) -> Failed:
    """Return the failure as the client sees it: a refused key that the client brought is the client's problem, not ours."""
    if failed.kind is not ErrorKind.UPSTREAM_CREDENTIALS or job.brought_key is None:
        return failed
    message = f"The provider {provider} refused the key that this request sent for it. Check that key."
    return Failed(failed.kind, message, status=401, code="invalid_api_key")
