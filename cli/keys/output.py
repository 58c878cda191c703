"""How does a terminal show managed keys? As lines for people, or as JSON for scripts. The key itself only when it is made."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from common.access.key_records import KeyRecord

NEVER = "never"
_NOT_SERVED = (
    "! The database has the change, but Redis did not answer, so it has no effect yet. Run `sluice keys update {id}` when "
    "Redis is back, or wait: the workers send it to Redis too."
)


def to_dict(record: "KeyRecord") -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "state": _state(record),
        "expires_at": _time(record.expires_ms),
        "previous_good_until": _time(record.previous_until_ms),
        "created_at": _time(record.created_ms),
        "access": record.access.model_dump(mode="json", exclude_defaults=True),
    }


def show(record: "KeyRecord", as_json: bool) -> None:
    content = to_dict(record)
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    access = content.pop("access")
    for name, value in content.items():
        if value:
            click.echo(f"{name.replace('_', ' '):<20} {value}")
    for name, value in access.items():
        click.echo(f"{name:<20} {json.dumps(value)}")


def show_minted(minted: Any, as_json: bool, words: str) -> None:
    record, text = minted.record, minted.text.get_secret_value()
    if as_json:
        click.echo(json.dumps({**to_dict(record), "key": text, "served": minted.is_served}, indent=2))
    else:
        click.echo(words.format(id=record.id), err=True)
        click.echo(text)
    warn_unserved(record, is_served=minted.is_served)


def warn_unserved(record: "KeyRecord", *, is_served: bool) -> None:
    if not is_served:
        click.echo(_NOT_SERVED.format(id=record.id), err=True)
        sys.exit(1)


def row_of(record: "KeyRecord") -> tuple[str, ...]:
    return record.id, record.name[:40], record.tenant, _state(record), _time(record.expires_ms) or NEVER


def _state(record: "KeyRecord") -> str:
    if record.is_disabled:
        return "disabled"
    return "expired" if record.is_expired(time.time_ns() // 1_000_000) else "enabled"


def _time(moment_ms: int | None) -> str | None:
    return f"{datetime.fromtimestamp(moment_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if moment_ms is not None else None
