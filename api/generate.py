"""How does a request become a generation, and a generation a response?

The request path on one screen: who asks, what for, may it run; then listen before the job exists, so that nothing can be
missed, and hand it to the queue. The twin of ``workers/generate.py``.

The rule for what belongs here: the order of these steps. What each client sees is its dialect's, how a channel is relayed
``relay``'s. Not solved here: anything that needs the provider; the worker does that.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from api.auth.authenticator import Authenticator
from api.auth.permissions import Named, permitted, permitted_by_fields
from api.intake.charges import charges_of
from api.intake.idempotency import IMPLIED_GRACE_S, enqueue_once, once_of
from api.intake.input_guardrails import InputGuard
from api.intake.job_class import class_of
from api.intake.known_prices import countable
from api.metrics import Metrics
from api.overload.gate import Gate
from api.relay.hub import Hub
from api.relay.response import Relay, RelayTimes
from api.relay.viewer import Viewer
from api.server.body import read_json
from api.server.body_budget import BodyBudget, apart
from api.server.client_address import client_address
from api.server.connection import has_left
from api.server.draining import WAVE_S, waves
from api.server.http_errors import error_response, headers_of, request_id_of
from api.server.numbers import whole_number
from api.server.store_errors import redis_away, redis_failed
from common.access.brought_keys import seal_brought_key
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Job
from common.channel.base import Channel, ChannelUnavailable, Opening, Policy, State
from common.channel.redis import RedisFeed
from common.config.guardrail_policy import on_output
from common.config.model_routes import resolve
from common.config.settings import Settings
from common.dialects.base import Dialect
from common.ledger.audit import refuse_unless_it_can_be_kept
from common.ledger.record import Asked as ForLedger
from common.limits.charges import Charges, limit_headers, safe_name
from common.queue.jobs import Enqueued, JobClass, JobQueue, Once
from common.redis.client import Pulse, RedisUnavailable
from common.redis.probe import Probe
from common.responses import ResponseStore

log = structlog.get_logger()

# What a same-family upstream is meant to get of the client's headers.
PASSED_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta")
AI_GATEWAY_HEADERS = "cf-aig-"
# The first is for us, or ours to send; the others would choose a key that is stored there, or another host.
AI_GATEWAY_KEPT = ("cf-aig-authorization", "cf-aig-byok-alias", "cf-aig-custom-host")
GRACE_MAX_S = 3600
SAFETY_EXPIRY_EXTRA_S = 3600
LEDGER_NAME_MAX = 255  # Characters of a name that the ledger keeps.


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
    probe: Probe
    metrics: Metrics
    responses: ResponseStore
    guard: InputGuard
    gate: Gate
    bodies: BodyBudget
    relays: set[Relay] = field(default_factory=set)
    is_draining: bool = False
    _is_grace_over: bool | None = field(default=None, init=False)  # None: the process goes on, or is unready at most.

    def times(self) -> RelayTimes:
        return RelayTimes(self.settings.status_hold_s, self.settings.keep_alive_s)

    def add_relay(self, relay: Relay) -> Relay:
        """Have a relay end with the process; returns it."""
        self.relays.add(relay)
        if self._is_grace_over is not None:
            relay.drain(is_over=self._is_grace_over)
        return relay

    def drain(self, *, is_over: bool, within_s: float = 0) -> None:
        """End the relays that can go on elsewhere, or (the grace ``is_over``) all, and those that are still to come.

        ``within_s``: the former in waves, so that those who read do not all come to the other replicas at one moment.
        """
        self._is_grace_over = is_over
        first, *later = waves([relay for relay in self.relays if is_over or relay.is_resumable], 0 if is_over else within_s)
        _end(first, is_over)
        for number, wave in enumerate(later, start=1):
            asyncio.get_running_loop().call_later(number * WAVE_S, _end, wave, is_over)


def _end(relays: Sequence[Relay], is_over: bool) -> None:
    for relay in relays:
        relay.drain(is_over=is_over)


@dataclass(slots=True)
class Asked:
    """A request that may run: who asks, and what for. ``scope`` is the connection's."""

    scope: Scope
    dialect: Dialect
    principal: Principal
    job: Job
    charges: Charges
    end_user: str | None = None
    job_class: JobClass = JobClass.INTERACTIVE
    once: Once | None = None


# What a route changes in a body before it is parsed, such as what its path or query says.
Amend = Callable[[Principal, dict[str, Any]], Awaitable[dict[str, Any]]]


async def open_generation(
    dialect: Dialect,
    request: Request,
    services: Services,
    amend: Amend | None = None,
    operation: Literal["generate", "count_tokens"] = "generate",
) -> Response:
    """Serve one request in a dialect: the answer's stream or body, or an error in the dialect's own shape."""
    return await guarded(dialect, request, services, _generate(dialect, request, services, amend, operation))


async def guarded(dialect: Dialect, request: Request, services: Services, answer: Awaitable[Response]) -> Response:
    """Return an answer, or the error that it raises in the dialect's own shape."""
    has_failed = True
    try:
        found = await answer
        has_failed = False
        return found
    except GatewayError as error:
        refused, headers = error.failed, headers_of(error)
    except (ChannelUnavailable, RedisUnavailable) as error:
        gone = redis_failed(error, services.pulse)
        refused, headers = gone.failed, headers_of(gone)
    finally:
        services.bodies.release(request.scope, has_failed=has_failed)
    services.metrics.refused(refused)
    return error_response(dialect, refused, request_id_of(request), headers)


async def _generate(
    dialect: Dialect,
    request: Request,
    services: Services,
    amend: Amend | None,
    operation: Literal["generate", "count_tokens"],
) -> Response:
    return await start(await accept(dialect, request, services, amend, operation), services)


async def accept(
    dialect: Dialect,
    request: Request,
    services: Services,
    amend: Amend | None = None,
    operation: Literal["generate", "count_tokens"] = "generate",
    unsaid: Policy = Policy.STOP,
) -> Asked:
    """Return what a request asks for, once it is known who asks and that it may run.

    ``unsaid`` is the disconnect policy where the request names none. One that is detached is started for later.

    Raises:
        GatewayError: it may not.
    """
    settings = services.settings
    credentials = await services.authenticator.examine(request, "generate")
    principal, brought_key = credentials.principal, credentials.brought_key
    services.gate.learn(request.scope, principal)
    refuse_unless_it_can_be_kept(principal, settings)
    job_class = class_of(request.headers, principal, JobClass.BACKGROUND if unsaid is Policy.DETACH else JobClass.INTERACTIVE)
    raw, body = await read_json(request, settings, services.bodies)
    if amend:
        amended = await amend(principal, body)
        if amended is not body:
            body, raw = amended, await apart(len(raw), orjson.dumps, amended)
    parsed = await apart(len(raw), dialect.parse, body)
    route = resolve(parsed.model, settings, parsed.provider, has_brought_key=brought_key is not None)
    named = Named(parsed.model, parsed.provider, brought_key is not None)
    targets = permitted(principal, dialect.name, named, route, settings)
    by_fields = permitted_by_fields(principal, dialect.name, body, targets, settings)
    if operation == "generate":
        targets = countable(principal, targets, settings, has_brought_key=brought_key is not None)
    once = await apart(len(raw), once_of, request.headers, principal, body, dialect.name, operation)
    guardrails = services.guard.policy(principal, parsed.model, targets + by_fields)
    if guardrails and await services.guard.check(guardrails, body, model=parsed.model, tenant=principal.tenant):
        raw = orjson.dumps(body)  # ``parsed`` knows the prompt as it came, which serves to measure it.
    policy, grace_s = disconnect_policy(request.headers, unsaid, has_key=once is not None, usual=principal.disconnect)
    generation_id = f"gen_{secrets.token_hex(16)}"
    job = Job(
        generation_id=generation_id,
        request_id=request_id_of(request),
        dialect=dialect.name,
        model=parsed.model,
        stream=parsed.stream and operation == "generate",
        policy=policy,
        grace_s=grace_s,
        created_s=int(time.time()),
        operation=operation,
        provider=parsed.provider,
        targets=[target.name for target in targets] if len(targets) < len(route) else None,
        headers=await services.authenticator.without_ours(_passed_headers(request.headers, settings)),
        body=raw,
        brought_key=seal_brought_key(brought_key, generation_id, settings) if brought_key else None,
        guardrails=dict(on_output(guardrails)),
        tenant=principal.tenant,
    )
    address = client_address(request.scope)
    providers = [target.provider for target in targets]
    has_key = brought_key is not None
    charges = await apart(len(raw), charges_of, principal, address, parsed, providers, settings, has_brought_key=has_key)
    return Asked(request.scope, dialect, principal, job, charges, principal.end_user or parsed.end_user, job_class, once)


def _passed_headers(headers: Headers, settings: Settings) -> dict[str, str]:
    passed = {name: headers[name] for name in PASSED_HEADERS if name in headers}
    if settings.ai_gateway_url:
        passed |= {
            name: value
            for name, value in headers.items()
            if name.startswith(AI_GATEWAY_HEADERS) and name not in AI_GATEWAY_KEPT
        }
    return passed


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
    except (ChannelUnavailable, RedisUnavailable) as error:
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
    job.body = b""  # It is packed: of a large one there are not to be more than needed.
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
        with contextlib.suppress(ChannelUnavailable):
            await services.channel.discard(viewer.generation_id)


async def finish(relay: Relay, services: Services) -> None:
    """One viewer's response is over."""
    structlog.contextvars.bind_contextvars(outcome=relay.outcome)  # For the request's log line.
    services.relays.discard(relay)
    services.gate.note_left(relay.viewer)
    # Shielded: a server that stops cancels its handlers, and the leaving must be said all the same.
    await asyncio.shield(asyncio.ensure_future(services.hub.part(relay.viewer)))


def disconnect_policy(headers: Headers, unsaid: Policy, *, has_key: bool, usual: str | None = None) -> tuple[Policy, float]:
    """Return the policy and the grace in seconds that ``x-disconnect`` asks for, that an idempotency-key implies, or that is
    ``usual`` with whoever asks.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    if "x-disconnect" not in headers:
        if unsaid is Policy.STOP and usual and usual != Policy.STOP:
            name, _, seconds = usual.partition("=")
            return Policy(name), min(float(seconds or 0), GRACE_MAX_S)
        return (Policy.GRACE, IMPLIED_GRACE_S) if has_key and unsaid is Policy.STOP else (unsaid, 0.0)
    asked = headers["x-disconnect"].strip().lower()
    name, _, text = asked.partition("=")
    if name == Policy.GRACE and (grace_s := whole_number(text, 0, GRACE_MAX_S)) is not None:
        return Policy.GRACE, float(grace_s)
    if asked not in (Policy.STOP, Policy.DETACH):
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"x-disconnect must be 'stop', 'grace=SECONDS' (at most {GRACE_MAX_S}) or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    return Policy(asked), 0.0


def _opening(asked: Asked, settings: Settings) -> Opening:
    job = asked.job
    queue_wait_s = settings.queue_wait_s if asked.job_class is JobClass.INTERACTIVE else settings.queue_wait_background_s
    retention_s = {
        Policy.STOP: settings.retention_stop_s,
        Policy.GRACE: settings.retention_grace_s,
        Policy.DETACH: settings.retention_detach_s,
    }[job.policy]
    return Opening(
        owner=asked.principal.id,
        dialect=job.dialect,
        stream=job.stream,
        model=job.model,
        created_s=job.created_s,
        policy=job.policy,
        grace_s=job.grace_s,
        retention_s=max(retention_s, settings.idempotency_s) if asked.once else retention_s,
        expiry_s=queue_wait_s + settings.total_timeout_s + SAFETY_EXPIRY_EXTRA_S,
        request=job.pack(),
        asked=_asked(asked),
        is_audited=asked.principal.is_audited,
        job_class=asked.job_class,
    )


def _asked(asked: Asked) -> bytes:
    """What the ledger is to know."""
    job, principal = asked.job, asked.principal
    return ForLedger(
        owner=principal.id,
        tenant=principal.tenant[:LEDGER_NAME_MAX],
        end_user=asked.end_user[:LEDGER_NAME_MAX] if asked.end_user else None,
        request_id=job.request_id,
        dialect=job.dialect,
        operation=job.operation,
        stream=job.stream,
        model=job.model[:LEDGER_NAME_MAX],
        created_ms=time.time_ns() // 1_000_000,
        is_audited=principal.is_audited,
    ).pack()
