"""How does a cached answer become a client's response?

Most clients get its bytes at once: one read of the cache, and one script for the limits and the ledger. Where somebody may come
back to the generation (a disconnect policy other than ``stop``, an idempotency-key, a response of /v1/responses), the answer is
written into a log of its own, and read from there like any other.
"""

import secrets
import time

from starlette.responses import Response

from api.cache.plan import CachePlan, not_cached_error
from api.intake.accepted import AcceptedRequest, channel_opening, request_summary
from api.relay.response import SSE_HEADERS
from api.services import ApiServices
from common.cache.entry import Entry
from common.canonical.job import Policy
from common.channel.base import NOBODY, START, Append, Claim, Frame, FrameId, FrameKind, Opening
from common.limits.charges import limit_headers, safe_name
from common.metering.pricing import NO_COST
from common.queue.jobs import CachedAnswer, Sharing
from common.records.end import End
from common.records.head import Head
from common.sse import split_blocks

FRAME_BYTES_MAX = 256 * 1024


async def find_entry(accepted: AcceptedRequest, services: ApiServices) -> Entry | None:
    """Return the cached answer for a request; None if there is none that it may get.

    Raises:
        GatewayError: DEADLINE_EXCEEDED, there is none, and the client wants no other.
    """
    plan, entry = accepted.cache, None
    if plan and accepted.cache_key and plan.may_use:
        entry = await services.cache.get(accepted.cache_key)
        if entry and not _suits(entry, plan, accepted):
            entry = None
    if plan and plan.only_if_cached and entry is None:
        raise not_cached_error()
    return entry


def _suits(entry: Entry, plan: CachePlan, accepted: AcceptedRequest) -> bool:
    """Whether an entry is young enough. Where the time to live was shortened meanwhile, the present one counts."""
    age_s = entry_age_s(entry)
    is_same = (entry.dialect, entry.is_stream) == (accepted.job.dialect, accepted.job.stream)
    return is_same and age_s <= plan.ttl_s and (plan.max_age_s is None or age_s <= plan.max_age_s)


def entry_age_s(entry: Entry) -> int:
    return max(0, (time.time_ns() // 1_000_000 - entry.stored_ms) // 1000)


def needs_no_log(accepted: AcceptedRequest) -> bool:
    """Whether nobody can come back to the generation."""
    is_stored = accepted.cache is not None and accepted.cache.is_stored_response
    return accepted.job.policy is Policy.STOP and accepted.idempotency_key is None and not is_stored


def cache_headers(accepted: AcceptedRequest, outcome: str, entry: Entry | None) -> dict[str, str]:
    """Return the headers that tell the client how the cache served it. Empty where nobody asked for the cache, and for
    a retry.

    ``age`` is in seconds (RFC 9111, section 5.1).
    """
    if accepted.cache is None or not outcome:
        return {}
    headers = {"x-sluice-cache": outcome if accepted.cache_key else "bypass"}
    return headers | {"age": str(entry_age_s(entry))} if entry else headers


async def answer_at_once(entry: Entry, accepted: AcceptedRequest, services: ApiServices) -> Response:
    """Count a request, and return its cached answer.

    Raises:
        GatewayError: RATE_LIMITED, BUDGET_EXCEEDED.
        StoreUnavailable
    """
    job, principal = accepted.job, accepted.principal
    record = (_summary(entry, accepted), _end(entry).pack())
    enqueued = await services.queue.enqueue(
        job.generation_id,
        principal.id,
        accepted.job_class,
        tenant=safe_name(principal.tenant),
        charges=accepted.charges,
        cached=CachedAnswer(record),
    )
    services.metrics.record_cache("hit", job.dialect)
    headers = {
        **(SSE_HEADERS if entry.is_stream else {"content-type": "application/json"}),
        "x-generation-id": job.generation_id,
        **entry.headers,
        **limit_headers(enqueued.limit_statuses),
        **cache_headers(accepted, "hit", entry),
    }
    return Response(entry.data, headers=headers)


def opening_of(accepted: AcceptedRequest, services: ApiServices, sharing: Sharing | None, entry: Entry | None) -> Opening:
    """Return what the log of a request is opened with."""
    if entry:
        summary = _summary(entry, accepted)
    elif sharing:
        summary = request_summary(accepted, row_id=sharing.reader_id)
    else:
        summary = request_summary(accepted)
    opening = channel_opening(accepted, services.settings, summary)
    if sharing:
        opening.owner = NOBODY  # Each of those that share the log has a generation of its own.
    return opening


async def write_log(entry: Entry, accepted: AcceptedRequest, services: ApiServices) -> None:
    """Write a cached answer into the log of the request's generation, and its end.

    Raises:
        StoreUnavailable
    """
    generation_id, data = accepted.job.generation_id, entry.data
    if accepted.job.dialect == "openai-responses":  # Its clients come back with the id in the answer.
        data = data.replace(_hex(entry.log_id), _hex(generation_id))
    head = Head(headers=entry.headers, provider=entry.provider, upstream_model=entry.upstream_model)
    pieces = [(FrameKind.FENCE, str(START).encode()), (FrameKind.HEAD, head.pack())]
    pieces += [(FrameKind.DATA, piece) for piece in _pieces(data, entry.is_stream)]
    pieces.append((FrameKind.END, _end(entry).pack()))
    frames = [Frame(FrameId(1, n), kind, piece) for n, (kind, piece) in enumerate(pieces)]
    if accepted.cache and accepted.cache.is_stored_response:
        await services.responses.finish(generation_id, data, None)
    # In one step: no worker would end a log that was begun, if this process or Redis went away before its end.
    await services.channel.append([Append(Claim(generation_id, 1, secrets.token_hex(8)), START, frames)])
    await services.queue.withdraw(generation_id)  # There is no job. This lists the record for the ledger.


def _pieces(data: bytes, is_stream: bool) -> list[bytes]:
    """Cut an answer into frames. A stream's frames hold whole events."""
    if not is_stream or len(data) <= FRAME_BYTES_MAX:
        return [data[start : start + FRAME_BYTES_MAX] for start in range(0, len(data), FRAME_BYTES_MAX)]
    pieces: list[list[bytes]] = [[]]
    size = 0
    for block in split_blocks(data):
        if size and size + len(block) > FRAME_BYTES_MAX:
            pieces.append([])
            size = 0
        pieces[-1].append(block)
        size += len(block)
    return [b"".join(blocks) for blocks in pieces]


def _hex(generation_id: str) -> bytes:
    return generation_id.removeprefix("gen_").encode()


def _summary(entry: Entry, accepted: AcceptedRequest) -> bytes:
    return request_summary(accepted, "hit", entry.generation_id)


def _end(entry: Entry) -> End:
    return End(
        finish_reason=entry.finish_reason,
        usage=entry.usage,
        provider=entry.provider,
        upstream_model=entry.upstream_model,
        queue_wait_ms=0,
        ttft_ms=0,
        duration_ms=0,
        cost=NO_COST,
        saved=entry.cost,
    )
