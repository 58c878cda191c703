"""How is a list returned in pages?

As OpenAI does it: ``limit`` and ``after`` in the query, and a field of the answer that says whether there is more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.routes.openapi import Schema, query
from api.server.numbers import query_number
from common.dialects.shared.reading import invalid

PAGE_FIELDS = ("object", "data", "first_id", "last_id", "has_more")
PAGE_MAX, PAGE_DEFAULT = 100, 20  # OpenAI's.


def limit_parameter(description: str = "How many.", limit_max: int = PAGE_MAX, **more: Any) -> Schema:
    return query("limit", description, type="integer", minimum=1, maximum=limit_max, **more)


def after_parameter(**more: Any) -> Schema:
    return query("after", "The last id of the previous page.", **more)


def limit_in(params: Mapping[str, str], limit_max: int = PAGE_MAX, absent: int = PAGE_DEFAULT, code: str | None = None) -> int:
    """Return how many items a query asks for.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    return query_number(params, "limit", 1, limit_max, absent, code)


def after_in(params: Mapping[str, str], is_valid: Callable[[str], object], expected: str) -> str | None:
    """Return the id after which a query wants the list to continue; None: from the beginning.

    Raises:
        GatewayError: INVALID_REQUEST, the id is not ``is_valid``. ``expected`` says whose id it must be.
    """
    after = params.get("after")
    if after is not None and not is_valid(after):
        raise invalid("after", f"must be the id of {expected}")
    return after


def page_of(items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return the first ``limit`` items as a page. If there are more items, the page says so."""
    data = list(items[:limit])
    first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": len(items) > len(data)}
