"""How does a request become a generation, and a generation a response?

The request path on one screen: who asks, what for, may it run; then listen before the job exists, so that nothing can be
missed, and hand it to the queue. The twin of ``workers/generate.py``.

The rule for what belongs here: the order of these steps. What each client sees is its dialect's, how a channel is relayed
``relay``'s. Not solved here: anything that needs the provider; the worker does that.
"""

import asyncio
import contextlib
from typing import Literal

import structlog
from starlette.requests import Request
from starlette.responses import Response

from api.intake.accepted import Amend, Asked, _opening, accept
from api.intake.idempotency import enqueue_once
from api.relay.response import Relay
from api.relay.viewer import Viewer
from api.server.connection import has_left
from api.server.store_errors import redis_away, redis_failed
from api.services import Services, guarded
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import State
from common.dialects.base import Dialect
from common.limits.charges import limit_headers, safe_name
from common.queue.jobs import Enqueued, Once

log = structlog.get_logger()


async def open_generation(
    dialect: Dialect,
    request: Request,
    services: Services,
    amend: Amend | None = None,
    operation: Literal["generate", "count_tokens"] = "generate",
) -> Response:
    """Serve one request in a dialect: the answer's stream or body, or an error in the dialect's own shape."""
    return await guarded(dialect, request, services, _generate(dialect, request, services, amend, operation))


async def _generate(
    dialect: Dialect,
    request: Request,
    services: Services,
    amend: Amend | None,
    operation: Literal["generate", "count_tokens"],
) -> Response:
    return await start(await accept(dialect, request, services, amend, operation), services)


async def start(asked: Asked, services: Services) -> Relay:
    """Enqueue a generation and return the response that relays it: it, or the one that a retry has come back to.

    Raises:
        GatewayError: OVERLOADED, INVALID_REQUEST, CANCELLED; it was not enqueued.
    """
    job, gate = asked.job, services.gate
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if services.probe.refusal:
        raise redis_away(services.probe.refusal)
    gate.check_wait(asked.principal, asked.job_class)
    _refuse_if_left(asked)
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id)
    told: Job | State = job
    gate.starting += 1
    try:
        viewer, enqueued = await _open_and_enqueue(asked, services)
        if viewer is None:
            answering_id = enqueued.id
            structlog.contextvars.bind_contextvars(generation_id=answering_id)
            viewer, told = await services.hub.enter(answering_id, asked.principal.id)
        else:
            services.metrics.took(job, asked.job_class)
            gate.note_enqueued(viewer, asked.job_class)
    except StoreUnavailable as error:
        raise redis_failed(error, services.pulse) from error
    finally:
        gate.starting -= 1
    relay = Relay(
        viewer,
        asked.dialect,
        services.times(),
        lambda done: finish(done, services),
        request_id=job.request_id,
        model=told.model,
        created_s=told.created_s,
        is_stream=told.stream,
        has_ids=told.policy is not Policy.STOP,
        extra_headers=limit_headers(enqueued.stands),
    )
    return services.add_relay(relay)


async def _open_and_enqueue(asked: Asked, services: Services) -> tuple[Viewer | None, Enqueued]:
    """The channel and the subscription before the job exists: no frame can be missed.

    Returns the viewer, or None where another generation answers the request.
    """
    job = asked.job
    opening = _opening(asked, services.settings)
    job.body = b""  # The opening has it: of a large one there are not to be more than needed.
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
        _refuse_if_left(asked)
        enqueued = await _enqueue(asked, services)
    except BaseException as error:
        if isinstance(joined, Viewer):
            # Refused by a store that is there; one that is not forgets by itself.
            await _unopen(joined, services, is_kept=not isinstance(error, GatewayError))
        raise
    if enqueued.id == job.generation_id:
        return joined, enqueued
    await _unopen(joined, services)
    return None, enqueued


def _refuse_if_left(asked: Asked) -> None:
    """Do no more for a client that has left meanwhile, unless its generation is to run without it.

    Raises:
        GatewayError: CANCELLED.
    """
    if asked.job.policy is Policy.STOP and has_left(asked.scope):
        raise GatewayError(ErrorKind.CANCELLED, "The client left before its request was in line.", code="cancelled")


async def _enqueue(asked: Asked, services: Services) -> Enqueued:
    generation_id, owner, tenant = asked.job.generation_id, asked.principal.id, safe_name(asked.principal.tenant)

    async def enqueue(once: Once | None) -> Enqueued:
        return await services.queue.enqueue(generation_id, owner, asked.job_class, once, tenant=tenant, charges=asked.charges)

    if asked.once is None:
        return await enqueue(None)
    return await enqueue_once(generation_id, owner, asked.once, enqueue, services.channel)


async def _unopen(viewer: Viewer, services: Services, *, is_kept: bool = False) -> None:
    """Take back what was opened for a generation that was not enqueued."""
    viewer.has_ended = True  # Nobody works on it: there is nothing to leave.
    await services.hub.part(viewer)
    if not is_kept:
        with contextlib.suppress(StoreUnavailable):
            await services.channel.discard(viewer.generation_id)


async def finish(relay: Relay, services: Services) -> None:
    """One viewer's response is over."""
    structlog.contextvars.bind_contextvars(outcome=relay.outcome)  # For the request's log line.
    services.relays.discard(relay)
    services.gate.note_left(relay.viewer)
    # Shielded: a server that stops cancels its handlers, and the leaving must be said all the same.
    await asyncio.shield(asyncio.ensure_future(services.hub.part(relay.viewer)))
