"""How does a request become a generation, and a generation a response?

The whole request path on one screen. Authenticate the client, parse the request, and check that it may run. Look for a cached
answer. Open a log and enqueue the job, or share the log of another one. The twin of ``workers/generate.py``.

Only the order of these steps belongs here. The dialects decide what a client sees. ``relay`` decides how a channel becomes a
response. Nothing here talks to a provider: the worker does.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Literal

import structlog
from starlette.requests import Request
from starlette.responses import Response

from api.intake.accepted import AcceptedRequest, Amend, accept
from api.opening.cached import answer_at_once, cache_headers, find_entry, needs_no_log
from api.opening.enqueue import open_and_enqueue, refuse_if_left
from api.opening.shared import leave_shared
from api.relay.response import Relay
from api.server.store_errors import redis_away, redis_failed
from api.services import ApiServices, answer_or_error
from common.cache.entry import Entry
from common.canonical.errors import StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import State
from common.dialects.base import Dialect
from common.limits.charges import limit_headers

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
    refuse_if_left(accepted)
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id)
    source: Job | State = job  # Describes the generation that answers.
    gate.starting += 1
    try:
        with _store_errors(services):
            opened = await open_and_enqueue(accepted, services, entry)
            viewer, enqueued = opened.viewer, opened.enqueued
            if viewer is None:
                structlog.contextvars.bind_contextvars(generation_id=enqueued.id)
                viewer, source = await services.hub.join_existing(enqueued.id, accepted.principal.id)
            elif opened.cache == "miss":
                services.metrics.record_accepted(job, accepted.job_class)
                gate.record_enqueued(viewer, accepted.job_class)
    finally:
        gate.starting -= 1
    if accepted.cache and opened.cache:
        services.metrics.record_cache(opened.cache if accepted.cache_key else "bypass", job.dialect)
    relay = Relay(
        viewer,
        accepted.dialect,
        services.relay_timeouts(),
        lambda relay: finish_own(relay, accepted, services),
        request_id=job.request_id,
        model=source.model,
        created_s=source.created_s,
        is_stream=source.stream,
        has_ids=source.policy is not Policy.STOP,
        extra_headers=limit_headers(enqueued.limit_statuses) | cache_headers(accepted, opened.cache, opened.entry),
    )
    return services.add_relay(relay)


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
    await services.hub.leave(relay.viewer)


async def finish_own(relay: Relay, accepted: AcceptedRequest, services: ApiServices) -> None:
    """End the response of the request that started or joined a generation."""
    await finish(relay, services)
    viewer = relay.viewer
    if viewer.reader_id != viewer.generation_id:
        await asyncio.shield(asyncio.ensure_future(leave_shared(viewer, accepted, services)))
