"""Which changes can be made to a provider or a route that is managed at run time?

Commands and the admin API make the same ones. Each function returns a change: a function from the present record, None where
there is none, to the one to store.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from common.live.stored_records import (
    KEYS_MAX,
    Kind,
    Record,
    StoredKey,
    is_in_settings,
    provider_values,
    rotated,
    route_values,
)
from common.process.redaction import shown_url
from common.vendors.table import VENDOR_IDS

Change = Callable[[Record | None], Record]

OVERLAP_S, OVERLAP_S_MAX = 600, 30 * 86_400  # Of a rotation: for so long the old key is called where the new one fails.
ROUTE_NAME_MAX = 200
NAME_SHOWN_MAX = 100  # Of a name that does not exist.


class NoSuchRecord(Exception):
    """There is no provider or route with this name that is managed at run time."""


class NotPossible(Exception):
    """The change cannot be made. The message says why."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """``key_id`` None: the only key that serves."""

    text: SecretStr
    key_id: str | None = None
    overlap_s: float = OVERLAP_S


def provider_id(name: str) -> str:
    """Return a provider's id for any of its names."""
    return VENDOR_IDS.get(name, name)


def check_route_name(name: str) -> str:
    """
    Raises:
        NotPossible
    """
    if not 0 < len(name) <= ROUTE_NAME_MAX or not name.isprintable() or name != name.strip():
        raise NotPossible(f"A route's name must be 1 to {ROUTE_NAME_MAX} printable characters, without blanks around it.")
    return name


def why_not_managed(kind: Kind, name: str, stronger: Mapping[str, Any]) -> str:
    """Return what ``NoSuchRecord`` means for this name. ``stronger``: what other sources say, see ``Inputs.read``."""
    text = f"There is no {kind} {name[:NAME_SHOWN_MAX]} that is managed at run time."
    where = " It is in the settings: change it there, in the environment or in a file."
    return text + (where if is_in_settings(kind, name, stronger) else "")


def add_provider(name: str, fields: Mapping[str, Any], keys: Sequence[SecretStr]) -> Change:
    """
    Raises:
        ValidationError
    """
    values, now_ms = provider_values(fields), _now_ms()

    def change(old: Record | None) -> Record:
        if old:
            raise NotPossible(f"The provider {name} exists already: rotate its key, or update or remove it.")
        stored = tuple(_key(text, now_ms) for text in keys)
        return Record(kind="provider", name=name, values=values, keys=stored, created_ms=now_ms, updated_ms=now_ms)

    return change


def update_provider(fields: Mapping[str, Any]) -> Change:
    """Change the fields that are given. None removes one.

    Raises:
        ValidationError
    """
    removed = {name for name, value in fields.items() if value is None}
    values = provider_values({name: value for name, value in fields.items() if value is not None})

    def change(old: Record | None) -> Record:
        kept = {name: value for name, value in _existing(old).values.items() if name not in removed}
        return _changed(old, values={**kept, **values})

    return change


def rotate_key(rotation: Rotation) -> Change:
    """Put a new key in the place of another."""
    now_ms = _now_ms()
    until_ms = now_ms + int(rotation.overlap_s * 1000) if rotation.overlap_s else None

    def change(old: Record | None) -> Record:
        record = _existing(old)
        serving = [key for key in record.keys if key.until_ms is None]
        id_ = rotation.key_id or (serving[0].id if len(serving) == 1 else None)
        new = _key(rotation.text, now_ms)
        if not serving:
            return _changed(old, keys=(new, *record.keys))
        if id_ is None:
            raise NotPossible(f"The provider {record.name} has {len(serving)} keys: say which one, by its id.")
        if id_ not in {key.id for key in serving}:
            raise NotPossible(f"The provider {record.name} has no such key. Its keys are listed with their ids.")
        kept = [key for key in record.keys if not key.is_over(now_ms)]
        if len(kept) >= KEYS_MAX:
            raise NotPossible(f"A provider can have at most {KEYS_MAX} keys, with those whose overlap is not over.")
        return _changed(old, keys=rotated(kept, new, id_, until_ms))

    return change


def put_route(name: str, fields: Mapping[str, Any], *, may_replace: bool) -> Change:
    """
    Raises:
        ValidationError, NotPossible
    """
    values, now_ms = route_values(fields), _now_ms()
    check_route_name(name)

    def change(old: Record | None) -> Record:
        if old and not may_replace:
            raise NotPossible(f"The route {name} exists already.")
        return (
            _changed(old, values=values)
            if old
            else Record(kind="route", name=name, values=values, created_ms=now_ms, updated_ms=now_ms)
        )

    return change


def disable(is_disabled: bool) -> Change:
    return lambda old: _changed(old, is_disabled=is_disabled)


def in_order(*changes: Change) -> Change:
    """Return one change that makes several."""

    def change(old: Record | None) -> Record:
        record = _existing(old)
        for each in changes:
            record = each(record)
        return record

    return change


def shown(record: Record, stronger: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a record as commands and the admin API show it: without any key. ``stronger``: what other sources say."""
    now_ms = _now_ms()
    keys = [
        {"id": key.id, "label": key.label, "added_at": key.added_ms // 1000, "until": key.until_ms and key.until_ms // 1000}
        for key in record.keys
        if not key.is_over(now_ms)
    ]
    return {
        "name": record.name,
        "object": record.kind,
        **({"keys": keys} if record.kind == "provider" else {}),
        "settings": _shown_values(record),
        "disabled": record.is_disabled,
        "overridden_by_settings": record.overridden(stronger or {}),
        "created_at": record.created_ms // 1000,
        "updated_at": record.updated_ms // 1000,
    }


def _shown_values(record: Record) -> dict[str, Any]:
    """Return a record's settings. An address that an earlier version stored may have a login, which is a secret."""
    address = record.values.get("base_url")
    return {**record.values, "base_url": shown_url(address)} if address else record.values


def _key(text: SecretStr, now_ms: int) -> StoredKey:
    return StoredKey(id=secrets.token_hex(4), text=text, added_ms=now_ms)


def _existing(old: Record | None) -> Record:
    if old is None:
        raise NoSuchRecord
    return old


def _changed(old: Record | None, **fields: Any) -> Record:
    return _existing(old).model_copy(update={**fields, "updated_ms": _now_ms()})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
