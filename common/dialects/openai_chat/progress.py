"""What has a client of OpenAI's chat completions received so far?

The chunks were written by us or by any vendor of the family. If a chunk has a field that is not known to be harmless, no
other call can continue the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.dialects.shared.openai_words import REASONING_FIELDS
from common.dialects.shared.sent_events import is_done, parse_events, text_in

_HEAD_FIELDS = ("id", "created", "model", "system_fingerprint")
# They describe the complete answer, so they would not match a text that another call continues.
_BESIDE_TEXT = ("citations", "search_results", "images", "error")


@dataclass(slots=True)
class SentAnswer:
    """The part of an answer that was sent. ``head`` has the fields that every chunk repeats."""

    head: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    is_plain: bool = True
    has_reasoning: bool = False
    finish_reason: str = ""
    has_usage: bool = False
    is_done: bool = False


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    answer = SentAnswer()
    texts: list[str] = []
    for chunk in parse_events(blocks):
        if chunk is not None:
            _read_chunk(chunk, answer, texts)
    answer.is_done = bool(blocks) and is_done(blocks[-1])
    answer.text = "".join(texts)
    answer.is_plain = answer.is_plain and (bool(answer.text) or not answer.has_reasoning)
    return answer


def _read_chunk(chunk: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    if not answer.head and chunk.get("id"):  # Azure's first chunk has an empty id.
        answer.head = {name: chunk[name] for name in _HEAD_FIELDS if name in chunk}
    choices = chunk.get("choices")
    if not isinstance(choices, list) or any(chunk.get(name) for name in _BESIDE_TEXT):
        answer.is_plain = False
        return
    for choice in choices:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or choice.get("index", 0) != 0 or choice.get("logprobs"):
            answer.is_plain = False
            continue
        is_reasoning = any(delta.get(name) for name in REASONING_FIELDS)
        answer.has_reasoning = answer.has_reasoning or is_reasoning
        unknown_names = delta.keys() - {"role", "content", *REASONING_FIELDS}
        # Reasoning is only allowed before the text. Content may also be a list of parts or a document, which is not plain text.
        is_text = isinstance(delta.get("content"), str | None)
        if (is_reasoning and texts) or not is_text or any(delta[name] for name in unknown_names):
            answer.is_plain = False
        if text_in(delta, "content"):
            texts.append(delta["content"])
        answer.finish_reason = text_in(choice, "finish_reason") or answer.finish_reason
    # Final usage comes with the finish reason or in a later chunk. Some vendors report counts in every chunk.
    answer.has_usage = answer.has_usage or (bool(chunk.get("usage")) and bool(answer.finish_reason))
