"""Which answers are put into the cache?

Complete ones: not failed, not cut off by a guardrail, not refused, not empty, not ended by a limit that the client did not set.
And not those of a fallback: soon the model that was asked for may answer again, and a cached answer would not say who gave it.
The bytes are those that the client got, read back from the log. A worker does this before the job is over: until then identical
requests join the job, so none of them finds neither the job nor the cached answer.
"""

import re
import time

import structlog

from common.cache.entry import Entry
from common.canonical.errors import StoreUnavailable
from common.canonical.events import FinishReason
from common.canonical.job import CacheOrder, Job
from common.channel.transcript import Transcript, read_log
from common.metering.attempt_cost import total_cost, total_usage
from workers.outcome import Total
from workers.routing.lineup import FALLBACK_REASONS
from workers.run_context import RunContext

log = structlog.get_logger()

_COMPLETE = frozenset({FinishReason.STOP, FinishReason.STOP_SEQUENCE, FinishReason.TOOL_CALLS})

_OF_THE_CALL = ("x-sluice-route",)  # Headers that tell about the call, which a cached answer does not make.

# OpenAI's dialects tell a refusal in a field of its own, and the finish is the usual one. In text, the quotes would be escaped.
_REFUSAL = re.compile(rb'"refusal" ?: ?"[^"]|"type" ?: ?"refusal"')


async def keep_answer(context: RunContext) -> bool:
    """Store a generation's answer, if its request asks for that and the answer is complete. Return whether it is stored.

    Raises nothing.
    """
    order = context.job.cache
    if order is None:
        return False
    result = await _keep(order, context)
    context.services.metrics.cache_stored.labels(result).inc()
    return result == "stored"


async def _keep(order: CacheOrder, context: RunContext) -> str:
    """Store an answer. Return what became of it, for the metric."""
    job, total = context.job, context.total
    is_asked_length = total.finish_reason == FinishReason.LENGTH and order.has_limit
    if total.failed or total.is_cut or not (total.finish_reason in _COMPLETE or is_asked_length):
        return "incomplete"
    if context.writer.stored_bytes > context.settings.cache_entry_bytes_max:
        return "too_large"
    try:
        frames = await read_log(context.services.channel, job.generation_id)
        transcript = Transcript.from_frames(frames, job.dialect, is_stream=job.stream)
    except (StoreUnavailable, ValueError) as error:
        log.warning("answer_not_cached", generation_id=job.generation_id, error=str(error))
        return "not_stored"
    data = b"".join(transcript.data())
    if not data or _REFUSAL.search(data):
        return "incomplete"
    if transcript.attempts[0].head.route_reason in FALLBACK_REASONS:
        return "fallback"
    headers = {name: value for name, value in transcript.attempts[0].head.headers.items() if name not in _OF_THE_CALL}
    entry = _entry(order, job, total, data, headers)
    return "stored" if await context.services.cache.put(entry) else "not_stored"


def _entry(order: CacheOrder, job: Job, total: Total, data: bytes, headers: dict[str, str]) -> Entry:
    return Entry(
        key=order.key,
        generation_id=order.generation_id,
        log_id=job.generation_id,
        tenant=job.tenant,
        model=job.model,
        dialect=job.dialect,
        is_stream=job.stream,
        stored_ms=time.time_ns() // 1_000_000,
        ttl_ms=order.ttl_ms,
        data=data,
        headers=headers,
        provider=total.provider,
        upstream_model=total.upstream_model,
        finish_reason=total.finish_reason,
        usage=total_usage(total.attempts),
        cost=total_cost(total.attempts),
    )
