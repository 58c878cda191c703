"""How does a generation end? Its usage is measured, its log gets its end, and the limits are settled."""

import asyncio
from dataclasses import replace

import structlog

from common.canonical.errors import StoreUnavailable
from common.canonical.events import COUNTS
from common.canonical.job import Job
from common.channel.base import Fenced, Frame, FrameKind
from common.channel.transcript import Transcript
from common.limits.charges import Settlement
from common.metering.attempt_cost import total_usage
from common.queue.jobs import UNUSED
from common.queue.worker import HandBack
from common.records.end import End
from workers.answer_cache import keep_answer
from workers.metering.charging import apply_estimate, settle_attempts
from workers.metering.partial_usage import Partial, read_partial
from workers.metrics import Metrics
from workers.outcome import ActiveJob, Total
from workers.publish.own_log import read_own_log
from workers.run_context import RunContext
from workers.services import Services

log = structlog.get_logger()


async def measure(context: RunContext, fenced: Fenced) -> None:
    """Estimate an answer's usage from its log, if its upstream did not report it or its worker was lost.

    An answer that broke off is paid for as far as it went: a client that leaves early pays for what it got.
    """
    job, total, writer, services = context.job, context.total, context.writer, context.services
    is_rough = total.is_committed and bool(total.attempts) and total.attempts[-1].is_rough
    is_of_others = fenced.has_head and not (total.has_past or total.is_committed)
    if not (is_rough or is_of_others) or not job.dialect:
        return
    writer.ignore_stop()  # The generation is ending anyway.
    await writer.wait_flushed()
    if writer.lost:
        return
    try:
        async with services.measuring:
            frames = await read_own_log(services.channel, job.generation_id, services.settings.worker_buffer_s)
            partial = await asyncio.to_thread(_read_partial, frames, job, fenced.request)
    except StoreUnavailable:
        return  # The estimate from the number of events stays.
    except Exception:  # The bytes may come from any provider, and the log must get its end.
        log.exception("usage_not_estimated", generation_id=job.generation_id)
        return
    if partial:
        apply_estimate(partial, total, context.settings)


def _read_partial(frames: list[Frame], job: Job, request: bytes | None) -> Partial | None:
    return read_partial(Transcript.from_frames(frames, job.dialect, is_stream=job.stream), request)


async def end(context: RunContext) -> Settlement:
    """Append the end and wait until the log has it. Then the job is over. Return its usage and cost."""
    total, writer, settings = context.total, context.writer, context.settings
    if total.failed and total.failed.retry_after_s is not None:
        total.failed.retry_after_s = min(total.failed.retry_after_s, settings.retry_after_max_s)
    writer.ignore_stop()  # A stop now changes nothing: the answer is complete.
    is_kept = await _keep_response(context)
    writer.write_frame(FrameKind.END, total.end_record(context.active_job).pack())
    await writer.wait_flushed()
    if not is_kept:
        await _keep_response(context)  # Redis is back: it has just stored the end.
    settlement = settle_attempts(total.attempts, settings)
    if writer.lost:
        return settlement
    is_cached = await keep_answer(context)
    _report(context.active_job, total, context.services.metrics)
    return replace(settlement, is_cached=is_cached)


async def settle_ended(generation_id: str, services: Services) -> Settlement:
    """Return the usage and cost of a generation whose log already has its end: its worker was lost before it could settle."""
    try:
        record = await services.channel.record(generation_id)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    return settle_attempts(End.unpack(record.end).attempts, services.settings) if record else UNUSED


async def _keep_response(context: RunContext) -> bool:
    """Store what ``GET /v1/responses/{id}`` returns. Return whether there is nothing left to store."""
    job, total = context.job, context.total
    if job.dialect != "openai-responses" or context.writer.lost:
        return True
    try:
        await context.services.responses.finish(job.generation_id, total.last_data, total.failed)
    except StoreUnavailable as error:
        log.warning("response_not_stored", generation_id=job.generation_id, error=str(error))
        return False
    return True


def _report(active_job: ActiveJob, total: Total, metrics: Metrics) -> None:
    job, usage = active_job.job, total_usage(total.attempts)
    outcome = total.failed.kind if total.failed else "completed"
    metrics.generations.labels(job.dialect, total.provider, outcome).inc()
    for attempt in total.attempts:
        for name in COUNTS:
            if count := getattr(attempt.usage, name):
                metrics.tokens.labels(attempt.provider, name.removesuffix("_tokens")).inc(count)
    for provider in {attempt.provider for attempt in total.attempts if attempt.cost is None}:
        metrics.unpriced.labels(provider).inc()
    log.info(
        "generation_ended",
        outcome=outcome,
        code=total.failed.logged_code if total.failed else None,  # Not the message: a provider may quote the prompt in it.
        model=job.model,
        provider=total.provider,
        route_reason=total.route_reason or None,
        messages=total.messages,
        tries=total.attempt_count,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        output_events=total.output_events,
        left_out=total.left_out or None,
        ttft_ms=total.ttft_ms,
        duration_ms=active_job.elapsed_ms(),
    )
