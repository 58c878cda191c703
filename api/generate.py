"""How does a request become a generation, and a generation a response?

The request path on one screen: who asks, what for, may it run; then listen before the job exists, so that nothing can be
missed, and hand it to the queue. The twin of ``workers/generate.py``.

The rule for what belongs here: the order of these steps. What each client sees is its dialect's, how a channel is relayed
``relay``'s. Not solved here: anything that needs the provider; the worker does that.
"""

import asyncio
import contextlib
import re
import time
import uuid
from dataclasses import dataclass, field

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Authenticator, Principal
from api.body import read_json
from api.http_errors import error_response, request_id_of
from api.hub import Hub
from api.metrics import Metrics
from api.relay import Relay, RelayTimes
from api.viewer import Viewer
from common.channel.base import Channel, ChannelUnavailable, Opening, Policy
from common.channel.redis import RedisFeed
from common.dialects.base import Dialect
from common.errors import ErrorKind, GatewayError
from common.job import Job
from common.queue.jobs import JobClass, JobQueue
from common.redis_client import Pulse, RedisUnavailable
from common.routes import resolve
from common.settings import Settings

log = structlog.get_logger()

# What a same-family upstream is meant to get of the client's headers.
PASSED_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta")
GRACE_MAX_S = 3600
SAFETY_EXPIRY_EXTRA_S = 3600
RETRY_AFTER_AWAY_S = 2
_POLICY = re.compile(r"stop|detach|grace=(\d{1,5})")


@dataclass(slots=True)
class Services:
    """What serving requests needs; one per process."""

    settings: Settings
    authenticator: Authenticator
    channel: Channel
    feed: RedisFeed
    hub: Hub
    queue: JobQueue
    pulse: Pulse
    metrics: Metrics
    relays: set[Relay] = field(default_factory=set)
    is_draining: bool = False

    def times(self) -> RelayTimes:
        return RelayTimes(self.settings.status_hold_s, self.settings.keep_alive_s)


async def open_generation(dialect: Dialect, request: Request, services: Services) -> Response:
    """Serve one request in a dialect: the answer's stream or body, or an error in the dialect's own shape."""
    try:
        principal = services.authenticator.authenticate(request.headers)
        raw, body = await read_json(request, services.settings)
        parsed = dialect.parse(body)
        resolve(parsed.model, services.settings)
        policy, grace_s = disconnect_policy(request.headers)
        job = Job(
            generation_id=f"gen_{uuid.uuid4().hex}",
            request_id=request_id_of(request),
            dialect=dialect.name,
            model=parsed.model,
            stream=parsed.stream,
            policy=policy,
            grace_s=grace_s,
            created_s=int(time.time()),
            headers={name: request.headers[name] for name in PASSED_HEADERS if name in request.headers},
            body=raw,
        )
        return await _start(job, dialect, principal, services)
    except GatewayError as error:
        services.metrics.refused(error.failed)
        return error_response(dialect, error.failed, request_id_of(request))


async def _start(job: Job, dialect: Dialect, principal: Principal, services: Services) -> Relay:
    if not services.pulse.is_up:
        raise redis_away()
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id)
    try:
        viewer = await _open_and_enqueue(job, principal, services)
    except (ChannelUnavailable, RedisUnavailable) as error:
        raise redis_away() from error
    relay = Relay(
        viewer,
        dialect,
        services.times(),
        lambda done: finish(done, services),
        request_id=job.request_id,
        is_stream=job.stream,
        has_ids=job.policy is not Policy.STOP,
    )
    services.relays.add(relay)
    services.metrics.took(job)
    return relay


async def _open_and_enqueue(job: Job, principal: Principal, services: Services) -> Viewer:
    """The channel and the subscription before the job exists: no frame can be missed."""
    opening = _opening(job, principal, services.settings)
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
        await services.queue.enqueue(job.generation_id, principal.id, JobClass.INTERACTIVE)
    except BaseException as error:
        if isinstance(joined, Viewer):
            joined.has_ended = True  # Nobody works on it: there is nothing to leave.
            await services.hub.part(joined)
        if isinstance(error, GatewayError):  # Refused by a store that is there; one that is not forgets by itself.
            with contextlib.suppress(ChannelUnavailable):
                await services.channel.discard(job.generation_id)
        raise
    return joined


async def finish(relay: Relay, services: Services) -> None:
    """One viewer's response is over."""
    structlog.contextvars.bind_contextvars(outcome=relay.outcome)  # For the request's log line.
    services.relays.discard(relay)
    # Shielded: a server that stops cancels its handlers, and the leaving must be said all the same.
    await asyncio.shield(asyncio.ensure_future(services.hub.part(relay.viewer)))


def disconnect_policy(headers: Headers) -> tuple[Policy, float]:
    """Return the policy and the grace in seconds that ``x-disconnect`` asks for.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    asked = headers.get("x-disconnect", "stop").strip().lower()
    match = _POLICY.fullmatch(asked)
    if match is None or int(match[1] or 0) > GRACE_MAX_S:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"x-disconnect must be 'stop', 'grace=SECONDS' (at most {GRACE_MAX_S}) or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    return (Policy.GRACE, float(match[1])) if match[1] else (Policy(asked), 0.0)


def _opening(job: Job, principal: Principal, settings: Settings) -> Opening:
    retention_s = {
        Policy.STOP: settings.retention_stop_s,
        Policy.GRACE: settings.retention_grace_s,
        Policy.DETACH: settings.retention_detach_s,
    }[job.policy]
    return Opening(
        owner=principal.id,
        dialect=job.dialect,
        stream=job.stream,
        model=job.model,
        created_s=job.created_s,
        policy=job.policy,
        grace_s=job.grace_s,
        retention_s=retention_s,
        expiry_s=settings.queue_wait_s + settings.total_timeout_s + SAFETY_EXPIRY_EXTRA_S,
        request=job.pack(),
    )


def redis_away() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway cannot take requests just now: its store does not answer. Try again in {RETRY_AFTER_AWAY_S} seconds.",
        code="store_unavailable",
        retry_after_s=RETRY_AFTER_AWAY_S,
    )
