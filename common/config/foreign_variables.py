"""Which variables of other gateways do we understand?

An operator who comes from another gateway can keep its environment: its variables are aliases of our settings, weaker than
any other source. If two variables mean the same setting, the one higher up in the table wins. Lists of keys and origins add
up, and limits are set one by one. Values that we cannot use are recognised and reported as having no effect. The table is
documented in docs/access.md and docs/operating.md.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from common.access.principal import is_origin

_TRUE = {"1", "true", "yes", "on"}
_LEVELS = {  # The level names of Python, winston and pino.
    "silly": "debug",
    "trace": "debug",
    "verbose": "debug",
    "http": "debug",
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "fatal": "error",
}


def _same(value: str) -> str:
    return value


def parse_origins(value: str) -> str | None:
    """Return the origins in a comma-separated value. In other gateways the value may also be true, or an expression."""
    return ",".join(part for item in value.split(",") if is_origin(part := item.strip().rstrip("/"))) or None


def _level(value: str) -> str | None:
    return _LEVELS.get(value.lower())


def _debug(value: str) -> str | None:
    return "debug" if value.lower() in _TRUE else None


# The variable, our setting, and a function that converts the value to ours (None: we cannot use the value).
TABLE: tuple[tuple[str, str, Callable[[str], str | None]], ...] = (
    ("ACCOUNT_ID", "ai_gateway_account_id", _same),
    ("GATEWAY_ID", "ai_gateway_id", _same),
    ("GatewayToken", "ai_gateway_token", _same),
    ("GatewayToken", "api_keys", _same),  # There, clients send this token, and Cloudflare gets it too.
    ("AZURE_RESOURCE", "azure_resource", _same),
    ("AZURE_API_VERSION", "azure_api_version", _same),
    ("CCPROXY_API_KEYS", "api_keys", _same),
    ("CCPROXY_BEARER_TOKEN", "api_keys", _same),
    ("CCPROXY_JWT_SECRET", "jwt_secret", _same),
    ("CCPROXY_HOST", "host", _same),
    ("CCPROXY_PORT", "port", _same),
    ("CCPROXY_DEBUG", "log_level", _debug),
    ("CCPROXY_LOG_LEVEL", "log_level", _level),
    ("PORT", "port", _same),
    ("REDIS_URL", "redis_url", _same),
    ("CORS_ORIGIN", "cors_origins", parse_origins),
    ("DEBUG", "log_level", _debug),
    ("LOG_LEVEL", "log_level", _level),
)
_LISTS = ("api_keys", "cors_origins")

# Limits: the variable, the scope of our limit, and its name. A window is one minute unless a variable sets it.
LIMITS: tuple[tuple[str, str, str], ...] = (
    ("CCPROXY_RATE_LIMIT_RPM", "key", "requests"),
    ("CCPROXY_RATE_LIMIT_TPM", "key", "tokens"),
    ("CCPROXY_CONCURRENT_REQUESTS", "key", "concurrent"),
    ("RATE_LIMIT_MAX", "address", "requests"),  # express-rate-limit counts by address.
    ("RATE_LIMIT_WINDOW_MS", "address", "window_s"),
)
_WINDOW_S_MAX = 86_400

# There, a Redis is a cache: REDIS_URL alone makes it answer repeated requests of POST /v1/chat for ten minutes, whoever sends
# them. Whoever uses our own variables for either decides about the cache with them.
CACHED_BY_REDIS_URL = {"ttl_s": 600, "policy": "all", "anonymous": True}
OWN_CACHE_VARIABLES = ("SLUICE_REDIS_URL", "SLUICE_CACHE_TTL_S")

# The setting that each authentication method needs, and the message if it is missing.
METHODS = {
    "api_key": ("api_keys", "no key is set: set CCPROXY_API_KEYS"),
    "bearer_token": ("api_keys", "no token is set: set CCPROXY_BEARER_TOKEN"),
    "jwt": ("jwt_secret", "no secret to verify tokens is set: set CCPROXY_JWT_SECRET, or SLUICE_JWT_JWKS_URL"),
    "oauth2": ("jwt_secret", "no secret to verify tokens is set: set CCPROXY_JWT_SECRET, or SLUICE_JWT_JWKS_URL"),
}


def foreign_values(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the values of our settings that the variables give, by the settings' names."""
    values: dict[str, Any] = {}
    for variable, setting, convert in TABLE:
        value = convert((variables.get(variable) or "").strip())
        if not value:
            continue
        if setting in _LISTS:
            values[setting] = ",".join(filter(None, (values.get(setting), value)))
        else:
            values.setdefault(setting, value)
    if limits := parse_limits(variables):
        values["limits"] = limits
    if "redis_url" in values and not any((variables.get(name) or "").strip() for name in OWN_CACHE_VARIABLES):
        values["cache_dialects"] = {"unified": CACHED_BY_REDIS_URL}
    return values


def parse_limits(variables: Mapping[str, str | None]) -> dict[str, dict[str, float]]:
    limits_by_scope: dict[str, dict[str, float]] = {}
    for variable, scope, name in LIMITS:
        if value := parse_limit(name, (variables.get(variable) or "").strip()):
            limits_by_scope.setdefault(scope, {})[name] = value
    # A window alone limits nothing.
    return {scope: limits for scope, limits in limits_by_scope.items() if set(limits) != {"window_s"}}


def parse_limit(name: str, text: str) -> float | None:
    """Return a limit's value. None where we cannot use it, or where it means no limit."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text)):
        return None
    return min(max(1, math.ceil(int(text) / 1000)), _WINDOW_S_MAX) if name == "window_s" else int(text)


def find_variable(setting: str, variables: Mapping[str, str | None]) -> str | None:
    """Return the variable of this table that gives a setting its value, if any does."""
    for variable, name, convert in TABLE:
        if name == setting and convert((variables.get(variable) or "").strip()):
            return variable
    return None
