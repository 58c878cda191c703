"""Is this request a retry, and of which generation?

A client that did not get its whole answer may send the request again with the same ``idempotency-key``. It then gets the same
generation, from its start. If two such requests come at once, the enqueue script decides which one runs. Whether a key still
counts depends on the log of its generation. Nothing has to free a key, so a process that dies cannot forget to.
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
from common.queue.jobs import Enqueued, IdempotencyKey

IMPLIED_GRACE_S = 60.0  # The grace that a key implies: its client has this long to come back.
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


def parse_idempotency_key(headers: Headers, principal: Principal, body: Mapping[str, Any], *kind: str) -> IdempotencyKey | None:
    """Return the key with which a request runs only once; None if it sends none. ``kind`` counts like a part of its body.

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
    # Sorted: a client that builds its body again may order the fields differently.
    content = orjson.dumps([*kind, body], option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(f"{principal.id}:{hashlib.sha256(key.encode()).hexdigest()}", hashlib.sha256(content).hexdigest())


async def enqueue_once(
    generation_id: str,
    owner: str,
    idempotency_key: IdempotencyKey,
    enqueue: Callable[[IdempotencyKey], Awaitable[Enqueued]],
    channel: Channel,
) -> Enqueued:
    """Enqueue a generation, unless its request came before. Then the generation of that request answers it.

    Raises:
        GatewayError: the same errors as ``JobQueue.enqueue``.
    """
    enqueued = await enqueue(idempotency_key)
    if enqueued.id != generation_id and await _is_spent(enqueued.id, owner, channel):
        # A second time is enough: if another request was faster, its generation has only just begun.
        enqueued = await enqueue(replace(idempotency_key, ignored_id=enqueued.id))
    return enqueued


async def _is_spent(generation_id: str, owner: str, channel: Channel) -> bool:
    """Whether a retry runs again: nothing was answered, the client did not stay to the end, or the store lost the log."""
    (state,) = await channel.describe([generation_id], owner)
    if isinstance(state, GatewayError):
        return state.failed.kind is ErrorKind.NOT_FOUND
    failed = state.end.failed if state.end else None
    if failed is None:
        return False
    return not state.head or (failed.kind is ErrorKind.CANCELLED and state.has_left)
