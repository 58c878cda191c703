"""Are the texts of an answer that passes strings, as OpenAI's clients expect them?

Cloudflare sends a token that is JSON by itself as a number, and the answer of its JSON mode as an object. Mistral sends
thinking as a list of parts; it becomes ``reasoning_content``, where clients look for it.
"""

import re
from typing import Any

import orjson

from common.dialects.shared.openai_words import REASONING_FIELDS
from common.sse import encode_event, read_block
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of, written_text

# Within a string, quotes are escaped. The lists of log probabilities have no types.
_IS_NO_STRING = re.compile(rb'"(?:content|arguments)": ?(?:[^" \[n]|\[ ?\{ ?"type")')
_LISTED = {"text", "thinking"}


def with_texts(data: bytes) -> bytes:
    """Return a block of a stream, or a whole answer, with strings as its texts."""
    if not _IS_NO_STRING.search(data):
        return data
    is_block = not data.lstrip().startswith(b"{")
    try:
        answer = dict_of(read_json(read_block(data)[1] if is_block else data))
    except ValueError:
        return data
    for choice in map(dict_of, list_of(answer.get("choices"))):
        for message in (dict_of(choice.get("delta")), dict_of(choice.get("message"))):
            functions = [dict_of(dict_of(call).get("function")) for call in list_of(message.get("tool_calls"))]
            for fields, name in [(message, "content"), *((function, "arguments") for function in functions)]:
                if isinstance(fields.get(name), dict | int | float):
                    fields[name] = written_text(fields[name])
            _join_parts(message)
    return encode_event(orjson.dumps(answer)) if is_block else orjson.dumps(answer)


def thinking_of(part: dict[str, Any]) -> str:
    """Return the thinking in a part of Mistral's content."""
    thinking = part.get("thinking")
    return text_of(thinking) or "".join(text_of(dict_of(item).get("text")) for item in list_of(thinking))


def _join_parts(message: dict[str, Any]) -> None:
    parts = [dict_of(part) for part in list_of(message.get("content"))]
    if not parts or any(part.get("type") not in _LISTED for part in parts):
        return  # A list of something else has no other place.
    message["content"] = "".join(text_of(part.get("text")) for part in parts)
    if thinking := "".join(thinking_of(part) for part in parts):
        message[REASONING_FIELDS[0]] = thinking
