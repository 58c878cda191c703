"""How does a generation end? What its answer took is measured, its log gets its end, and the limits are settled."""

import asyncio

import structlog

from common.canonical.errors import StoreUnavailable
from common.canonical.events import COUNTS
from common.channel.base import Fenced, Frame, FrameKind
from common.channel.head_and_end import End
from common.channel.transcript import Transcript, read_log
from common.limits.charges import Settlement
from common.metering.attempts import total_cost, total_usage
from common.queue.jobs import UNUSED
from common.queue.worker import HandBack
from workers.metering.charging import settlement_of, take_measure
from workers.metering.partial_usage import Partial, read_partial
from workers.outcome import Outcome
from workers.publish.writer import Writer
from workers.services import Services

log = structlog.get_logger()


async def measure(fenced: Fenced, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Estimate from the log what an answer took whose upstream did not report it, or whose worker was lost.

    An answer that broke off is paid for as far as it came: whoever leaves early pays for what he got.
    """
    is_rough = outcome.is_committed and bool(outcome.attempts) and outcome.attempts[-1].is_rough
    is_of_others = fenced.has_head and not (outcome.knows_past or outcome.is_committed)
    if not (is_rough or is_of_others) or not outcome.dialect:
        return
    writer.ignore_stop()  # It ends already.
    await writer.flushed()
    if writer.lost:
        return
    try:
        async with services.measuring:
            frames = await read_log(services.channel, writer.claim.generation_id)
            found = await asyncio.to_thread(_read_partial, frames, outcome.dialect, outcome.is_stream, fenced.request)
    except StoreUnavailable:
        return  # The number of events must do.
    except Exception:  # The bytes may be any provider's, and the answer must have its end.
        log.exception("usage_not_estimated", generation_id=writer.claim.generation_id)
        return
    if found:
        take_measure(found, outcome, services.settings)


def _read_partial(frames: list[Frame], dialect: str, is_stream: bool, request: bytes | None) -> Partial | None:
    return read_partial(Transcript.of(frames, dialect, is_stream=is_stream), request)


async def end(writer: Writer, outcome: Outcome, services: Services) -> Settlement:
    """Append the end and wait until the log has it; from then on the job is over, and what it took is known."""
    failed = outcome.failed
    if failed and failed.retry_after_s is not None:
        failed.retry_after_s = min(failed.retry_after_s, services.settings.retry_after_max_s)
    writer.ignore_stop()  # Whatever is asked now, the answer is already given.
    is_kept = await _keep_response(writer, outcome, services)
    writer.write_frame(FrameKind.END, _end_of(outcome).pack())
    await writer.flushed()
    if not is_kept:
        await _keep_response(writer, outcome, services)  # Redis is back, for it has taken the end.
    if not writer.lost:
        _report(outcome, services)
    return settlement_of(outcome.attempts, services.settings)


async def settle_ended(generation_id: str, services: Services) -> Settlement:
    """Return what a generation took whose end is in the log already: its worker was lost before it could settle."""
    try:
        record = await services.channel.record(generation_id)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    return settlement_of(End.unpack(record.end).attempts, services.settings) if record else UNUSED


def _end_of(outcome: Outcome) -> End:
    return End(
        error=outcome.failed.to_dict() if outcome.failed else None,
        finish_reason=outcome.finish_reason,
        usage=total_usage(outcome.attempts),
        is_estimated=any(attempt.is_estimated for attempt in outcome.attempts),
        provider=outcome.provider,
        upstream_model=outcome.upstream_model,
        has_brought_key=outcome.has_brought_key,
        continuations=outcome.continuations,
        tries=outcome.tries,
        queue_wait_ms=round(outcome.waited_s * 1000),
        ttft_ms=outcome.ttft_ms,
        duration_ms=outcome.elapsed_ms(),
        cost=total_cost(outcome.attempts),
        attempts=outcome.attempts,
    )


async def _keep_response(writer: Writer, outcome: Outcome, services: Services) -> bool:
    """Store what ``GET /v1/responses/{id}`` gives; returns whether there is nothing left to store."""
    if outcome.dialect != "openai-responses" or writer.lost:
        return True
    try:
        await services.responses.finish(writer.claim.generation_id, outcome.last_data, outcome.failed)
    except StoreUnavailable as error:
        log.warning("response_not_stored", generation_id=writer.claim.generation_id, error=str(error))
        return False
    return True


def _report(outcome: Outcome, services: Services) -> None:
    metrics, usage = services.metrics, total_usage(outcome.attempts)
    what = outcome.failed.kind if outcome.failed else "completed"
    metrics.generations.labels(outcome.dialect, outcome.provider, what).inc()
    for attempt in outcome.attempts:
        for name in COUNTS:
            if count := getattr(attempt.usage, name):
                metrics.tokens.labels(attempt.provider, name.removesuffix("_tokens")).inc(count)
    for provider in {attempt.provider for attempt in outcome.attempts if attempt.cost is None}:
        metrics.unpriced.labels(provider).inc()
    log.info(
        "generation_ended",
        outcome=what,
        code=outcome.failed.logged_code if outcome.failed else None,  # Not the message: a provider's may quote the prompt.
        model=outcome.model,
        provider=outcome.provider,
        messages=outcome.messages,
        tries=outcome.tries,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        output_events=outcome.output_events,
        ttft_ms=outcome.ttft_ms,
        duration_ms=outcome.elapsed_ms(),
    )
