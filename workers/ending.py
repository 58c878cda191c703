"""How does a generation end? What its answer took is measured, its log gets its end, and the limits are settled."""

import asyncio

import structlog

from common.canonical.errors import StoreUnavailable
from common.canonical.events import COUNTS
from common.canonical.job import Job
from common.channel.base import Fenced, Frame, FrameKind
from common.channel.transcript import Transcript, read_log
from common.limits.charges import Settlement
from common.metering.attempt_cost import total_usage
from common.queue.jobs import UNUSED
from common.queue.worker import HandBack
from common.records.end import End
from workers.metering.charging import settlement_of, take_measure
from workers.metering.partial_usage import Partial, read_partial
from workers.metrics import Metrics
from workers.outcome import Ask, Total
from workers.run_context import Running
from workers.services import Services

log = structlog.get_logger()


async def measure(running: Running, fenced: Fenced) -> None:
    """Estimate from the log what an answer took whose upstream did not report it, or whose worker was lost.

    An answer that broke off is paid for as far as it came: whoever leaves early pays for what he got.
    """
    job, total, writer, services = running.job, running.total, running.writer, running.services
    is_rough = total.is_committed and bool(total.attempts) and total.attempts[-1].is_rough
    is_of_others = fenced.has_head and not (total.knows_past or total.is_committed)
    if not (is_rough or is_of_others) or not job.dialect:
        return
    writer.ignore_stop()  # It ends already.
    await writer.flushed()
    if writer.lost:
        return
    try:
        async with services.measuring:
            frames = await read_log(services.channel, job.generation_id)
            found = await asyncio.to_thread(_read_partial, frames, job, fenced.request)
    except StoreUnavailable:
        return  # The number of events must do.
    except Exception:  # The bytes may be any provider's, and the answer must have its end.
        log.exception("usage_not_estimated", generation_id=job.generation_id)
        return
    if found:
        take_measure(found, total, services.settings)


def _read_partial(frames: list[Frame], job: Job, request: bytes | None) -> Partial | None:
    return read_partial(Transcript.of(frames, job.dialect, is_stream=job.stream), request)


async def end(running: Running) -> Settlement:
    """Append the end and wait until the log has it; from then on the job is over, and what it took is known."""
    total, writer, settings = running.total, running.writer, running.settings
    if total.failed and total.failed.retry_after_s is not None:
        total.failed.retry_after_s = min(total.failed.retry_after_s, settings.retry_after_max_s)
    writer.ignore_stop()  # Whatever is asked now, the answer is already given.
    is_kept = await _keep_response(running)
    writer.write_frame(FrameKind.END, total.end(running.ask).pack())
    await writer.flushed()
    if not is_kept:
        await _keep_response(running)  # Redis is back, for it has taken the end.
    if not writer.lost:
        _report(running.ask, total, running.services.metrics)
    return settlement_of(total.attempts, settings)


async def settle_ended(generation_id: str, services: Services) -> Settlement:
    """Return what a generation took whose end is in the log already: its worker was lost before it could settle."""
    try:
        record = await services.channel.record(generation_id)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    return settlement_of(End.unpack(record.end).attempts, services.settings) if record else UNUSED


async def _keep_response(running: Running) -> bool:
    """Store what ``GET /v1/responses/{id}`` gives; returns whether there is nothing left to store."""
    job, total = running.job, running.total
    if job.dialect != "openai-responses" or running.writer.lost:
        return True
    try:
        await running.services.responses.finish(job.generation_id, total.last_data, total.failed)
    except StoreUnavailable as error:
        log.warning("response_not_stored", generation_id=job.generation_id, error=str(error))
        return False
    return True


def _report(ask: Ask, total: Total, metrics: Metrics) -> None:
    job, usage = ask.job, total_usage(total.attempts)
    what = total.failed.kind if total.failed else "completed"
    metrics.generations.labels(job.dialect, total.provider, what).inc()
    for attempt in total.attempts:
        for name in COUNTS:
            if count := getattr(attempt.usage, name):
                metrics.tokens.labels(attempt.provider, name.removesuffix("_tokens")).inc(count)
    for provider in {attempt.provider for attempt in total.attempts if attempt.cost is None}:
        metrics.unpriced.labels(provider).inc()
    log.info(
        "generation_ended",
        outcome=what,
        code=total.failed.logged_code if total.failed else None,  # Not the message: a provider's may quote the prompt.
        model=job.model,
        provider=total.provider,
        messages=total.messages,
        tries=total.tries,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        output_events=total.output_events,
        ttft_ms=total.ttft_ms,
        duration_ms=ask.elapsed_ms(),
    )
