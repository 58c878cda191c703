"""What is the text of an answer in a dialect's bytes?

For readers of a generation that are not its client: the log holds bytes in a dialect, passed through or encoded. This module
extracts the answer's text, that of the first choice. Reasoning, refusals and tool calls are not text. The bytes may come
from any provider, so nothing about them is assumed.
"""

import contextlib
from typing import Any

import orjson

from common.dialects import DIALECTS
from common.dialects.shared.sent_events import objects_in
from common.sse import read_block, split_blocks


def text_in_stream(dialect: str, data: bytes) -> str:
    """Return the text in whole SSE events of a stream."""
    extract_text = DIALECTS[dialect].event_text
    return "".join(_text(extract_text(_object(read_block(block)[1]))) for block in split_blocks(data))


def text_in_body(dialect: str, body: bytes) -> str:
    """Return the text of a complete JSON body. The text of an incomplete body is empty."""
    return _text(DIALECTS[dialect].reply_text(_object(body)))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(content: object) -> str:
    """Return the text of a string, of the text parts of a list (Mistral's reasoning models) or of JSON (Cloudflare)."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        with contextlib.suppress(orjson.JSONEncodeError):  # It reads deeper nesting than it writes.
            return orjson.dumps(content).decode()
    texts = [part.get("text") for part in objects_in(content) if part.get("type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))
