"""Which deployments (with their addresses and keys) serve a model name?

A provider is reached at its own address, or through Cloudflare's AI Gateway if the settings name one. There is one deployment
for each key, in the order of the settings. If the AI Gateway stores the keys, none is sent. A key that the client sent (bring
your own key) is used instead of ours.
"""

import hashlib
import re
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson

from common.access.byok_keys import open_byok_key
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.config.groups.models import ModelSettings
from common.config.model_routes import Target, has_target, resolve, route_targets
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.vendors.models import ModelFacts
from common.vendors.prefill import KEEP_ALIVE_HEADERS
from common.vendors.table import VENDORS, Vendor, WireName
from workers.providers import WIRES
from workers.providers.base import Deployment, TokenCounter
from workers.providers.shared.reasoning import reasoning_words, reasons

_VERSION = re.compile(r"/v\d[a-z\d]*$")
_VERSIONED_WIRES: tuple[WireName, ...] = ("anthropic-messages", "cohere")  # Their own paths begin with a version.
# Whose models a provider of the settings serves on such a wire, by their usual names.
_MAKER_OF: dict[WireName, str] = {"anthropic-messages": "anthropic", "gemini": "google-ai-studio", "cohere": "cohere"}


def deployments(job: Job, settings: Settings, *, for_rest: bool = False) -> list[Deployment]:
    """Return the deployments of a route in the order in which they are tried: its targets, each with all of its keys.

    ``for_rest``: they must continue an answer. Then no bytes pass unchanged, so we need a wire that can continue an answer
    instead of the wire closest to the client's dialect. And nothing runs in the background.

    Raises:
        GatewayError: MODEL_NOT_FOUND or INVALID_REQUEST, this worker's settings differ from those of the API that accepted the
            request.
    """
    byok_key = open_byok_key(job.brought_key, job.generation_id, settings.secrets)
    targets = resolve(job.model, settings, job.provider, has_byok_key=byok_key is not None)
    if job.targets is not None:
        targets = [target for target in targets if target.name in job.targets]
        if not has_target(job.model, targets, settings):
            message = (
                f"The model {job.model!r} has another route now: the gateway's API and its workers need the same settings."
            )
            raise GatewayError(ErrorKind.MODEL_NOT_FOUND, message, code="model_not_found", param="model")
    found = [deployment for target in targets for deployment in _with_keys(target, job, byok_key, settings, for_rest=for_rest)]
    return _with_limits(found, job.model, settings)


def _with_limits(found: list[Deployment], model: str, settings: Settings) -> list[Deployment]:
    """Return the deployments with the limits that their route has for them."""
    route = settings.routes.get(model)
    if route is None or not any(rule.limits.is_set for rule in route.targets):
        return found
    rules = route_targets(route, settings)
    names = [f"{deployment.provider}/{deployment.model}" for deployment in found]
    return [
        replace(deployment, route_quota=f"route:{model}>{name}", route_limits=rules[name].limits)
        if name in rules
        else deployment
        for deployment, name in zip(found, names, strict=True)
    ]


def _with_keys(target: Target, job: Job, byok_key: str | None, settings: Settings, *, for_rest: bool) -> list[Deployment]:
    vendor = settings.vendors[target.provider]
    is_behind_gateway = settings.is_behind_gateway(vendor.id)
    if is_behind_gateway:
        vendor = replace(vendor, wires=tuple(wire for wire in vendor.wires if wire in vendor.gateway))
    is_reattached = settings.provider(vendor.id).continuation == "reattach"
    maker = "" if vendor.id in VENDORS else _MAKER_OF.get(vendor.wires[0], "")
    facts = settings.model_table.facts(vendor.id, target.model.removeprefix("models/"), maker)  # Gemini's names may have it.
    wire = _wire(vendor, target.model, "openai-chat" if for_rest else job.dialect, job, facts)
    in_background = is_reattached and not for_rest and _can_run_in_background(vendor, target.model, wire, job)
    if in_background:
        wire = "openai-responses"
    address = _behind_gateway(vendor, wire, settings) if is_behind_gateway else _direct(vendor, wire, settings)
    base_url, _, query = address.replace("{model}", quote(target.model, safe="")).partition("?")
    headers = _gateway_headers(job, settings) if is_behind_gateway else {}
    if is_reattached and not in_background:
        headers |= KEEP_ALIVE_HEADERS
    stored = _stored_keys(vendor, is_behind_gateway, settings)
    client_pays = byok_key is not None and settings.byok_pays(vendor.id)
    deployments = []
    for key in [byok_key] if byok_key else stored:
        own = {vendor.key_header: key} if vendor.key_header and key else {}
        deployments.append(
            Deployment(
                vendor.id,
                base_url,
                "" if own else key,
                target.model,
                wire,
                query,
                headers | own,
                in_background,
                key_id=_key_id(vendor.id, key),
                quota_id=_key_id(vendor.id, stored[0]) if byok_key and not client_pays else "",
                client_pays=client_pays,
                facts=facts,
            )
        )
    return deployments


def _wire(vendor: Vendor, model: str, dialect: str, job: Job, facts: ModelFacts) -> WireName:
    """Return the wire for a job. To count tokens, it is a wire that can count, if there is one."""
    wire = vendor.wire_for(dialect, facts.wire or _wire_for_request(vendor, model, dialect, job, facts))
    if job.operation == "count_tokens":
        return next((wire_name for wire_name in (wire, *vendor.wires) if isinstance(WIRES[wire_name], TokenCounter)), wire)
    return wire


def _wire_for_request(vendor: Vendor, model: str, dialect: str, job: Job, facts: ModelFacts) -> WireName | None:
    """Return the wire that the model needs for what this request asks for: tools, or to see its reasoning. None: any wire.

    A request in the client's own family that this wire cannot express stays as it is: the vendor answers it in its own words.
    """
    # Chat completions have no summaries. Their own clients expect none, and the rest of an answer needs none.
    may_show = facts.reasoning_is_hidden and "openai-responses" in vendor.wires and dialect != "openai-chat"
    if not (may_show or facts.wire_with_tools in vendor.wires) or job.operation != "generate":
        return None
    body = orjson.loads(job.body)
    if not body.keys() & {"tools", "thinking", "output_config"}:
        return None
    request = _parse(body, job)
    if request is None:
        return None
    if request.tools and (wire := _wire_with_tools(vendor, model, job, facts, request)):
        return wire
    return "openai-responses" if may_show and _needs_summaries(vendor, model, facts, request) else None


def _wire_with_tools(vendor: Vendor, model: str, job: Job, facts: ModelFacts, request: GenerationRequest) -> WireName | None:
    """Return the wire that the model needs for tools; None: any, because reasoning is off."""
    if facts.wire_with_tools not in vendor.wires:
        return None
    is_off = request.reasoning is not None and not request.reasoning.enabled
    if is_off and not reasons(request.reasoning, facts):
        return None
    if job.dialect == "openai-chat" and not _fits_responses(vendor, model, job.dialect, request):
        return None
    return facts.wire_with_tools


def _needs_summaries(vendor: Vendor, model: str, facts: ModelFacts, request: GenerationRequest) -> bool:
    """Whether the client wants to see the reasoning, and the Responses wire can express its request."""
    if not reasoning_words(request.reasoning, facts).is_shown:
        return False
    try:
        WIRES["openai-responses"].build_request(request, Deployment(vendor.id, "", "", model, facts=facts))
    except GatewayError:
        return False
    return True


def _parse(body: dict[str, Any], job: Job) -> GenerationRequest | None:
    try:
        return DIALECTS[job.dialect].parse(body)
    except GatewayError:
        return None


def _can_run_in_background(vendor: Vendor, model: str, wire: WireName, job: Job) -> bool:
    """Whether a stream can be stored at its provider while it runs.

    The client must not forbid storing, and the request must be on the Responses wire, or fit on it without loss.
    """
    if not job.stream or job.operation != "generate" or "openai-responses" not in vendor.wires:
        return False
    body = orjson.loads(job.body)
    if body.get("store") is False:
        return False
    if wire != "openai-chat":
        return wire == "openai-responses"
    request = _parse(body, job)
    return request is not None and _fits_responses(vendor, model, job.dialect, request)


def _fits_responses(vendor: Vendor, model: str, dialect: str, request: GenerationRequest) -> bool:
    try:
        upstream = WIRES["openai-responses"].build_request(request, Deployment(vendor.id, "", "", model))
    except GatewayError:
        return False
    # Fields that neither wire knows are lost on both, so they do not matter here.
    return not (upstream.dropped or (dialect == "openai-chat" and request.dropped))


def _key_id(provider: str, key: str) -> str:
    """Return a key's name in Redis. The key itself cannot be guessed from half of its digest."""
    return f"{provider}:{hashlib.sha256(f'{provider} {key}'.encode()).hexdigest()[:32]}"


def _stored_keys(vendor: Vendor, is_behind_gateway: bool, settings: ModelSettings) -> list[str]:
    keys = [key.get_secret_value() for key in settings.provider(vendor.id).api_keys]
    return keys or ([""] if is_behind_gateway else [vendor.id])  # A server that needs no key accepts any.


def _direct(vendor: Vendor, wire: WireName, settings: ModelSettings) -> str:
    base_url = settings.base_url(vendor.id) or ""
    version = _VERSION.search(base_url)
    if version is None:
        return base_url + (settings.filled(vendor.paths.get(wire, "")) or "")
    return base_url[: version.start()] if wire in _VERSIONED_WIRES else base_url


def _behind_gateway(vendor: Vendor, wire: WireName, settings: ModelSettings) -> str:
    return f"{settings.ai_gateway_url}/{settings.filled(vendor.gateway[wire])}"


def _gateway_headers(job: Job, settings: ModelSettings) -> dict[str, str]:
    """Return the headers for the AI Gateway: our token, and the client's own ``cf-aig-`` headers."""
    headers = {name: value for name, value in job.headers.items() if name.startswith("cf-aig-")}
    if settings.ai_gateway_token:
        headers["cf-aig-authorization"] = f"Bearer {settings.ai_gateway_token.get_secret_value()}"
    return headers
