"""What text have a dialect's own bytes said so far?

For whoever looks at a generation without being its client: the log holds bytes in a dialect, passed through or encoded,
and this reads the answer's text out of them, that of the first choice. Thinking, refusals and tool calls are not text.
The bytes may be any provider's, so nothing in them is taken for granted.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import orjson

from common.sse import read_block, split_blocks


def said_in_stream(dialect: str, data: bytes) -> str:
    """Return the text in whole SSE events of a stream."""
    read, _ = _READERS[dialect]
    return "".join(_text(read(_object(read_block(block)[1]))) for block in split_blocks(data))


def said_in_whole(dialect: str, body: bytes) -> str:
    """Return the text of a whole answer; of one that is cut, nothing."""
    _, read = _READERS[dialect]
    return _text(read(_object(body)))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(content: object) -> str:
    """A string, or the text parts of a list (Mistral's models think so), or JSON that is not in a string (Cloudflare's)."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        with contextlib.suppress(orjson.JSONEncodeError):  # It reads deeper nesting than it writes.
            return orjson.dumps(content).decode()
    texts = [part.get("text") for part in _objects(content) if part.get("type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))


def _objects(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _child(parent: dict[str, Any], name: str) -> dict[str, Any]:
    child = parent.get(name)
    return child if isinstance(child, dict) else {}


def _chat(part: str) -> Callable[[dict[str, Any]], object]:
    def read(answer: dict[str, Any]) -> object:
        choices = _objects(answer.get("choices"))
        first = next((choice for choice in choices if choice.get("index", 0) == 0), {})
        return _child(first, part).get("content")

    return read


def _messages_event(event: dict[str, Any]) -> object:
    return _child(event, "delta").get("text") if event.get("type") == "content_block_delta" else None


def _responses_event(event: dict[str, Any]) -> object:
    return event.get("delta") if event.get("type") == "response.output_text.delta" else None


def _responses_whole(response: dict[str, Any]) -> object:
    return "".join(_text(item.get("content")) for item in _objects(response.get("output")) if item.get("type") == "message")


# By dialect: what reads an event of its stream, and what reads its whole answer.
_READERS: dict[str, tuple[Callable[[dict[str, Any]], object], Callable[[dict[str, Any]], object]]] = {
    "openai-chat": (_chat("delta"), _chat("message")),
    "openai-responses": (_responses_event, _responses_whole),
    "anthropic-messages": (_messages_event, lambda message: message.get("content")),
    "agentary": (lambda chunk: chunk.get("token"), lambda whole: whole.get("token")),
    "unified": (lambda chunk: chunk.get("content"), lambda whole: _child(whole, "message").get("content")),
}
