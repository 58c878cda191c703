"""What was a generation's answer, for the audit log?

The client's bytes are read back. If the dialect is also a wire, that wire's decoder reads tool calls, reasoning and all
choices. Otherwise only the text is read.
"""

from typing import Any

from common.canonical.reply import Choice, ImageBlock, ReasoningBlock, RefusalBlock, TextBlock, fold
from common.channel.transcript import Transcript
from common.sse import split_blocks
from workers.providers import WIRES
from workers.providers.base import FamilyWire


def read_answer(transcript: Transcript) -> list[list[dict[str, Any]]]:
    """Return a list of parts for each choice; a part is ``{"text"}``, ``{"thinking"}``, ``{"refusal"}`` or a tool call."""
    wire = WIRES.get(transcript.dialect)
    if not isinstance(wire, FamilyWire):
        text = transcript.text(transcript.attempts)
        return [[{"text": text}]] if text else []
    decoder = wire.decoder()
    data = b"".join(transcript.data())
    if transcript.is_stream:
        events = [event for block in split_blocks(data) for event in decoder.decode(block)]
    else:
        events = decoder.decode_whole(data)
    return [_parts(choice) for _, choice in sorted(fold(events).choices.items())]


def _parts(choice: Choice) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for block in choice.blocks:
        match block:
            case TextBlock():
                parts.append({"text": block.text})
            case RefusalBlock():
                parts.append({"refusal": block.text})
            case ReasoningBlock():
                parts.append({"thinking": block.text or "[encrypted]"})
            case ImageBlock():
                parts.append({"image": block.image.url or block.image.media_type})
            case _:
                parts.append({"tool": block.name, "arguments": block.arguments})
    return parts
