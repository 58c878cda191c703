"""How does a request become a generation, and a generation a response?

The whole request path on one screen. Authenticate the client, parse the request, and check that it may run. Subscribe before
the job exists, so that no frame can be missed. Then enqueue the job. The twin of ``workers/generate.py``.

Only the order of these steps belongs here. The dialects decide what a client sees. ``relay`` decides how a channel becomes a
response. Nothing here talks to a provider: the worker does.
"""

import asyncio
import contextlib
from typing import Literal

import structlog
from starlette.requests import Request
from starlette.responses import Response

from api.intake.accepted import AcceptedRequest, Amend, accept, channel_opening
from api.intake.idempotency import enqueue_once
from api.relay.response import Relay
from api.relay.viewer import Viewer
from api.server.connection import has_left
from api.server.store_errors import redis_away, redis_failed
from api.services import ApiServices, answer_or_error
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import State
from common.dialects.base import Dialect
from common.limits.charges import limit_headers, safe_name
from common.queue.jobs import Enqueued, IdempotencyKey

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
    return await start(await accept(dialect, request, services, amend, operation), services)


async def start(accepted: AcceptedRequest, services: ApiServices) -> Relay:
    """Enqueue a generation, and return the response that relays it. For a retry, relay the generation that it belongs to.

    Raises:
        GatewayError: OVERLOADED, INVALID_REQUEST, CANCELLED; it was not enqueued.
    """
    job, gate = accepted.job, services.gate
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if services.probe.refusal:
        raise redis_away(services.probe.refusal)
    gate.check_wait(accepted.principal, accepted.job_class)
    _refuse_if_left(accepted)
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id)
    source: Job | State = job  # Describes the generation that answers.
    gate.starting += 1
    try:
        viewer, enqueued = await _open_and_enqueue(accepted, services)
        if viewer is None:
            answering_id = enqueued.id
            structlog.contextvars.bind_contextvars(generation_id=answering_id)
            viewer, source = await services.hub.join_existing(answering_id, accepted.principal.id)
        else:
            services.metrics.record_accepted(job, accepted.job_class)
            gate.record_enqueued(viewer, accepted.job_class)
    except StoreUnavailable as error:
        raise redis_failed(error, services.pulse) from error
    finally:
        gate.starting -= 1
    relay = Relay(
        viewer,
        accepted.dialect,
        services.relay_timeouts(),
        lambda relay: finish(relay, services),
        request_id=job.request_id,
        model=source.model,
        created_s=source.created_s,
        is_stream=source.stream,
        has_ids=source.policy is not Policy.STOP,
        extra_headers=limit_headers(enqueued.limit_statuses),
    )
    return services.add_relay(relay)


async def _open_and_enqueue(accepted: AcceptedRequest, services: ApiServices) -> tuple[Viewer | None, Enqueued]:
    """Open the channel and subscribe before the job exists, so that no frame can be missed. Then enqueue the job.

    Returns the viewer, or None if another generation answers the request.
    """
    job = accepted.job
    opening = channel_opening(accepted, services.settings)
    job.body = b""  # The opening holds it. There must not be more copies of a large body than needed.
    joined, opened = await asyncio.gather(
        services.hub.join(job.generation_id),
        services.channel.open(job.generation_id, opening, services.hub.replica),
        return_exceptions=True,
    )
    try:
        if isinstance(joined, BaseException):
            raise joined
        if isinstance(opened, BaseException):
            raise opened
        _refuse_if_left(accepted)
        enqueued = await _enqueue(accepted, services)
    except BaseException as error:
        if isinstance(joined, Viewer):
            # After a refusal the store is there, and must forget the channel. A store that is away forgets it by itself.
            await _undo_open(joined, services, is_kept=not isinstance(error, GatewayError))
        raise
    if enqueued.id == job.generation_id:
        return joined, enqueued
    await _undo_open(joined, services)
    return None, enqueued


def _refuse_if_left(accepted: AcceptedRequest) -> None:
    """Stop here if the client has left, unless its generation must run without it.

    Raises:
        GatewayError: CANCELLED.
    """
    if accepted.job.policy is Policy.STOP and has_left(accepted.scope):
        raise GatewayError(ErrorKind.CANCELLED, "The client left before its request was in the queue.", code="cancelled")


async def _enqueue(accepted: AcceptedRequest, services: ApiServices) -> Enqueued:
    generation_id, owner = accepted.job.generation_id, accepted.principal.id
    tenant, job_class, charges = safe_name(accepted.principal.tenant), accepted.job_class, accepted.charges

    async def enqueue(idempotency_key: IdempotencyKey | None) -> Enqueued:
        return await services.queue.enqueue(generation_id, owner, job_class, idempotency_key, tenant=tenant, charges=charges)

    if accepted.idempotency_key is None:
        return await enqueue(None)
    return await enqueue_once(generation_id, owner, accepted.idempotency_key, enqueue, services.channel)


async def _undo_open(viewer: Viewer, services: ApiServices, *, is_kept: bool = False) -> None:
    """Remove what was opened for a generation that was not enqueued. ``is_kept``: leave the channel to its expiry."""
    viewer.has_ended = True  # No worker runs it, so there is no leave to report.
    await services.hub.leave(viewer)
    if not is_kept:
        with contextlib.suppress(StoreUnavailable):
            await services.channel.discard(viewer.generation_id)


async def finish(relay: Relay, services: ApiServices) -> None:
    """End one viewer's response: log its outcome, and report that the viewer has left."""
    structlog.contextvars.bind_contextvars(outcome=relay.outcome)  # For the request's log line.
    services.relays.discard(relay)
    services.gate.record_left(relay.viewer)
    # Shielded: a server that stops cancels its handlers, but the leave must be reported all the same.
    await asyncio.shield(asyncio.ensure_future(services.hub.leave(relay.viewer)))
