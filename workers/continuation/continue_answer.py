"""How does an answer continue that broke off after its commit point?"""

from contextlib import suppress

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.dialects import DIALECTS
from workers.attempt.call import call
from workers.attempt.failover import call_deployments
from workers.attempt.prepare import message_count, reply_info
from workers.continuation.continuation import Continuation, Past, find_reattachable, plan_rounds, read_past
from workers.outcome import BackgroundAnswer, CallResult
from workers.publish.own_log import read_own_log
from workers.routing.lineup import Lineup
from workers.run_context import RunContext
from workers.upstream.deployments import deployments

log = structlog.get_logger()

LOST = Failed(
    ErrorKind.WORKER_LOST, "The worker was lost in the middle of the answer. Send the request again.", code="worker_lost"
)


async def continue_answer(context: RunContext, failure: Failed) -> None:
    """Write the rest of an answer that broke off after its commit point. Raise ``failure`` if nothing can continue it."""
    total, settings = context.total, context.settings
    await context.writer.wait_flushed()
    past = await read_back(context, failure)
    if finish_if_whole(context, past):
        return
    _restore_total(context, past)
    rounds = plan_rounds(context.job, past, settings) if past.can_continue else []
    if not rounds:
        raise GatewayError.from_failed(failure)
    total.continuations = past.continuation_count + 1
    log.info("generation_continued", reason=failure.kind, continuations=total.continuations)
    context.services.metrics.continuations.labels(failure.kind).inc()

    for candidates in rounds:
        if await _try_round(context, past, candidates):
            return
    raise GatewayError.from_failed(failure)


def finish_if_whole(context: RunContext, past: Past) -> bool:
    """Write the last bytes of an answer whose upstream had finished it. Return whether that is so."""
    ending = past.ending()
    if ending is None:
        return False
    _restore_total(context, past)
    context.total.finish_reason, rest = ending
    context.total.last_data = rest or past.blocks[-1]
    context.writer.write(rest)
    return True


async def finish_stopped(context: RunContext) -> bool:
    """Do the same for a stream that was stopped just now, before it got its end."""
    total, writer = context.total, context.writer
    if not (context.job.stream and total.is_committed and total.finish_reason is not None):
        return False
    writer.ignore_stop()
    await writer.wait_flushed()
    with suppress(GatewayError):
        return finish_if_whole(context, await read_back(context, LOST))
    return False


def _restore_total(context: RunContext, past: Past) -> None:
    total = context.total
    total.restore_past(past.attempts, past.ttft_ms, context.settings.prices)
    total.route_reason = past.route_reason
    total.spent, total.attempt_count, total.is_committed, total.has_past = past.spent, past.attempt_count, False, True


async def _try_round(context: RunContext, past: Past, candidates: list[Continuation]) -> bool:
    """Return whether one of the candidates has continued the answer to its end. Raises if one continued only a part of it."""
    context.total.spent = None if candidates[0].reattaches else past.spent
    dialect = DIALECTS[context.job.dialect]
    continuation_by_deployment = {id(continuation.deployment): continuation for continuation in candidates}

    async def call_for_rest(context: RunContext, result: CallResult) -> None:
        continuation = continuation_by_deployment[id(result.deployment)]
        await call(context, result, lambda info, guard: continuation.prepare(past, dialect, info, guard))

    try:
        await call_deployments(context, Lineup([continuation.deployment for continuation in candidates]), call_for_rest)
    except GatewayError:
        if context.total.is_committed:
            raise
        return False
    return True


async def read_back(context: RunContext, failure: Failed) -> Past:
    """Read the log back. Also set in the total where the answer came from, and whether it still runs there."""
    job, total, settings = context.job, context.total, context.settings
    try:
        frames = await read_own_log(context.services.channel, job.generation_id, settings.worker_buffer_s)
    except StoreUnavailable as error:
        raise GatewayError.from_failed(failure) from error
    context.writer.stored_bytes = sum(len(frame.data) for frame in frames)
    first, *others = deployments(job, settings)
    info = reply_info(context.active_job, CallResult(first), total, settings)
    past = read_past(job, frames, total.reported, info)
    by_name = {(one.provider, one.model): one for one in (*others, first)}
    answering = by_name.get((past.provider, past.attempts[-1].model), first)
    total.set_deployment(answering)
    total.messages = message_count(info.body)
    past.attempts[-1].has_brought_key = answering.client_pays
    background_deployments = [deployment for deployment in find_reattachable(job, past, settings) if deployment.in_background]
    if background_deployments and not total.background_answer:
        total.background_answer = BackgroundAnswer(past.upstream_id, background_deployments)
    return past
