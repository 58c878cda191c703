"""How is a list told in pages?

As OpenAI tells its own: ``limit`` and ``after`` in the query, and an answer that says whether there is more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.routes.openapi import Schema, query
from api.server.numbers import query_number
from common.dialects.shared.reading import invalid

PAGE_FIELDS = ("object", "data", "first_id", "last_id", "has_more")
PAGE_MAX, PAGE_DEFAULT = 100, 20  # OpenAI's.


def limit_parameter(description: str = "How many.", most: int = PAGE_MAX, **more: Any) -> Schema:
    return query("limit", description, type="integer", minimum=1, maximum=most, **more)


def after_parameter(**more: Any) -> Schema:
    return query("after", "The last id of the page before.", **more)


def limit_in(sent: Mapping[str, str], most: int = PAGE_MAX, absent: int = PAGE_DEFAULT, code: str | None = None) -> int:
    """Return how many a query asks for.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    return query_number(sent, "limit", 1, most, absent, code)


def after_in(sent: Mapping[str, str], may_be: Callable[[str], object], of: str) -> str | None:
    """Return the id that a query wants the list to go on after; None: from the beginning.

    Raises:
        GatewayError: INVALID_REQUEST, it is none that there ``may_be``; ``of`` says whose id is wanted.
    """
    after = sent.get("after")
    if after is not None and not may_be(after):
        raise invalid("after", f"must be the id of {of}")
    return after


def page_of(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page of what was found, which may be longer: then there is more."""
    data = list(found[:limit])
    first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": len(found) > len(data)}
