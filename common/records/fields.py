"""How are the fields of a stored JSON object read, which another version, or a broken one, may have written?"""

from collections.abc import Mapping
from typing import Any

import orjson

from common.canonical.events import Usage

FORMAT = 2

COUNT_MAX = 2**63 - 1  # What a column of the ledger holds.


def object_in(packed: bytes) -> dict[str, Any]:
    told = orjson.loads(packed)
    if not isinstance(told, dict):
        raise ValueError("a head or an end is a JSON object")  # noqa: TRY004 - One kind of failure for whatever cannot be read.
    return told


def text_in(told: Mapping[str, Any], name: str) -> str:
    found = told.get(name)
    return "" if found is None else str(found)


def usage_in(told: Any) -> Usage | None:
    return Usage.from_dict(told) if isinstance(told, dict) else None


def count_of(found: Any) -> int | None:
    """Return a whole number that is not negative, as far as it goes into a column: providers report all kinds of things."""
    if type(found) is int and 0 <= found <= COUNT_MAX:
        return found
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        return None
    return int(min(max(found, 0), COUNT_MAX))
