"""What has a client of Anthropic's messages received so far?

The events were written by us or by Anthropic. If any block or delta is not known to be text, or thinking before the text,
no other call can continue the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.dialects.shared.sent_events import dict_in, parse_events, text_in


@dataclass(slots=True)
class SentAnswer:
    """The part of an answer that was sent. ``next_index`` is the index of the open block; if none is open, of the next one."""

    text: str = ""
    is_plain: bool = True
    has_reasoning: bool = False
    has_started: bool = False
    next_index: int = 0
    has_open_text: bool = False
    stop_reason: str = ""
    is_stopped: bool = False


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    answer = SentAnswer()
    texts: list[str] = []
    for event in parse_events(blocks):
        _read(event or {}, answer, texts)
    answer.text = "".join(texts)
    answer.is_plain = answer.is_plain and (bool(answer.text) or not answer.has_reasoning)
    return answer


def _read(event: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    match event.get("type"):
        case "message_start":
            answer.has_started = True
        case "content_block_start":
            _read_start(dict_in(event, "content_block"), answer, texts)
        case "content_block_delta":
            _read_delta(dict_in(event, "delta"), answer, texts)
        case "content_block_stop":
            answer.next_index += 1
            answer.has_open_text = False
        case "message_delta":
            answer.stop_reason = text_in(dict_in(event, "delta"), "stop_reason") or answer.stop_reason
        case "message_stop":
            answer.is_stopped = True
            answer.stop_reason = answer.stop_reason or "end_turn"
        case "ping":
            pass
        case _:
            answer.is_plain = False


def _read_start(block: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    match block.get("type"):
        case "text" if not block.get("citations"):
            answer.has_open_text = True
            texts.append(text_in(block, "text"))
        case "thinking" | "redacted_thinking" if not any(texts):
            answer.has_reasoning = True
        case _:
            answer.is_plain = False


def _read_delta(delta: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    match delta.get("type"):
        case "text_delta":
            texts.append(text_in(delta, "text"))
        case "thinking_delta" | "signature_delta":
            pass
        case _:
            answer.is_plain = False
