"""How does a request become a generation, and a generation a response?

The whole request path on one screen. Authenticate the client, parse the request, and check that it may run. Subscribe before
the job exists, so that no frame can be missed. Then enqueue the job. The twin of ``workers/generate.py``.

Only the order of these steps belongs here. The dialects decide what a client sees. ``relay`` decides how a channel becomes a
response. Nothing here talks to a provider: the worker does.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import structlog
from starlette.requests import Request
from starlette.responses import Response

from api.intake.accepted import AcceptedRequest, Amend, accept
from api.intake.idempotency import enqueue_once
from api.relay.response import Relay
from api.relay.viewer import Viewer
from api.replay.cached import answer_at_once, cache_headers, find_entry, needs_no_log, opening_of, write_log
from api.replay.shared import leave_shared, own_opening, sharing_of
from api.server.connection import has_left
from api.server.store_errors import redis_away, redis_failed
from api.services import ApiServices, answer_or_error
from common.cache.entry import Entry
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import State
from common.dialects.base import Dialect
from common.limits.charges import limit_headers, safe_name
from common.queue.jobs import CachedAnswer, Enqueued, IdempotencyKey, Sharing

log = structlog.get_logger()


async def open_generation(
    dialect: Dialect,
    request: Request,
    services: ApiServices,
    amend: Amend | None = None,
    operation: Literal["generate", "count_tokens"] = "generate",
) -> Response:
    """Serve one request in a dialect: return the answer as a stream or a body, or an error in the dialect's own format."""
    return await answer_or_error(dialect, request, services, _generate(dialect, request, services, amend, operation))


async def _generate(
    dialect: Dialect,
    request: Request,
    services: ApiServices,
    amend: Amend | None,
    operation: Literal["generate", "count_tokens"],
) -> Response:
    accepted = await accept(dialect, request, services, amend, operation)
    _check_store(services)
    entry = await find_entry(accepted, services)
    if entry and needs_no_log(accepted):
        with _store_errors(services):
            return await answer_at_once(entry, accepted, services)
    return await _start(accepted, services, entry)


async def start(accepted: AcceptedRequest, services: ApiServices) -> Relay:
    """Enqueue a generation, and return the response that relays it. For a retry, relay the generation that it belongs to.

    Raises:
        GatewayError: OVERLOADED, INVALID_REQUEST, CANCELLED; it was not enqueued.
    """
    _check_store(services)
    return await _start(accepted, services, await find_entry(accepted, services))


async def _start(accepted: AcceptedRequest, services: ApiServices, entry: Entry | None) -> Relay:
    job, gate = accepted.job, services.gate
    if entry is None:
        gate.check_wait(accepted.principal, accepted.job_class)
    _refuse_if_left(accepted)
    own_id = job.generation_id  # Of a shared log, that is not the log's.
    structlog.contextvars.bind_contextvars(generation_id=own_id)
    source: Job | State = job  # Describes the generation that answers.
    gate.starting += 1
    try:
        with _store_errors(services):
            opened = await _open_and_enqueue(accepted, services, entry)
            viewer, enqueued = opened.viewer, opened.enqueued
            if viewer is None:
                structlog.contextvars.bind_contextvars(generation_id=enqueued.id)
                viewer, source = await services.hub.join_existing(enqueued.id, accepted.principal.id)
            elif opened.cache == "miss":
                services.metrics.record_accepted(job, accepted.job_class)
                gate.record_enqueued(viewer, accepted.job_class)
    finally:
        gate.starting -= 1
    if accepted.cache:
        services.metrics.record_cache(opened.cache if accepted.cache_key else "bypass", job.dialect)
    relay = Relay(
        viewer,
        accepted.dialect,
        services.relay_timeouts(),
        lambda relay: _finish_own(relay, accepted, services),
        request_id=job.request_id,
        model=source.model,
        created_s=source.created_s,
        is_stream=source.stream,
        has_ids=source.policy is not Policy.STOP,
        extra_headers=limit_headers(enqueued.limit_statuses) | cache_headers(accepted, opened.cache, opened.entry),
    )
    return services.add_relay(relay)


@dataclass(slots=True)
class _Opened:
    """``viewer`` None: another generation answers the request. ``cache``: miss, hit or join. ``entry``: the cached answer."""

    viewer: Viewer | None
    enqueued: Enqueued
    cache: str = "miss"
    entry: Entry | None = None


async def _open_and_enqueue(accepted: AcceptedRequest, services: ApiServices, entry: Entry | None) -> _Opened:
    """Open the channel and subscribe before the job exists, so that no frame can be missed. Then enqueue the job.

    A request that may share a job has a generation of its own, which reads whichever log the enqueue script chooses. It opens
    another log only if there is none to join.
    """
    job = accepted.job
    sharing = sharing_of(accepted, services) if entry is None else None
    if sharing:
        if joining := await _join(accepted, services, sharing):
            return joining
        job.generation_id = f"gen_{secrets.token_hex(16)}"  # The log's. Nobody knows it.
    opening = opening_of(accepted, services, sharing, entry)
    job.body = b""  # The opening holds it. There must not be more copies of a large body than needed.
    joined, opened = await asyncio.gather(
        services.hub.join(job.generation_id, reader_id=sharing.reader_id if sharing else ""),
        services.channel.open(job.generation_id, opening, services.hub.replica),
        return_exceptions=True,
    )
    try:
        if isinstance(joined, BaseException):
            raise joined
        if isinstance(opened, BaseException):
            raise opened
        _refuse_if_left(accepted)
        enqueued = await _enqueue(accepted, services, sharing, CachedAnswer() if entry else None)
        if sharing and enqueued.is_cached and not (entry := await find_entry(accepted, services)):
            enqueued = await _enqueue(accepted, services, replace(sharing, has_read_again=True), None)
        if entry and enqueued.id == job.generation_id:
            await write_log(entry, accepted, services)
            joined.reread()
    except BaseException as error:
        if isinstance(joined, Viewer):
            # After a refusal the store is there, and must forget the channel. A store that is away forgets it by itself.
            await _undo_open(joined, services, is_kept=not isinstance(error, GatewayError))
        raise
    if sharing and enqueued.is_cached:
        await _undo_open(joined, services)
        job.generation_id = sharing.reader_id
        return await _open_and_enqueue(accepted, services, entry)
    if enqueued.log_id:
        await _undo_open(joined, services, keeps_reader=True)
        return _Opened(await services.hub.join_shared(enqueued.log_id, enqueued.id), enqueued, "join")
    if enqueued.id == joined.reader_id:
        return _Opened(joined, enqueued, "hit" if entry else "miss", entry)
    await _undo_open(joined, services)
    return _Opened(None, enqueued, entry=entry)


async def _join(accepted: AcceptedRequest, services: ApiServices, sharing: Sharing) -> _Opened | None:
    """Open the request's own generation, and join a job that runs already. None: there is none to join."""
    opening = own_opening(accepted, opening_of(accepted, services, sharing, None))
    try:
        _, enqueued = await asyncio.gather(  # In this order, in one message to Redis.
            services.channel.follow(sharing.reader_id, "", opening),
            _enqueue(accepted, services, replace(sharing, only_joins=True), None),
        )
    except GatewayError:
        await services.channel.discard(sharing.reader_id)
        raise
    if enqueued.log_id:
        return _Opened(await services.hub.join_shared(enqueued.log_id, enqueued.id), enqueued, "join")
    return _Opened(None, enqueued) if enqueued.id else None


def _refuse_if_left(accepted: AcceptedRequest) -> None:
    """Stop here if the client has left, unless its generation must run without it.

    Raises:
        GatewayError: CANCELLED.
    """
    if accepted.job.policy is Policy.STOP and has_left(accepted.scope):
        raise GatewayError(ErrorKind.CANCELLED, "The client left before its request was in the queue.", code="cancelled")


async def _enqueue(
    accepted: AcceptedRequest, services: ApiServices, sharing: Sharing | None, cached: CachedAnswer | None
) -> Enqueued:
    generation_id, owner = accepted.job.generation_id, accepted.principal.id
    tenant, job_class, charges = safe_name(accepted.principal.tenant), accepted.job_class, accepted.charges

    async def enqueue(idempotency_key: IdempotencyKey | None) -> Enqueued:
        return await services.queue.enqueue(
            generation_id, owner, job_class, idempotency_key, tenant=tenant, charges=charges, sharing=sharing, cached=cached
        )

    if accepted.idempotency_key is None:
        return await enqueue(None)
    own_id = sharing.reader_id if sharing else generation_id
    return await enqueue_once(own_id, owner, accepted.idempotency_key, enqueue, services.channel)


async def _undo_open(viewer: Viewer, services: ApiServices, *, is_kept: bool = False, keeps_reader: bool = False) -> None:
    """Remove what was opened for a job that was not enqueued.

    ``is_kept``: leave the channel to its expiry. ``keeps_reader``: the request's own generation reads another log.
    """
    viewer.has_ended = True  # No worker runs it, so there is no leave to report.
    await services.hub.leave(viewer)
    if is_kept:
        return
    with contextlib.suppress(StoreUnavailable):
        await services.channel.discard(viewer.generation_id)
        if viewer.reader_id != viewer.generation_id and not keeps_reader:
            await services.channel.discard(viewer.reader_id)


def _check_store(services: ApiServices) -> None:
    """
    Raises:
        GatewayError: OVERLOADED, Redis is away.
    """
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if services.probe.refusal:
        raise redis_away(services.probe.refusal)


@contextlib.contextmanager
def _store_errors(services: ApiServices) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise redis_failed(error, services.pulse) from error


async def finish(relay: Relay, services: ApiServices) -> None:
    """End one viewer's response: log its outcome, and report that the viewer has left."""
    structlog.contextvars.bind_contextvars(outcome=relay.outcome)  # For the request's log line.
    services.relays.discard(relay)
    services.gate.record_left(relay.viewer)
    # Shielded: a server that stops cancels its handlers, but the leave must be reported all the same.
    await asyncio.shield(asyncio.ensure_future(services.hub.leave(relay.viewer)))


async def _finish_own(relay: Relay, accepted: AcceptedRequest, services: ApiServices) -> None:
    """End the response of the request that started or joined a generation."""
    await finish(relay, services)
    viewer = relay.viewer
    if viewer.reader_id != viewer.generation_id:
        await asyncio.shield(asyncio.ensure_future(leave_shared(viewer, accepted, services)))
