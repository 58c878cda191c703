"""What did an answer take that broke off before its provider told?

Read from the log: what the upstream reported before it was lost, and for the rest an estimate (``common/token_estimate.py``)
of what the client was sent and of what was asked. Pure; whoever uses it marks the figures as estimated.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import orjson

from common.channel.base import Frame, FrameKind
from common.dialects import DIALECTS
from common.errors import GatewayError
from common.events import (
    Event,
    RedactedThinking,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    summed,
)
from common.job import Job
from common.said import said_in_stream, said_in_whole
from common.sse import split_blocks
from common.token_estimate import estimate_text_tokens, estimate_tokens, tokens_in_bytes
from workers.providers import WIRES
from workers.providers.base import FamilyWire


def completed(told: Usage | None, estimated: Usage) -> Usage:
    """Return what was told, and where that does not go far enough the estimate: some tell at an answer's begin, or never."""
    if told is None:
        return estimated
    usage = copy(told)
    usage.input_tokens = told.input_tokens or estimated.input_tokens
    usage.output_tokens = max(told.output_tokens, estimated.output_tokens)
    return usage


class Partial(NamedTuple):
    """``head`` is the data of the last head frame: who answered, at which try."""

    head: dict[str, Any]
    usage: Usage


def read_partial(dialect: str, frames: Sequence[Frame], request: bytes | None, *, is_stream: bool) -> Partial | None:
    """Return what a log tells of an answer that broke off; None where none had begun.

    ``request`` is the packed job. Without it what was asked counts for nothing, and the figure is too low.
    """
    begins = [index for index, frame in enumerate(frames) if frame.kind is FrameKind.HEAD]
    if not begins:
        return None
    if not is_stream:
        begins = begins[-1:]  # Each claim begins a body anew, and nobody has seen those before.
    head = orjson.loads(frames[begins[-1]].data)
    before, data = _data(frames[: begins[-1]]) if is_stream else b"", _data(frames[begins[-1] :])
    reported, output_tokens = _told(dialect, data, is_stream=is_stream)
    # Behind what other tries have said, a dialect's own figures are those of all tries together; see ``workers.pumps``.
    usage = copy(reported) if reported and not head.get("spent") else Usage()
    said_before = estimate_text_tokens(said_in_stream(dialect, before)) if before else 0
    usage.input_tokens = usage.input_tokens or _asked_tokens(dialect, request) + said_before
    usage.output_tokens = max(usage.output_tokens, output_tokens)
    return Partial(head, summed(_usage(head.get("spent")), usage) or usage)


def _data(frames: Sequence[Frame]) -> bytes:
    return b"".join([frame.data for frame in frames if frame.kind is FrameKind.DATA])


def _told(dialect: str, data: bytes, *, is_stream: bool) -> tuple[Usage | None, int]:
    """Return what the client's bytes tell of the usage, and about how many tokens they have."""
    wire = WIRES.get(dialect)
    if not isinstance(wire, FamilyWire):
        text = said_in_stream(dialect, data) if is_stream else said_in_whole(dialect, data)
        return None, estimate_text_tokens(text)
    decoder = wire.decoder()
    if is_stream:
        events = [event for block in split_blocks(data) for event in decoder.decode(block)]
    else:
        events = decoder.decode_whole(data)
    return decoder.usage, tokens_in_bytes(sum(map(_output_bytes, events)))


def _output_bytes(event: Event) -> int:
    match event:
        case TextDelta() | RefusalDelta() | ThinkingDelta():
            return len(event.text.encode(errors="replace"))
        case RedactedThinking():
            return len(event.data)
        case ToolCallStarted():
            return len(event.name.encode(errors="replace"))
        case ToolCallDelta():
            return len(event.arguments.encode(errors="replace"))
    return 0


def _asked_tokens(dialect: str, request: bytes | None) -> int:
    try:
        return estimate_tokens(DIALECTS[dialect].parse(orjson.loads(Job.unpack(request).body))) if request else 0
    except (ValueError, TypeError, GatewayError):
        return 0


def _usage(fields: dict[str, int] | None) -> Usage | None:
    return Usage(**fields) if fields else None
