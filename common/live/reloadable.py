"""Which settings may change while a process runs, what differs between two configurations, and which name does one have?

A component that uses one of these settings is built anew at a reload, or reads the setting anew for each request. All other
settings need a restart: sockets, connections, stores and timers were made with them.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr

from common.config.groups.models import ModelSettings
from common.config.settings import Settings
from common.process.redaction import secrets_in

RELOADABLE = frozenset(
    {
        *ModelSettings.model_fields,
        *("api_keys", "limits", "tenants", "budget_unknown_price"),
        *("guardrails", "guardrails_by_model", "guardrail_patterns_in", "guardrail_patterns_out"),
        *("guardrail_input_chars_max", "guardrail_messages_max"),
        *("attempts_per_deployment", "retry_backoff_s", "health_probes_per_hour"),
        *("cache_ttl_s", "cache_policy", "cache_scope", "cache_anonymous", "cache_models", "cache_dialects", "cache_join"),
    }
)
REVISION_BYTES, DIGEST_BYTES = 6, 4


class Difference(NamedTuple):
    """Names of settings, sorted. ``changed``: a reload applies them. ``needs_restart``: it leaves them as they are."""

    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


def find_difference(old: Settings, new: Settings) -> Difference:
    differing = sorted(name for name in Settings.model_fields if getattr(old, name) != getattr(new, name))
    return Difference(
        tuple(name for name in differing if name in RELOADABLE), tuple(name for name in differing if name not in RELOADABLE)
    )


def with_kept_settings(new: Settings, old: Settings) -> Settings:
    """Return the new settings, with the old values of those that need a restart."""
    return new.model_copy(update={name: getattr(old, name) for name in Settings.model_fields if name not in RELOADABLE})


def revision_of(settings: Settings) -> str:
    """Return a short name of the reloadable values: the same in all processes that have the same values.

    It is a keyed hash if there is a ``SLUICE_SECRET``, so nobody can try keys on it.
    """
    values = [(name, _plain(getattr(settings, name))) for name in sorted(RELOADABLE)]
    return _digest(values, settings.secret, REVISION_BYTES)


def digests_of(settings: Settings) -> dict[str, str]:
    """Return a short digest of each setting, by which others see what differs. Without ``SLUICE_SECRET`` none of secrets."""
    return {
        name: _digest(_plain(value), settings.secret, DIGEST_BYTES)
        for name, value in ((name, getattr(settings, name)) for name in Settings.model_fields)
        if settings.secret or not any(secrets_in(value))
    }


def _digest(value: Any, secret: SecretStr | None, size: int) -> str:
    key = hashlib.sha256(b"sluice configuration " + secret.get_secret_value().encode()).digest() if secret else b""
    return hashlib.blake2b(repr(value).encode(), key=key, digest_size=size).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as plain data whose ``repr`` is the same in every process. The order of dicts counts: rules have one."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():
            return list(_plain_items({name: getattr(value, name) for name in type(value).model_fields}))
        case Mapping():
            return list(_plain_items(value))
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return sorted(repr(_plain(item)) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return list(_plain_items({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}))
    return value


def _plain_items(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return ((str(name), _plain(value)) for name, value in values.items())
