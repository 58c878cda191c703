"""Which variables of other gateways do we understand?

Whoever moves here from one of them keeps the environment that is there: its variables are aliases of our settings, weaker
than any other source. Of two that mean the same setting the one further up in the table is taken; keys add up. What
stands for something that we do not have yet is recognised, and said to be without effect.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import SecretStr

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

_TRUE = {"1", "true", "yes", "on"}
_LEVELS = {  # Python's, winston's and pino's words.
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


def _level(value: str) -> str | None:
    return _LEVELS.get(value.lower())


def _debug(value: str) -> str | None:
    return "debug" if value.lower() in _TRUE else None


# The variable, our setting, and its value as ours; None is a value that means nothing to us.
_TABLE: tuple[tuple[str, str, Callable[[str], str | None]], ...] = (
    ("ACCOUNT_ID", "ai_gateway_account_id", _same),
    ("GATEWAY_ID", "ai_gateway_id", _same),
    ("GatewayToken", "ai_gateway_token", _same),
    ("GatewayToken", "api_keys", _same),  # There it is both what clients send and what Cloudflare gets.
    ("AZURE_RESOURCE", "azure_resource", _same),
    ("AZURE_API_VERSION", "azure_api_version", _same),
    ("CCPROXY_API_KEYS", "api_keys", _same),
    ("CCPROXY_BEARER_TOKEN", "api_keys", _same),
    ("CCPROXY_HOST", "host", _same),
    ("CCPROXY_PORT", "port", _same),
    ("CCPROXY_DEBUG", "log_level", _debug),
    ("CCPROXY_LOG_LEVEL", "log_level", _level),
    ("PORT", "port", _same),
    ("REDIS_URL", "redis_url", _same),
    ("CORS_ORIGIN", "cors_origins", _same),
    ("DEBUG", "log_level", _debug),
    ("LOG_LEVEL", "log_level", _level),
)
_LISTS = ("api_keys", "cors_origins")

# The values that need nothing of us, and why all others have no effect.
_NOT_YET: Mapping[str, tuple[set[str], str]] = {
    "CCPROXY_AUTH_METHOD": ({"api_key", "bearer_token"}, "keys are checked as ever; JSON web tokens are not understood"),
    "CCPROXY_JWT_SECRET": (set(), "JSON web tokens are not understood"),
    "CCPROXY_RATE_LIMIT_RPM": (set(), "there are no rate limits"),
    "CCPROXY_RATE_LIMIT_TPM": (set(), "there are no rate limits"),
    "CCPROXY_CONCURRENT_REQUESTS": (set(), "there is no limit on concurrent requests"),
    "RATE_LIMIT_MAX": (set(), "there are no rate limits"),
    "RATE_LIMIT_WINDOW_MS": (set(), "there are no rate limits"),
}


def foreign_values(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what the variables say, by the names of our settings."""
    found: dict[str, Any] = {}
    for variable, setting, convert in _TABLE:
        value = convert((variables.get(variable) or "").strip())
        if not value:
            continue
        if setting in _LISTS:
            found[setting] = ",".join(filter(None, (found.get(setting), value)))
        else:
            found.setdefault(setting, value)
    return found


def in_effect(variables: Mapping[str, str | None], settings: "Settings") -> list[str]:
    """Return the names of the variables that the settings follow: no stronger source says otherwise."""
    names = []
    for variable, setting, convert in _TABLE:
        value = convert((variables.get(variable) or "").strip())
        if value and variable not in names and _says(getattr(settings, setting), value):
            names.append(variable)
    return names


def _says(chosen: object, value: str) -> bool:
    if isinstance(chosen, tuple):
        parts = {part.strip() for part in value.split(",") if part.strip()}
        return parts <= {each.get_secret_value() if isinstance(each, SecretStr) else each for each in chosen}
    return (chosen.get_secret_value() if isinstance(chosen, SecretStr) else str(chosen)) == value


def without_effect(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables that we know and cannot follow, each with the reason."""
    found = {}
    for variable, (harmless, reason) in _NOT_YET.items():
        value = (variables.get(variable) or "").strip()
        if value and value.lower() not in harmless:
            found[variable] = reason
    return found


def log_foreign(variables: Mapping[str, str | None], settings: "Settings") -> None:
    """Log which foreign variables a process follows, by name only, and which it cannot."""
    if names := in_effect(variables, settings):
        log.info("foreign_variables_taken", variables=names)
    for name, reason in without_effect(variables).items():
        log.warning("foreign_variable_has_no_effect", variable=name, reason=reason)
