"""Is a request cached, and how?

The rules of the settings, the dialect, the model, the tenant and the key say so, the last the strongest; then the client's
headers. Where nobody asks for the cache, a request has no plan, and nothing of this costs it anything.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import SecretStr
from starlette.datastructures import Headers

from api.auth.authenticator import ANONYMOUS
from api.cache.key import request_key
from api.cache.wishes import Wishes, parse_wishes
from common.access.cache_rule import CacheRule, CacheScope
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.config.groups.guardrails import GuardrailSettings
from common.config.model_patterns import allows
from common.config.model_routes import Target, own_name
from common.config.settings import Settings

ASKED_TTL_S = 600.0  # Of an answer that only the client wants cached.


@dataclass(frozen=True, slots=True)
class CachePlan:
    """``scope`` None: the cache does not serve this request, though somebody asked for it (``bypass``)."""

    scope: CacheScope | None = None
    ttl_s: float = 0.0
    may_use: bool = False
    may_store: bool = False
    may_join: bool = False
    max_age_s: int | None = None
    only_if_cached: bool = False
    has_limit: bool = False  # The client limits the answer's tokens.
    is_stored_response: bool = False  # Of /v1/responses: its client may come back with the id in its answer.


class CachePlanner:
    """Makes the plans of one process' requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # A change of what the guardrails look for must change which answers are found.
        rules = settings.model_dump(include=set(GuardrailSettings.model_fields), mode="json")
        self._guardrail_rules = hashlib.sha256(orjson.dumps(rules, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def plan(
        self,
        headers: Headers,
        principal: Principal,
        parsed: GenerationRequest,
        body: Mapping[str, Any],
        dialect: str,
        targets: list[Target],
    ) -> CachePlan | None:
        """Return how a request uses the cache, without its key; None if nobody asks for the cache.

        Raises:
            GatewayError: INVALID_REQUEST, a header is not valid.
        """
        wishes = parse_wishes(headers)
        rule = self._rule(principal, parsed, dialect, targets)
        if rule.ttl_s is None and not (wishes.is_asked or wishes.is_off or wishes.only_if_cached):
            return None
        if not _is_served(rule, wishes, principal, parsed):
            return CachePlan(only_if_cached=wishes.only_if_cached)
        is_stored_response = dialect == "openai-responses" and body.get("store") is not False
        may_join = self._settings.cache_join and wishes.may_use and wishes.may_store and not is_stored_response
        return CachePlan(
            rule.scope or "key",
            ASKED_TTL_S if rule.ttl_s is None else rule.ttl_s,
            wishes.may_use,
            wishes.may_store,
            may_join,
            wishes.max_age_s,
            wishes.only_if_cached,
            parsed.max_output_tokens is not None,
            is_stored_response,
        )

    def key(
        self,
        scope: CacheScope,
        job: Job,
        principal: Principal,
        body: Mapping[str, Any],
        targets: list[Target],
        byok_key: SecretStr | None,
    ) -> str:
        """Return the key of a request that the cache serves. ``body`` is what the upstream gets, after the guardrails."""
        name = principal.tenant if scope == "tenant" else principal.id
        own_key = hashlib.sha256(byok_key.get_secret_value().encode()).hexdigest() if byok_key else ""
        others = {
            "stream": job.stream,
            "guardrails": job.guardrails,
            "guardrail_rules": self._guardrail_rules,
            "headers": job.headers,
        }
        route = [target.name for target in targets]
        return request_key(job.dialect, body, shared_with=(scope, name, own_key), route=route, others=others)

    def _rule(self, principal: Principal, parsed: GenerationRequest, dialect: str, targets: list[Target]) -> CacheRule:
        """Return the rules of all sources as one."""
        settings = self._settings
        rule = settings.cache_default
        if dialect in settings.cache_dialects:
            rule = settings.cache_dialects[dialect].over(rule)
        for pattern, model_rule in settings.cache_models.items():
            if self._applies([pattern], model_rule, parsed, targets):
                rule = model_rule.over(rule)
                break
        for stronger in (principal.tenant_access.cache, principal.access.cache):
            if stronger.models is None or self._applies(stronger.models, stronger, parsed, targets):
                rule = stronger.over(rule)
        return rule

    def _applies(self, patterns: Sequence[str], rule: CacheRule, parsed: GenerationRequest, targets: list[Target]) -> bool:
        """Whether a rule is for a model. A rule that allows the cache must be for all targets that may answer; one that forbids
        it, for one of them.
        """
        own = own_name(parsed.model, self._settings, parsed.provider)
        matches = (any(allows(pattern, target, own, self._settings) for pattern in patterns) for target in targets)
        return any(matches) if rule.ttl_s == 0 else all(matches)


class NotCached(GatewayError):
    """The error for a client that wants an answer from the cache only (RFC 9111, section 5.2.1.7).

    To send the request again at once would not help, so clients are told not to; SDKs repeat every other 504.
    """

    headers: Mapping[str, str] = MappingProxyType({"x-should-retry": "false"})


def not_cached_error() -> NotCached:
    return NotCached(
        ErrorKind.DEADLINE_EXCEEDED,
        "The cache has no answer to this request, or cannot be reached. Send it without cache-control: only-if-cached.",
        status=504,
        code="not_cached",
        param="cache-control",
    )


def _is_served(rule: CacheRule, wishes: Wishes, principal: Principal, parsed: GenerationRequest) -> bool:
    if rule.ttl_s == 0 or wishes.is_off:
        return False
    if principal.id == ANONYMOUS and not rule.anonymous:
        return False  # All clients without a key are this one principal.
    if principal.is_audited:
        return False  # What an audited client gets is in a log of its own.
    return wishes.is_asked or rule.policy == "all" or parsed.temperature == 0
