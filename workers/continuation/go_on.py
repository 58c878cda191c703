"""How does an answer go on that broke off behind its commit point?"""

import asyncio
from contextlib import suppress

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.job import Job
from common.channel.base import Frame
from common.channel.transcript import read_log
from common.dialects import DIALECTS
from workers.attempt.call import call, message_count, reply_info
from workers.attempt.failover import call_deployments
from workers.continuation.continuation import Continuation, Past, continuations, read_past, reattachable
from workers.outcome import BackgroundAnswer, Reply
from workers.publish.writer import PAUSE_WHILE_AWAY_S
from workers.run_context import RunContext
from workers.services import Services
from workers.upstream.deployments import deployments

log = structlog.get_logger()

LOST = Failed(
    ErrorKind.WORKER_LOST, "The worker was lost in the middle of the answer. Send the request again.", code="worker_lost"
)


async def go_on(context: RunContext, lost: Failed) -> None:
    """Write the rest of an answer that broke off behind its commit point; where there is no way to get it, raise ``lost``."""
    total, settings = context.total, context.settings
    await context.writer.wait_flushed()
    past = await read_back(context, lost)
    total.restore_past(past.attempts, past.ttft_ms, settings.prices)
    total.spent, total.attempt_count, total.is_committed, total.has_past = past.spent, past.tries, False, True
    if ending := past.ending():
        total.finish_reason, rest = ending
        total.last_data = rest or past.blocks[-1]
        return context.writer.write(rest)
    rounds = continuations(context.job, past, settings) if past.may_go_on else []
    if not rounds:
        raise GatewayError.from_failed(lost)
    total.continuations = past.count + 1
    log.info("generation_continued", reason=lost.kind, continuations=total.continuations)
    context.services.metrics.continuations.labels(lost.kind).inc()

    for ways in rounds:
        if await _try_ways(context, past, ways):
            return None
    raise GatewayError.from_failed(lost)


async def _try_ways(context: RunContext, past: Past, ways: list[Continuation]) -> bool:
    """Return whether one of these ways has brought the rest of an answer. Raises where it brought a part of it."""
    context.total.spent = None if ways[0].reattaches else past.spent
    dialect = DIALECTS[context.job.dialect]
    way_of = {id(way.deployment): way for way in ways}

    async def call_for_rest(context: RunContext, reply: Reply) -> None:
        way = way_of[id(reply.deployment)]
        await call(context, reply, lambda info, guard: way.prepare(past, dialect, info, guard))

    try:
        await call_deployments(context, [way.deployment for way in ways], call_for_rest)
    except GatewayError:
        if context.total.is_committed:
            raise
        return False
    return True


async def read_back(context: RunContext, lost: Failed) -> Past:
    """Return what the log tells, and note what else it does: where the answer came from, and whether it runs on there."""
    job, total, settings = context.job, context.total, context.settings
    frames = await _frames(job, lost, context.services)
    context.writer.stored_bytes = sum(len(frame.data) for frame in frames)
    first = deployments(job, settings)[0]
    info = reply_info(context.active_job, Reply(first), total, settings)
    past = read_past(job, frames, total.reported, info)
    total.set_deployment(first)
    total.messages = message_count(info.body)
    past.attempts[-1].has_brought_key = first.client_pays
    keyed = [each for each in reattachable(job, past, settings) if each.in_background]
    if keyed and not total.background_answer:
        total.background_answer = BackgroundAnswer(past.upstream_id, keyed)
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
        raise GatewayError.from_failed(lost) from error
