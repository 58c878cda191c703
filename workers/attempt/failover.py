"""Which deployments are tried, in which order, until one answers?"""

import asyncio
from collections.abc import Awaitable, Callable

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Job
from common.metering.attempt_cost import pack
from workers.attempt.failure_report import report
from workers.attempt.retries import Tries
from workers.attempt.retry_wait import patience, postpone
from workers.outcome import Reply
from workers.providers.base import Deployment
from workers.quota.gate import Demand, Refused
from workers.run_context import Running

Call = Callable[[Running, Reply], Awaitable[None]]


async def try_deployments(running: Running, among: list[Deployment], call: Call) -> None:
    """Call deployments until one has answered; each reply is added to the total.

    Raises:
        GatewayError: none has, or one broke off behind its commit point.
        Postponed: the upstream is to be called later.
    """
    quota, total, metrics = running.services.quota, running.total, running.services.metrics
    demand = Demand(running.job)
    tries = Tries(
        quota.affordable(among),
        *patience(running.ask, total, running.settings),
        attempts_max=running.settings.attempts_per_deployment,
        backoff_s=running.settings.retry_backoff_s,
    )
    while True:
        deployment = tries.deployment
        total.note(deployment)
        try:
            async with quota.admitted(demand, deployment) as taken:
                tries.begin()
                reply = total.begin(deployment)
                try:
                    return await call(running, reply)
                finally:
                    total.add(reply)
                    if not total.is_committed:
                        running.writer.note = pack(total.attempts)
                    taken.note(reply.usage, reply.output_events, is_whole=reply.finish_reason is not None)
        except Refused as refusal:
            wait_s, is_asked_to_wait = tries.refused(refusal.wait_s, refusal.look_s), True
            if wait_s is None:
                metrics.errors.labels(refusal.failed.kind).inc()
                raise GatewayError.from_failed(refusal.given_up(tries.soonest_s)) from refusal
        except GatewayError as error:
            failed = _blamed(error.failed, running.job, deployment.provider)
            quota.note_failure(demand, deployment, failed)
            wait_s = None if total.is_committed else tries.after(failed)
            report(error, failed, deployment, total.tries, wait_s, metrics)
            if wait_s is None:
                failed.retry_after_s = tries.resumes_in_s or failed.retry_after_s
                raise GatewayError.from_failed(failed) from error
            metrics.retries.labels(tries.deployment.provider).inc()
            is_asked_to_wait = failed.retry_after_s is not None
        if is_asked_to_wait:
            postpone(wait_s, tries.soonest_s, running.ask, total, running.settings)
        await asyncio.sleep(wait_s)


def _blamed(failed: Failed, job: Job, provider: str) -> Failed:
    """A refused key of ours is ours to mend, one that the request brought the client's."""
    if failed.kind is not ErrorKind.UPSTREAM_CREDENTIALS or job.brought_key is None:
        return failed
    message = f"The provider {provider} refused the key that this request brought for it. Check that key."
    return Failed(failed.kind, message, status=401, code="invalid_api_key")
