"""What did a generation answer, for the audit log?

The client's bytes are read back: by the wire's own decoder where the dialect is also a wire, so that tool calls, thinking
and all choices are there; else the text alone.
"""

from collections.abc import Sequence
from typing import Any

from common.canonical.events import Choice, RefusalBlock, TextBlock, ThinkingBlock, fold
from common.channel.base import Frame, FrameKind
from common.channel.said_text import said_in_stream, said_in_whole
from common.sse import split_blocks
from workers.providers import WIRES
from workers.providers.base import FamilyWire


def read_answer(dialect: str, frames: Sequence[Frame], *, is_stream: bool) -> list[list[dict[str, Any]]]:
    """Return a list of parts for each choice; a part is ``{"text"}``, ``{"thinking"}``, ``{"refusal"}`` or a tool call."""
    data = _client_bytes(frames, is_stream=is_stream)
    wire = WIRES.get(dialect)
    if not isinstance(wire, FamilyWire):
        text = said_in_stream(dialect, data) if is_stream else said_in_whole(dialect, data)
        return [[{"text": text}]] if text else []
    decoder = wire.decoder()
    if is_stream:
        events = [event for block in split_blocks(data) for event in decoder.decode(block)]
    else:
        events = decoder.decode_whole(data)
    return [_parts(choice) for _, choice in sorted(fold(events).choices.items())]


def _client_bytes(frames: Sequence[Frame], *, is_stream: bool) -> bytes:
    begins = [index for index, frame in enumerate(frames) if frame.kind is FrameKind.HEAD]
    # Each claim begins a body anew; a stream goes on.
    start = 0 if is_stream or not begins else begins[-1]
    return b"".join([frame.data for frame in frames[start:] if frame.kind is FrameKind.DATA])


def _parts(choice: Choice) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for block in choice.blocks:
        match block:
            case TextBlock():
                parts.append({"text": block.text})
            case RefusalBlock():
                parts.append({"refusal": block.text})
            case ThinkingBlock():
                parts.append({"thinking": block.text or "[encrypted]"})
            case _:
                parts.append({"tool": block.name, "arguments": block.arguments})
    return parts
