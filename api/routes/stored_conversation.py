"""How does a request that only refers to a stored conversation become one that brings it whole?

So the provider need not have stored anything, and may be another one than before. ``previous_response_id`` stands for a
response's input and output, an ``item_reference`` for one item of an output.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from api.server.store_errors import redis_away
from api.services import ApiServices
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.dialects.openai_responses.ids import parse_response_id
from common.dialects.openai_responses.request import item_type
from common.dialects.openai_responses.response_object import generation_of_item
from common.dialects.shared.reading import invalid
from common.responses import StoredResponse

STORED_WAIT_S = 2.0  # From an answer's last event until it is stored: a client may go on with it at once.
STORED_LOOK_S = 0.02
REFERENCES_MAX = 256  # Responses whose items one request refers to: a step of an agent's loop makes one.

Found = TypeVar("Found")


async def continued(principal: Principal, body: dict[str, Any], services: ApiServices) -> dict[str, Any]:
    """Return a body whose input is the whole conversation; instructions are not carried over.

    Raises:
        GatewayError: INVALID_REQUEST, what it refers to is not there.
        StoreUnavailable: the store did not answer.
    """
    body = await _dereferenced(principal, body, services)
    previous_id, new = body.get("previous_response_id"), body.get("input")
    if not isinstance(previous_id, str) or not isinstance(new, str | list | None):
        return body  # Nothing to continue, or a fault that parsing finds.
    stored = await _ended(previous_id, principal, services)
    if stored is None or stored.response is None:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"Previous response with id '{previous_id[:100]}' not found: it is unknown, did not complete, was not stored, "
            "or has expired. Send the whole conversation as input.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    said = stored.response.get("output")
    items = items_of(stored.body.get("input")) + (said if isinstance(said, list) else []) + items_of(new)
    return {**body, "input": items}


def items_of(given: object) -> list[Any]:
    """Return an input as the list of items that it stands for."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}] if given else []
    return given if isinstance(given, list) else []


async def _dereferenced(principal: Principal, body: dict[str, Any], services: ApiServices) -> dict[str, Any]:
    """Return a body with the items that it only refers to; those that a provider made are left to the provider."""
    given = body.get("input")
    if not isinstance(given, list):
        return body
    made_by = {id_: made for item in given if (id_ := _reference(item)) and (made := generation_of_item(id_))}
    if not made_by:
        return body
    generation_ids = sorted(set(made_by.values()))
    if len(generation_ids) > REFERENCES_MAX:
        raise invalid("input", f"must refer to items of at most {REFERENCES_MAX} responses")

    async def look() -> tuple[dict[str, list[Any] | None], bool]:
        outputs = await services.responses.outputs(generation_ids, principal.id)
        return outputs, None not in outputs.values()

    outputs = await _settled(look, services)
    items = [item for output in outputs.values() for item in output or []]
    stored = {item["id"]: item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)}
    if missing := next((id_ for id_ in made_by if id_ not in stored), None):
        raise invalid("input", f"refers to the item {missing!r}, which was not stored, has expired or was deleted")
    return {**body, "input": [stored.get(_reference(item) or "", item) for item in given]}


def _reference(item: object) -> str | None:
    """Return the id that an item refers to, None for an item that says something itself."""
    if not isinstance(item, dict) or item_type(item) != "item_reference":
        return None
    return item["id"] if isinstance(item.get("id"), str) else None


async def _ended(id_: str, principal: Principal, services: ApiServices) -> StoredResponse | None:
    async def look() -> tuple[StoredResponse | None, bool]:
        stored = await services.responses.load(parse_response_id(id_), principal.id)
        return stored, stored is None or stored.response is not None or stored.failed is not None

    return await _settled(look, services)


async def _settled(look: Callable[[], Awaitable[tuple[Found, bool]]], services: ApiServices) -> Found:
    """Return what is stored once it has ended; its client may have seen its last event a moment before it was stored."""
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + STORED_WAIT_S
    while True:
        found, is_settled = await look()
        if is_settled or loop.time() > give_up_at:
            return found
        await asyncio.sleep(STORED_LOOK_S)
