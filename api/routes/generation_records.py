"""What is known of a generation, for whoever asks about it rather than for its answer?

The record is read from the channel: the state, the head, and the end, in which the worker tells what it took. So it is
there for as long as the log is.
"""

from typing import Any

import orjson

from common.canonical.errors import ErrorKind
from common.channel.base import START, Channel, FrameKind, State, failed_in
from common.channel.said_text import said_in_stream, said_in_whole

LOG_BATCH = 200  # Frames per read of a log.


def status_of(state: State) -> str:
    """
    Returns:
        ``queued``, ``running``, ``completed``, ``failed`` or ``cancelled``.
    """
    if not state.has_ended:
        return "queued" if state.last == START else "running"
    failed = failed_in(state.end)
    if failed is None:
        return "completed"
    return "cancelled" if failed.kind is ErrorKind.CANCELLED else "failed"


def short_record(generation_id: str, state: State) -> dict[str, Any]:
    return {
        "id": generation_id,
        "object": "generation",
        "status": status_of(state),
        "dialect": state.dialect,
        "model": state.model,
        "created_at": state.created_s,
        "url": url_of(generation_id),
    }


def record(generation_id: str, state: State) -> dict[str, Any]:
    """Return all there is but the text. Money is text in US dollars, null where a price is not known."""
    told = {**_fields(state.head), **_fields(state.end)}
    failed = failed_in(state.end)
    return {
        **short_record(generation_id, state),
        "class": state.job_class,
        "stream": state.stream,
        "provider": told.get("provider"),
        "tries": told.get("tries", 0),
        "takeovers": max(0, state.claims - 1),
        "usage": told.get("usage"),
        **({"estimated": True} if told.get("estimated") else {}),
        "cost": told.get("cost"),
        "timings": {name: told.get(name) for name in ("queue_wait_ms", "ttft_ms", "duration_ms")},
        "finish_reason": told.get("finish_reason"),
        "error": {"kind": failed.kind, "message": failed.message, "code": failed.code} if failed else None,
    }


async def said_so_far(generation_id: str, state: State, channel: Channel) -> str:
    """Return the answer's text as far as its log goes. Of a JSON body there is none until it is whole."""
    position, said, body = START, [], b""
    while frames := await channel.read(generation_id, position, LOG_BATCH):
        for frame in frames:
            if frame.kind is FrameKind.FENCE:
                body = b""  # A body is begun anew by each claim; a stream goes on.
            elif frame.kind is FrameKind.DATA and state.stream:
                said.append(said_in_stream(state.dialect, frame.data))
            elif frame.kind is FrameKind.DATA:
                body += frame.data
        position = frames[-1].id
    return "".join(said) if state.stream else said_in_whole(state.dialect, body)


def url_of(generation_id: str) -> str:
    return f"/v1/generations/{generation_id}"


def _fields(frame: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(frame) if frame else {}
    return found
