"""How does a request that refers to a stored conversation become one that contains it?

The provider need not have stored anything, and may be another one than before. ``previous_response_id`` stands for the input
and output of a response. An ``item_reference`` stands for one item of an output.
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

STORED_WAIT_S = 2.0  # From an answer's last event until it is stored. A client may refer to it at once.
STORED_CHECK_S = 0.02
REFERENCES_MAX = 256  # To this many responses may one request refer. Each step of an agent's loop makes one.

Stored = TypeVar("Stored")


async def continued(principal: Principal, body: dict[str, Any], services: ApiServices) -> dict[str, Any]:
    """Return a body whose input is the whole conversation. Instructions are not carried over.

    Raises:
        GatewayError: INVALID_REQUEST, it refers to something that is not stored.
        StoreUnavailable: the store did not answer.
    """
    body = await _dereferenced(principal, body, services)
    previous_id, new = body.get("previous_response_id"), body.get("input")
    if not isinstance(previous_id, str) or not isinstance(new, str | list | None):
        return body  # There is nothing to continue, or an error that parsing reports.
    stored = await _ended(previous_id, principal, services)
    if stored is None or stored.response is None:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"Previous response with id '{previous_id[:100]}' not found: it is unknown, did not complete, was not stored, "
            "or has expired. Send the whole conversation as input.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    output = stored.response.get("output")
    items = items_of(stored.body.get("input")) + (output if isinstance(output, list) else []) + items_of(new)
    return {**body, "input": items}


def items_of(value: object) -> list[Any]:
    """Return an input as the list of items that it stands for."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}] if value else []
    return value if isinstance(value, list) else []


async def _dereferenced(principal: Principal, body: dict[str, Any], services: ApiServices) -> dict[str, Any]:
    """Return a body in which each item reference is replaced by its item. References to a provider's own items stay."""
    references = body.get("input")
    if not isinstance(references, list):
        return body
    made_by = {id_: made for item in references if (id_ := _reference(item)) and (made := generation_of_item(id_))}
    if not made_by:
        return body
    generation_ids = sorted(set(made_by.values()))
    if len(generation_ids) > REFERENCES_MAX:
        raise invalid("input", f"must refer to items of at most {REFERENCES_MAX} responses")

    async def load() -> tuple[dict[str, list[Any] | None], bool]:
        outputs = await services.responses.outputs(generation_ids, principal.id)
        return outputs, None not in outputs.values()

    outputs = await _settled(load, services)
    items = [item for output in outputs.values() for item in output or []]
    stored = {item["id"]: item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)}
    if missing := next((id_ for id_ in made_by if id_ not in stored), None):
        raise invalid("input", f"refers to the item {missing!r}, which was not stored, has expired or was deleted")
    return {**body, "input": [stored.get(_reference(item) or "", item) for item in references]}


def _reference(item: object) -> str | None:
    """Return the id that an item refers to; None for an item with content of its own."""
    if not isinstance(item, dict) or item_type(item) != "item_reference":
        return None
    return item["id"] if isinstance(item.get("id"), str) else None


async def _ended(id_: str, principal: Principal, services: ApiServices) -> StoredResponse | None:
    async def load() -> tuple[StoredResponse | None, bool]:
        stored = await services.responses.load(parse_response_id(id_), principal.id)
        return stored, stored is None or stored.response is not None or stored.failed is not None

    return await _settled(load, services)


async def _settled(load: Callable[[], Awaitable[tuple[Stored, bool]]], services: ApiServices) -> Stored:
    """Return what is stored once it has ended. Its client may have seen the last event a moment before it was stored."""
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + STORED_WAIT_S
    while True:
        stored, is_settled = await load()
        if is_settled or loop.time() > give_up_at:
            return stored
        await asyncio.sleep(STORED_CHECK_S)
