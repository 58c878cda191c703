"""What has a client of OpenAI's chat completions been told so far?

Chunks of ours, or of any vendor of the family: fields that are not known to be harmless make an answer one that no other
call can go on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.dialects.shared.openai_words import REASONING_FIELDS
from common.dialects.shared.sent_events import is_done, parse_events, text_in

_HEAD_FIELDS = ("id", "created", "model", "system_fingerprint")
# SentAnswer of the whole answer beside its text, so a continuation of the text could not be told from it.
_BESIDE_TEXT = ("citations", "search_results", "images", "error")


@dataclass(slots=True)
class SentAnswer:
    """``head`` has the fields that every chunk repeats."""

    head: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    is_plain: bool = True
    has_thought: bool = False
    finish_reason: str = ""
    has_usage: bool = False
    is_done: bool = False


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    said = SentAnswer()
    texts: list[str] = []
    for chunk in parse_events(blocks):
        if chunk is not None:
            _read_chunk(chunk, said, texts)
    said.is_done = bool(blocks) and is_done(blocks[-1])
    said.text = "".join(texts)
    said.is_plain = said.is_plain and (bool(said.text) or not said.has_thought)
    return said


def _read_chunk(chunk: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    if not said.head and chunk.get("id"):  # Azure's first chunk names nothing.
        said.head = {name: chunk[name] for name in _HEAD_FIELDS if name in chunk}
    choices = chunk.get("choices")
    if not isinstance(choices, list) or any(chunk.get(name) for name in _BESIDE_TEXT):
        said.is_plain = False
        return
    for choice in choices:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict) or choice.get("index", 0) != 0 or choice.get("logprobs"):
            said.is_plain = False
            continue
        thinks = any(delta.get(name) for name in REASONING_FIELDS)
        said.has_thought = said.has_thought or thinks
        others = delta.keys() - {"role", "content", *REASONING_FIELDS}
        # Thinking belongs in front of the text. Content that is no text: a list of parts, or a document.
        is_text = isinstance(delta.get("content"), str | None)
        if (thinks and texts) or not is_text or any(delta[name] for name in others):
            said.is_plain = False
        if text_in(delta, "content"):
            texts.append(delta["content"])
        said.finish_reason = text_in(choice, "finish_reason") or said.finish_reason
    # With the finish reason, or in a chunk of its own behind it; some vendors count in every chunk.
    said.has_usage = said.has_usage or (bool(chunk.get("usage")) and bool(said.finish_reason))
