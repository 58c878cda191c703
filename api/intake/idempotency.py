"""Is this request a retry, and of which generation?

A client that did not hear the end of its answer sends the request again with the same ``idempotency-key``, and gets the
same generation, from its start. The enqueue script decides between two that come at once; the log of the generation that
holds the key is the judge of whether it still counts. Nothing has to free a key, so no dead process can forget to.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.datastructures import Headers

from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.channel.base import Channel
from common.queue.jobs import Enqueued, Once

IMPLIED_GRACE_S = 60.0  # What a key implies: a client that means to come back is given this long.
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


def once_of(headers: Headers, principal: Principal, body: Mapping[str, Any], *kind: str) -> Once | None:
    """Return what makes a request run only once; None where it brings no key. ``kind`` is what it says besides its body.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "idempotency-key must be 1 to 255 printable ASCII characters.",
            param="idempotency-key",
            code="invalid_header",
        )
    # Sorted: a client that builds its body anew may say the same in another order.
    asked = orjson.dumps([*kind, body], option=orjson.OPT_SORT_KEYS)
    return Once(f"{principal.id}:{hashlib.sha256(key.encode()).hexdigest()}", hashlib.sha256(asked).hexdigest())


async def enqueue_once(
    generation_id: str, owner: str, once: Once, enqueue: Callable[[Once], Awaitable[Enqueued]], channel: Channel
) -> Enqueued:
    """Enqueue a generation unless its request has come before: then another answers it.

    Raises:
        GatewayError: as for ``JobQueue.enqueue``.
    """
    found = await enqueue(once)
    if found.id != generation_id and await _is_spent(found.id, owner, channel):
        # One more time is enough: whoever was faster than we are has only just begun.
        found = await enqueue(replace(once, spent=found.id))
    return found


async def _is_spent(generation_id: str, owner: str, channel: Channel) -> bool:
    """Whether a retry runs anew: nothing was said, nobody was there to the end, or the log was lost with the store."""
    (state,) = await channel.describe([generation_id], owner)
    if isinstance(state, GatewayError):
        return state.failed.kind is ErrorKind.NOT_FOUND
    failed = state.end.failed if state.end else None
    if failed is None:
        return False
    return not state.head or (failed.kind is ErrorKind.CANCELLED and state.has_left)
