"""What is stored about a provider or a route that is managed at run time, and what does it say to the settings?

A record is stored encrypted as a whole, with ``SLUICE_SECRET`` and its own name: it can neither be read nor changed without the
secret, nor put in another one's place. So nobody who can only write to Redis or to the database can send a provider's key to
another address.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from common.access.sealing import seal, unseal
from common.config.groups.models import ProviderSettings
from common.config.route_rules import Route
from common.live.live_settings import StoredEntry
from common.vendors.table import VENDOR_IDS

FORMAT = 1  # Of a record, and of the document in Redis.
KEYS_MAX, ENTRIES_MAX, SEALED_BYTES_MAX = 50, 500, 128 * 1024
LABEL_CHARS, LABELLED_CHARS_MIN = 4, 12  # A shorter key is not shown in part.
_PURPOSE = b"stored configuration"

Kind = Literal["provider", "route"]


class StoredKey(BaseModel):
    """A provider's key. ``until_ms``: a rotation has replaced it, and it serves only until then."""

    model_config = ConfigDict(frozen=True)

    id: str
    text: SecretStr
    added_ms: int
    until_ms: int | None = None

    @field_serializer("text", when_used="json")
    def _clear(self, text: SecretStr) -> str:
        return text.get_secret_value()  # Only for ``Record.seal``.

    @property
    def label(self) -> str:
        """The key's last characters, by which its owner recognizes it."""
        text = self.text.get_secret_value()
        return f"…{text[-LABEL_CHARS:]}" if len(text) >= LABELLED_CHARS_MIN else "…"

    def is_over(self, now_ms: int) -> bool:
        return self.until_ms is not None and now_ms >= self.until_ms


class Record(BaseModel):
    """``values``: of a provider, its settings without the keys; of a route, its settings. Times are UTC in ms since 1970."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    name: str
    values: dict[str, Any]
    keys: tuple[StoredKey, ...] = Field((), max_length=KEYS_MAX)  # Those that serve first come first.
    is_disabled: bool = False
    created_ms: int
    updated_ms: int

    def seal(self, secret: SecretStr) -> bytes:
        return seal(self.model_dump_json().encode(), f"{self.kind} {self.name}", secret, _PURPOSE)

    def entry(self, now_ms: int) -> StoredEntry | None:
        """Return what the record says to the settings; None: nothing, because it is disabled."""
        if self.is_disabled:
            return None
        if self.kind == "route":
            return StoredEntry(f"route {self.name}", {"routes": {self.name: self.values}})
        keys = [key.text.get_secret_value() for key in self.keys if not key.is_over(now_ms)]
        provider = {**self.values, **({"api_keys": keys} if keys else {})}
        return StoredEntry(f"provider {self.name}", {"providers": {self.name: provider}})

    def overridden(self, stronger: Mapping[str, Any]) -> list[str]:
        """Return the fields that other sources set too: those win. ``stronger``: what they say, see ``Inputs.read``."""
        if self.kind == "route":
            return ["all of it"] if is_in_settings("route", self.name, stronger) else []
        providers = stronger.get("providers")
        chosen = [
            set_fields
            for name, set_fields in (providers.items() if isinstance(providers, dict) else ())
            if VENDOR_IDS.get(name, name) == self.name and isinstance(set_fields, dict)
        ]
        own = [*self.values, *(["api_keys"] if self.keys else [])]
        return [field for field in own if any(field in set_fields for set_fields in chosen)]


class SealedRecord(NamedTuple):
    """A record as stores have it."""

    kind: str
    name: str
    format: int
    sealed: bytes

    def open(self, secrets: Iterable[SecretStr]) -> Record | None:
        """Return the record; None: none of the secrets decrypts it, or another version of Sluice wrote it."""
        if self.format > FORMAT or (clear := unseal(self.sealed, f"{self.kind} {self.name}", secrets, _PURPOSE)) is None:
            return None
        try:
            record = Record.model_validate_json(clear)
        except ValidationError:
            return None
        return record if (record.kind, record.name) == (self.kind, self.name) else None

    def why_unreadable(self, secrets: Sequence[SecretStr]) -> str:
        """Return why ``open`` returned nothing, for operators."""
        if self.format > FORMAT:
            reason = "a later version of Sluice wrote it"
        elif not secrets:
            reason = "this process has no SLUICE_SECRET, and it is encrypted with one"
        else:
            reason = (
                "this process has another SLUICE_SECRET than the one that encrypted it (see docs/security.md on changing it)"
            )
        return f"The {self.kind} {self.name} that is managed at run time cannot be read: {reason}."


def provider_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provider's settings as they are stored: what is set, without the keys.

    Raises:
        ValidationError
    """
    return ProviderSettings.model_validate(fields).model_dump(mode="json", exclude_unset=True, exclude={"api_keys"})


def route_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Raises:
        ValidationError
    """
    return Route.model_validate(fields).model_dump(mode="json", exclude_unset=True)


def rotated(keys: Sequence[StoredKey], new: StoredKey, id_: str, until_ms: int | None) -> tuple[StoredKey, ...]:
    """Return keys with a new one in the place of another. That one comes last until ``until_ms``; None: it is gone at once."""
    rotated_keys: list[StoredKey] = []
    replaced: list[StoredKey] = []
    for key in keys:
        if key.id == id_:
            rotated_keys.append(new)
            replaced += [key.model_copy(update={"until_ms": until_ms})] if until_ms is not None else []
        else:
            rotated_keys.append(key)
    return (*rotated_keys, *replaced)


def is_in_settings(kind: Kind, name: str, stronger: Mapping[str, Any]) -> bool:
    """Whether other sources name this provider or route. ``stronger``: what they say, see ``Inputs.read``."""
    if kind == "route":
        return name in [*_names(stronger.get("routes")), *_names(stronger.get("aliases"))]
    return name in [VENDOR_IDS.get(each, each) for each in _names(stronger.get("providers"))]


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []
