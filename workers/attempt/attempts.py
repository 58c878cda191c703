"""Which deployments are tried, in which order, until one answers?"""

import asyncio
from collections.abc import Awaitable, Callable

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Job
from workers.attempt.failed_attempts import report
from workers.attempt.patience import patience, postpone
from workers.attempt.tries import Tries
from workers.outcome import Outcome
from workers.providers.base import Deployment
from workers.publish.writer import Writer
from workers.quota.gate import Demand, Refused
from workers.services import Services

Run = Callable[[Deployment, Writer, Outcome, Services], Awaitable[None]]


async def try_deployments(
    job: Job, among: list[Deployment], run: Run, writer: Writer, outcome: Outcome, services: Services
) -> None:
    quota, demand = services.quota, Demand(job)
    tries = Tries(quota.affordable(among), *patience(job, outcome, services.settings))
    while True:
        deployment = tries.deployment
        outcome.note(deployment)
        try:
            async with quota.admitted(demand, deployment) as taken:
                tries.begin()
                outcome.tries = outcome.tries_before + tries.count
                outcome.reported, outcome.output_events = None, 0
                try:
                    return await run(deployment, writer, outcome, services)
                finally:
                    is_whole = outcome.finish_reason is not None
                    taken.note(outcome.reported, outcome.output_events, is_whole=is_whole)
        except Refused as refusal:
            wait_s, is_asked_to_wait = tries.refused(refusal.wait_s, refusal.look_s), True
            if wait_s is None:
                services.metrics.errors.labels(refusal.failed.kind).inc()
                raise GatewayError.of(refusal.given_up(tries.soonest_s)) from refusal
        except GatewayError as error:
            failed = _blamed(error.failed, job, deployment.provider)
            quota.note_failure(demand, deployment, failed)
            wait_s = None if outcome.is_committed else tries.after(failed)
            report(error, failed, deployment, outcome.tries, wait_s, services.metrics)
            if wait_s is None:
                failed.retry_after_s = tries.resumes_in_s or failed.retry_after_s
                raise GatewayError.of(failed) from error
            services.metrics.retries.labels(tries.deployment.provider).inc()
            is_asked_to_wait = failed.retry_after_s is not None
        if is_asked_to_wait:
            postpone(wait_s, tries.soonest_s, outcome, services.settings)
        await asyncio.sleep(wait_s)


def _blamed(failed: Failed, job: Job, provider: str) -> Failed:
    """A refused key of ours is ours to mend, one that the request brought the client's."""
    if failed.kind is not ErrorKind.UPSTREAM_CREDENTIALS or job.brought_key is None:
        return failed
    message = f"The provider {provider} refused the key that this request brought for it. Check that key."
    return Failed(failed.kind, message, status=401, code="invalid_api_key")
