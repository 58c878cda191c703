"""How does an answer go on that broke off behind its commit point?"""

import asyncio
from contextlib import suppress

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.job import Job
from common.channel.base import Frame
from common.channel.transcript import read_log
from common.dialects import DIALECTS
from common.metering.attempts import merged
from workers.attempt.attempts import try_deployments
from workers.attempt.call import call, reply_info
from workers.continuation.continuation import Continuation, Past, continuations, read_past, reattachable
from workers.outcome import Outcome, RunsOn
from workers.providers.base import Deployment
from workers.publish.writer import PAUSE_WHILE_AWAY_S, Writer
from workers.services import Services
from workers.upstream.deployments import deployments

log = structlog.get_logger()

LOST = Failed(
    ErrorKind.WORKER_LOST, "The worker was lost in the middle of the answer. Send the request again.", code="worker_lost"
)


async def go_on(job: Job, lost: Failed, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Write the rest of an answer that broke off behind its commit point; where there is no way to get it, raise ``lost``."""
    await writer.flushed()
    past = await read_back(job, lost, writer, outcome, services)
    outcome.spent, outcome.is_committed = past.spent, False
    outcome.attempts = [each.priced(services.settings.prices) for each in merged(past.attempts, outcome.attempts)]
    outcome.ttft_ms, outcome.tries_before, outcome.tries = past.ttft_ms, past.tries, past.tries
    outcome.is_reread, outcome.knows_past = False, True
    if ending := past.ending():
        outcome.finish_reason, rest = ending
        outcome.last_data = rest or past.blocks[-1]
        return writer.write(rest)
    rounds = continuations(job, past, services.settings) if past.may_go_on else []
    if not rounds:
        raise GatewayError.of(lost)
    outcome.continuations = past.count + 1
    log.info("generation_continued", reason=lost.kind, continuations=outcome.continuations)
    services.metrics.continuations.labels(lost.kind).inc()

    for ways in rounds:
        if await _try_ways(job, past, ways, writer, outcome, services):
            return None
        outcome.tries_before = outcome.tries
    raise GatewayError.of(lost)


async def _try_ways(
    job: Job, past: Past, ways: list[Continuation], writer: Writer, outcome: Outcome, services: Services
) -> bool:
    """Return whether one of these ways has brought the rest of an answer. Raises where it brought a part of it."""
    outcome.spent = None if ways[0].reattaches else past.spent

    async def run(deployment: Deployment, writer: Writer, outcome: Outcome, services: Services) -> None:
        way = next(way for way in ways if way.deployment is deployment)
        dialect = DIALECTS[job.dialect]
        await call(job, deployment, writer, outcome, services, lambda info, guard: way.prepare(past, dialect, info, guard))

    try:
        await try_deployments(job, [way.deployment for way in ways], run, writer, outcome, services)
    except GatewayError:
        if outcome.is_committed:
            raise
        return False
    return True


async def read_back(job: Job, lost: Failed, writer: Writer, outcome: Outcome, services: Services) -> Past:
    """Return what the log tells, and note what else it does: where the answer came from, and whether it runs on there."""
    frames = await _frames(job, lost, services)
    writer.stored_bytes = sum(len(frame.data) for frame in frames)
    found = deployments(job, services.settings)
    past = read_past(job, frames, outcome.reported, reply_info(job, found[0], outcome, services.settings))
    outcome.note(found[0])
    past.attempts[-1].has_brought_key = found[0].client_pays
    keyed = [each for each in reattachable(job, past, services.settings) if each.in_background]
    if keyed and not outcome.runs_on:
        outcome.runs_on = RunsOn(past.upstream_id, keyed)
    return past


async def _frames(job: Job, lost: Failed, services: Services) -> list[Frame]:
    """Return the log, for which Redis may be away as long as for the frames of an answer."""
    try:
        async with asyncio.timeout(services.settings.worker_buffer_s):
            while True:
                with suppress(StoreUnavailable):
                    return await read_log(services.channel, job.generation_id)
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
    except TimeoutError as error:
        raise GatewayError.of(lost) from error
