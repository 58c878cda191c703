"""How does a request get the log that answers it: a new one, one that it shares, or one that is written from the cache?

The channel is open and subscribed before the job exists, so that no frame can be missed. A request that may share a job has a
generation of its own, which reads whichever log the enqueue script chooses; see ``api/opening/shared.py``.
"""

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, replace

from api.intake.accepted import AcceptedRequest
from api.intake.idempotency import enqueue_once
from api.opening.cached import find_entry, opening_of, write_log
from api.opening.shared import own_opening, sharing_of
from api.relay.viewer import Viewer
from api.server.connection import has_left
from api.services import ApiServices
from common.cache.entry import Entry
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.limits.charges import safe_name
from common.queue.jobs import CachedAnswer, Enqueued, IdempotencyKey, Sharing


@dataclass(slots=True)
class Opened:
    """``viewer`` None: the request is a retry, and the generation of the first try answers it.

    ``cache``: miss, hit or join; empty for a retry. ``entry``: the cached answer of a hit.
    """

    viewer: Viewer | None
    enqueued: Enqueued
    cache: str = ""
    entry: Entry | None = None


async def open_and_enqueue(accepted: AcceptedRequest, services: ApiServices, entry: Entry | None) -> Opened:
    """Open the channel, subscribe, and enqueue the job. ``entry`` is the cached answer that takes the job's place.

    A request that may share a job opens a log only if there is none to join.

    Raises:
        GatewayError: OVERLOADED, RATE_LIMITED, BUDGET_EXCEEDED, INVALID_REQUEST, CANCELLED; nothing was enqueued.
        StoreUnavailable
    """
    job = accepted.job
    sharing = sharing_of(accepted, services) if entry is None else None
    if sharing:
        if joining := await _join(accepted, services, sharing):
            return joining
        accepted.set_job_id(f"gen_{secrets.token_hex(16)}", services.settings)  # The log's. Nobody knows it.
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
        refuse_if_left(accepted)
        enqueued = await _enqueue(accepted, services, sharing, CachedAnswer() if entry else None)
        if sharing and enqueued.is_cached and not (entry := await find_entry(accepted, services)):
            enqueued = await _enqueue(accepted, services, replace(sharing, has_read_again=True), None)
        if entry and enqueued.id == job.generation_id:
            await write_log(entry, accepted, services)
            joined.reread()
    except BaseException as error:
        if isinstance(joined, Viewer) and isinstance(error, GatewayError):
            await _undo_open(joined, services)
        elif isinstance(joined, Viewer):
            # The store may have enqueued the job and only its answer came too late. Then the job must not run for nobody.
            services.hub.abandon(joined)
        raise
    if sharing and enqueued.is_cached:
        await _undo_open(joined, services)
        accepted.set_job_id(sharing.reader_id, services.settings)
        return await open_and_enqueue(accepted, services, entry)
    if enqueued.log_id:
        await _undo_open(joined, services, keeps_reader=True)
        return Opened(await services.hub.join_shared(enqueued.log_id, enqueued.id), enqueued, "join")
    if enqueued.id == joined.reader_id:
        return Opened(joined, enqueued, "hit" if entry else "miss", entry)
    await _undo_open(joined, services)
    return Opened(None, enqueued)


async def _join(accepted: AcceptedRequest, services: ApiServices, sharing: Sharing) -> Opened | None:
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
        return Opened(await services.hub.join_shared(enqueued.log_id, enqueued.id), enqueued, "join")
    return Opened(None, enqueued) if enqueued.id else None


def refuse_if_left(accepted: AcceptedRequest) -> None:
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


async def _undo_open(viewer: Viewer, services: ApiServices, *, keeps_reader: bool = False) -> None:
    """Remove what was opened for a job that was not enqueued.

    ``keeps_reader``: the request's own generation reads another log.
    """
    viewer.has_ended = True  # No worker runs it, so there is no leave to report.
    await services.hub.leave(viewer)
    with contextlib.suppress(StoreUnavailable):
        await services.channel.discard(viewer.generation_id)
        if viewer.reader_id != viewer.generation_id and not keeps_reader:
            await services.channel.discard(viewer.reader_id)
