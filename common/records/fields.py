"""How are the fields of a stored JSON object read? Another version, or a broken one, may have written them."""

from collections.abc import Mapping
from typing import Any

import orjson

from common.canonical.events import Usage

FORMAT = 2

COUNT_MAX = 2**63 - 1  # The largest number that a column of the ledger holds.


def parse_object(packed: bytes) -> dict[str, Any]:
    stored = orjson.loads(packed)
    if not isinstance(stored, dict):
        raise ValueError("a head or an end must be a JSON object")  # noqa: TRY004 - One exception type for all unreadable data.
    return stored


def read_text(stored: Mapping[str, Any], name: str) -> str:
    value = stored.get(name)
    return "" if value is None else str(value)


def read_words(value: Any) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def read_usage(stored: Any) -> Usage | None:
    return Usage.from_dict(stored) if isinstance(stored, dict) else None


def read_count(value: Any) -> int | None:
    """Return a value as a whole number from 0 to ``COUNT_MAX``, or None if it is not a number. Providers report anything."""
    if type(value) is int and 0 <= value <= COUNT_MAX:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return int(min(max(value, 0), COUNT_MAX))
