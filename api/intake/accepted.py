"""Who sends a request, what does it ask for, and may it run? From the HTTP request to what goes into the queue."""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from api.auth.authenticator import Identity
from api.auth.permissions import RequestedModel, permitted_by_fields, permitted_targets
from api.cache.plan import CachePlan, CachePlanner
from api.intake.charges import charges_of
from api.intake.disconnect import disconnect_policy
from api.intake.idempotency import parse_idempotency_key
from api.intake.job_class import class_of
from api.intake.known_prices import countable
from api.intake.route_wishes import conversation_of, tagged_targets
from api.server.body import read_json
from api.server.body_budget import in_thread_if_large
from api.server.client_address import client_address
from api.server.http_errors import request_id_of
from api.services import ApiServices
from common.access.byok_keys import seal_byok_key
from common.access.principal import Principal
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job, Policy
from common.channel.base import Opening
from common.config.groups.models import ModelSettings
from common.config.guardrail_policy import output_modes
from common.config.model_routes import Target, fallbacks_of, resolve
from common.config.route_rules import RouteFallback
from common.config.settings import Settings
from common.dialects.base import Dialect
from common.ledger.audit import check_audit_is_possible
from common.limits.charges import Charges
from common.queue.jobs import IdempotencyKey, JobClass
from common.records.request_summary import RequestSummary

# The client's headers that an upstream of the same family gets.
PASSED_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta")

AI_GATEWAY_HEADERS = "cf-aig-"

# The first authenticates to the AI Gateway, with our credential or the client's. The others would choose a key that is stored
# there, or another host.
AI_GATEWAY_KEPT = ("cf-aig-authorization", "cf-aig-byok-alias", "cf-aig-custom-host")

SAFETY_EXPIRY_EXTRA_S = 3600

LEDGER_NAME_MAX = 255  # Characters. The ledger keeps this much of a name.


@dataclass(slots=True)
class AcceptedRequest:
    """A request that may run: its sender, its job and its charges. ``scope`` is the ASGI scope of its connection."""

    scope: Scope
    dialect: Dialect
    principal: Principal
    job: Job
    charges: Charges
    end_user: str | None = None
    job_class: JobClass = JobClass.INTERACTIVE
    idempotency_key: IdempotencyKey | None = None
    cache: CachePlan | None = None
    cache_key: str = ""  # Empty where the cache does not serve it.
    byok_key: SecretStr | None = None

    def set_job_id(self, generation_id: str, settings: Settings) -> None:
        """Give the job another id. A provider key that the request brought can only be decrypted with the id of its job.

        Raises:
            GatewayError: INVALID_REQUEST, there is no secret to encrypt that key with.
        """
        self.job.generation_id = generation_id
        if self.byok_key:
            self.job.brought_key = seal_byok_key(self.byok_key, generation_id, settings.secret)


# What a route changes in a body before it is parsed. For example, it adds what the path or the query says.
Amend = Callable[[Principal, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _read_body(
    request: Request, services: ApiServices, principal: Principal, amend: Amend | None
) -> tuple[bytes | bytearray, dict[str, Any]]:
    """Return the body as bytes and as JSON, with what the route adds to it."""
    raw, body = await read_json(request, services.settings, services.bodies)
    amended = await amend(principal, body) if amend else body
    if amended is body:
        return raw, body
    return await in_thread_if_large(len(raw), orjson.dumps, amended), amended


async def accept(
    dialect: Dialect,
    request: Request,
    services: ApiServices,
    amend: Amend | None = None,
    operation: Literal["generate", "count_tokens"] = "generate",
    default_policy: Policy = Policy.STOP,
) -> AcceptedRequest:
    """Authenticate, read, parse and check a request, and return it as a job.

    ``default_policy`` is the disconnect policy of a request that names none. With DETACH it is background work by default.

    Raises:
        GatewayError: the request may not run.
    """
    # In one turn of the event loop: after a wait, the services may belong to the next configuration.
    settings, authenticator = services.settings, services.authenticator
    guard, planner = services.guard, services.planner
    identity = await authenticator.identify(request, "generate")
    principal, byok_key = identity.principal, identity.byok_key
    services.gate.remember_credential(request.scope, principal)
    check_audit_is_possible(principal, settings)
    default_class = JobClass.BACKGROUND if default_policy is Policy.DETACH else JobClass.INTERACTIVE
    job_class = class_of(request.headers, principal, default_class)
    raw, body = await _read_body(request, services, principal, amend)
    parsed = await in_thread_if_large(len(raw), dialect.parse, body)
    has_byok_key = byok_key is not None
    usable = _usable_targets(dialect, request.headers, identity, body, parsed, settings)
    targets = usable.targets
    if operation == "generate":
        targets = countable(principal, parsed.model, targets, settings, has_byok_key=has_byok_key)
    idempotency_key = await in_thread_if_large(
        len(raw), parse_idempotency_key, request.headers, principal, body, dialect.name, operation
    )
    guardrails = guard.policy(principal, parsed.model, targets + usable.by_fields)
    if guardrails and await guard.check(guardrails, body, model=parsed.model, tenant=principal.tenant):
        raw = orjson.dumps(body)  # ``parsed`` keeps the prompt as it came: it only serves to estimate the tokens.
    policy, grace_s = disconnect_policy(
        request.headers, default_policy, has_key=idempotency_key is not None, principal_default=principal.disconnect
    )
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
        targets=[target.name for target in targets] if len(targets) < usable.route_length else None,
        headers=await authenticator.without_gateway_credentials(_passed_headers(request.headers, settings)),
        body=raw,
        guardrails=dict(output_modes(guardrails)),
        tenant=principal.tenant,
        conversation=conversation_of(request.headers, principal, parsed, settings),
    )
    fallbacks = fallbacks_of(parsed.model, settings)
    providers = [target.provider for target in targets if _may_pay(target, fallbacks)]
    address = client_address(request.scope)
    charges = await in_thread_if_large(
        len(raw), charges_of, principal, address, parsed, providers, settings, has_byok_key=has_byok_key
    )
    end_user = principal.end_user or parsed.end_user
    accepted = AcceptedRequest(
        request.scope, dialect, principal, job, charges, end_user, job_class, idempotency_key, byok_key=byok_key
    )
    accepted.set_job_id(generation_id, settings)
    if operation == "generate":
        # No answer of a fallback is cached (``workers.answer_cache``). But it is shared by those that wait for the same job, so
        # the key names the fallbacks too: whoever may not use one never joins.
        own_targets = [target for target in targets if target.name not in fallbacks]
        accepted.cache = planner.plan(request.headers, principal, parsed, body, dialect.name, own_targets)
        accepted.cache_key = await _cache_key(accepted, planner, body, targets)
    return accepted


class _Usable(NamedTuple):
    """The targets of a route that a request may use, those that fields of its body name, and how many the route has."""

    targets: list[Target]
    by_fields: list[Target]
    route_length: int


def _usable_targets(
    dialect: Dialect,
    headers: Headers,
    identity: Identity,
    body: dict[str, Any],
    parsed: GenerationRequest,
    settings: Settings,
) -> _Usable:
    """
    Raises:
        GatewayError: MODEL_NOT_FOUND, PERMISSION_DENIED, INVALID_REQUEST: there is none.
    """
    principal, has_byok_key = identity.principal, identity.byok_key is not None
    route = resolve(parsed.model, settings, parsed.provider, has_byok_key=has_byok_key)
    requested = RequestedModel(parsed.model, parsed.provider, has_byok_key)
    targets = permitted_targets(principal, dialect.name, requested, route, settings)
    targets = tagged_targets(parsed.model, targets, headers, settings)
    return _Usable(targets, permitted_by_fields(principal, dialect.name, body, targets, settings), len(route))


async def _cache_key(accepted: AcceptedRequest, planner: CachePlanner, body: dict[str, Any], targets: list[Target]) -> str:
    """Return the key under which a request's answer is cached; empty where it is not."""
    if accepted.cache is None or not accepted.cache.scope:
        return ""
    job, scope = accepted.job, accepted.cache.scope
    return await in_thread_if_large(
        len(job.body), planner.key, scope, job, accepted.principal, body, targets, accepted.byok_key
    )


def _may_pay(target: Target, fallbacks: Mapping[str, RouteFallback]) -> bool:
    """Whether the budget of a target's provider may be the only one that is left: a fallback for other reasons may not."""
    return target.name not in fallbacks or "exhausted" in fallbacks[target.name].when


def _passed_headers(headers: Headers, settings: ModelSettings) -> dict[str, str]:
    passed = {name: headers[name] for name in PASSED_HEADERS if name in headers}
    if settings.ai_gateway_url:
        passed |= {
            name: value
            for name, value in headers.items()
            if name.startswith(AI_GATEWAY_HEADERS) and name not in AI_GATEWAY_KEPT
        }
    return passed


def channel_opening(accepted: AcceptedRequest, settings: Settings, summary: bytes) -> Opening:
    """Return what the channel of a generation is opened with. ``summary`` is what the ledger needs to know of it."""
    job = accepted.job
    is_interactive = accepted.job_class is JobClass.INTERACTIVE
    queue_wait_s = settings.queue_wait_s if is_interactive else settings.queue_wait_background_s
    retention_s = {
        Policy.STOP: settings.retention_stop_s,
        Policy.GRACE: settings.retention_grace_s,
        Policy.DETACH: settings.retention_detach_s,
    }[job.policy]
    return Opening(
        owner=accepted.principal.id,
        dialect=job.dialect,
        stream=job.stream,
        model=job.model,
        created_s=job.created_s,
        policy=job.policy,
        grace_s=job.grace_s,
        retention_s=max(retention_s, settings.idempotency_s) if accepted.idempotency_key else retention_s,
        expiry_s=queue_wait_s + settings.total_timeout_s + SAFETY_EXPIRY_EXTRA_S,
        request=job.pack_head(),
        body=job.body,
        request_summary=summary,
        is_audited=accepted.principal.is_audited,
        job_class=accepted.job_class,
    )


def request_summary(
    accepted: AcceptedRequest, cache: str | None = None, answered_by: str | None = None, row_id: str | None = None
) -> bytes:
    """Return what the ledger needs to know about a request.

    Args:
        cache: how the cache served it; None: as its plan says, before it is known whether somebody else's answer serves it.
        answered_by: the generation whose answer it got.
        row_id: the generation that the ledger's row is for, if it has another id than the log.
    """
    if cache is None:
        cache = "off" if accepted.cache is None else "miss" if accepted.cache_key else "bypass"
    job, principal = accepted.job, accepted.principal
    return RequestSummary(
        owner=principal.id,
        tenant=principal.tenant[:LEDGER_NAME_MAX],
        end_user=accepted.end_user[:LEDGER_NAME_MAX] if accepted.end_user else None,
        request_id=job.request_id,
        dialect=job.dialect,
        operation=job.operation,
        stream=job.stream,
        model=job.model[:LEDGER_NAME_MAX],
        created_ms=time.time_ns() // 1_000_000,
        is_audited=principal.is_audited,
        cache=cache,
        answered_by=answered_by,
        row_id=row_id,
    ).pack()
