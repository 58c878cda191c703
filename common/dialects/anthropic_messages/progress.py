"""What has a client of Anthropic's messages been told so far?

Events of ours, or Anthropic's own: blocks and deltas that are not known to be text, or thinking in front of it, make an
answer one that no other call can go on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.dialects.shared.sent_events import dict_in, parse_events, text_in


@dataclass(slots=True)
class SentAnswer:
    """``next_index`` is that of the open block, or, where none is open, of the next one."""

    text: str = ""
    is_plain: bool = True
    has_thought: bool = False
    has_started: bool = False
    next_index: int = 0
    has_open_text: bool = False
    stop_reason: str = ""
    is_stopped: bool = False


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    said = SentAnswer()
    texts: list[str] = []
    for event in parse_events(blocks):
        _read(event or {}, said, texts)
    said.text = "".join(texts)
    said.is_plain = said.is_plain and (bool(said.text) or not said.has_thought)
    return said


def _read(event: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    match event.get("type"):
        case "message_start":
            said.has_started = True
        case "content_block_start":
            _read_start(dict_in(event, "content_block"), said, texts)
        case "content_block_delta":
            _read_delta(dict_in(event, "delta"), said, texts)
        case "content_block_stop":
            said.next_index += 1
            said.has_open_text = False
        case "message_delta":
            said.stop_reason = text_in(dict_in(event, "delta"), "stop_reason") or said.stop_reason
        case "message_stop":
            said.is_stopped = True
            said.stop_reason = said.stop_reason or "end_turn"
        case "ping":
            pass
        case _:
            said.is_plain = False


def _read_start(block: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    match block.get("type"):
        case "text" if not block.get("citations"):
            said.has_open_text = True
            texts.append(text_in(block, "text"))
        case "thinking" | "redacted_thinking" if not any(texts):
            said.has_thought = True
        case _:
            said.is_plain = False


def _read_delta(delta: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    match delta.get("type"):
        case "text_delta":
            texts.append(text_in(delta, "text"))
        case "thinking_delta" | "signature_delta":
            pass
        case _:
            said.is_plain = False
