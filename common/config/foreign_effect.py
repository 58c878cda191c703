"""Which variables of other gateways do the settings use, and which have no effect?

A process logs this when it starts, and ``sluice doctor`` reports it.
"""

from collections.abc import Mapping

from pydantic import SecretStr

from common.access.cache_rule import CacheRule
from common.config.foreign_variables import (
    CACHED_BY_REDIS_URL,
    LIMITS,
    METHODS,
    TABLE,
    parse_limit,
    parse_limits,
    parse_origins,
)
from common.config.settings import Settings


def in_effect(variables: Mapping[str, str | None], settings: Settings) -> list[str]:
    """Return the names of the variables that the settings use: those that no stronger source overrides."""
    names = []
    for variable, setting, convert in TABLE:
        value = convert((variables.get(variable) or "").strip())
        if value and variable not in names and _is_in_effect(getattr(settings, setting), value):
            names.append(variable)
    for variable, scope, name in LIMITS:
        limit = parse_limits(variables).get(scope, {}).get(name)
        if limit and getattr(settings.limits.get(scope), name, None) == limit:  # type: ignore[call-overload]  # One of the scopes.
            names.append(variable)
    return names


def turns_cache_on(variable: str, settings: Settings) -> bool:
    """Whether a variable in effect also turns on the cache, as it does at the gateway that it comes from."""
    return variable == "REDIS_URL" and settings.cache_dialects.get("unified") == CacheRule.model_validate(CACHED_BY_REDIS_URL)


def _is_in_effect(chosen: object, value: str) -> bool:
    if isinstance(chosen, tuple):
        parts = {part.strip() for part in value.split(",") if part.strip()}
        return parts <= {item.get_secret_value() if isinstance(item, SecretStr) else item for item in chosen}
    return (chosen.get_secret_value() if isinstance(chosen, SecretStr) else str(chosen)) == value


def without_effect(variables: Mapping[str, str | None], settings: Settings) -> dict[str, str]:
    """Return the variables that we know but cannot use, each with the reason."""
    reasons = {}
    for variable, _, name in LIMITS:
        value = (variables.get(variable) or "").strip()
        if value and value != "0" and parse_limit(name, value) is None:
            reasons[variable] = "it is not a whole number"
    if (variables.get("CORS_ORIGIN") or "").strip() and not parse_origins(variables["CORS_ORIGIN"] or ""):
        reasons["CORS_ORIGIN"] = "it is not an origin such as https://app.example"
    method = (variables.get("CCPROXY_AUTH_METHOD") or "").strip().lower()
    if method in METHODS:
        setting, reason = METHODS[method]
        if not (getattr(settings, setting) or (setting == "jwt_secret" and settings.jwt_jwks_url)):
            reasons["CCPROXY_AUTH_METHOD"] = reason
    elif method:
        reasons["CCPROXY_AUTH_METHOD"] = f"it must be one of {', '.join(METHODS)}"
    return reasons


def log_foreign(variables: Mapping[str, str | None], settings: Settings) -> None:
    """Log which foreign variables a process uses, by name only, and which it cannot use."""
    import structlog  # Imported here, because commands that log nothing do not need it.

    log = structlog.get_logger()
    if names := in_effect(variables, settings):
        cached = {"cache": "on for POST /v1/chat"} if any(turns_cache_on(name, settings) for name in names) else {}
        log.info("foreign_variables_taken", variables=names, **cached)
    for name, reason in without_effect(variables, settings).items():
        log.warning("foreign_variable_has_no_effect", variable=name, reason=reason)
