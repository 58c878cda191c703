"""Which answers are put into the cache?

Complete ones: not failed, not cut off by a guardrail, not refused, not empty. The bytes are those that the client got, read
back from the log. A worker does this before the job is over: until then identical requests join the job, so none of them finds
neither the job nor the cached answer.
"""

import time

import structlog

from common.cache.entry import Entry
from common.canonical.errors import StoreUnavailable
from common.canonical.events import FinishReason
from common.channel.transcript import Transcript, pages
from common.metering.attempt_cost import total_cost, total_usage
from workers.run_context import RunContext

log = structlog.get_logger()

_COMPLETE = frozenset({FinishReason.STOP, FinishReason.STOP_SEQUENCE, FinishReason.LENGTH, FinishReason.TOOL_CALLS})


async def keep_answer(context: RunContext) -> None:
    """Store a generation's answer, if its request asks for that and the answer is complete. Raises nothing."""
    job, total, metrics = context.job, context.total, context.services.metrics
    order = job.cache
    if order is None:
        return
    if total.failed or total.is_cut or total.finish_reason not in _COMPLETE:
        metrics.cache_stored.labels("incomplete").inc()
        return
    if context.writer.stored_bytes > context.settings.cache_entry_bytes_max:
        metrics.cache_stored.labels("too_large").inc()
        return
    try:
        frames = [frame async for page in pages(context.services.channel, job.generation_id) for frame in page]
        transcript = Transcript.from_frames(frames, job.dialect, is_stream=job.stream)
    except (StoreUnavailable, ValueError) as error:
        log.warning("answer_not_cached", generation_id=job.generation_id, error=str(error))
        return
    if not transcript.attempts:
        return
    entry = Entry(
        key=order.key,
        generation_id=order.generation_id,
        log_id=job.generation_id,
        tenant=job.tenant,
        model=job.model,
        dialect=job.dialect,
        is_stream=job.stream,
        stored_ms=time.time_ns() // 1_000_000,
        ttl_ms=order.ttl_ms,
        data=b"".join(transcript.data()),
        headers=transcript.attempts[0].head.headers,
        provider=total.provider,
        upstream_model=total.upstream_model,
        finish_reason=total.finish_reason,
        usage=total_usage(total.attempts),
        cost=total_cost(total.attempts),
    )
    is_stored = await context.services.cache.put(entry)
    metrics.cache_stored.labels("stored" if is_stored else "not_stored").inc()
