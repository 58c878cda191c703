"""What text have a dialect's own bytes said so far?

For whoever looks at a generation without being its client: the log holds bytes in a dialect, passed through or encoded,
and this reads the answer's text out of them, that of the first choice. Thinking, refusals and tool calls are not text.
The bytes may be any provider's, so nothing in them is taken for granted.
"""

import contextlib
from typing import Any

import orjson

from common.dialects import DIALECTS
from common.dialects.shared.sent_events import objects_in
from common.sse import read_block, split_blocks


def said_in_stream(dialect: str, data: bytes) -> str:
    """Return the text in whole SSE events of a stream."""
    text_of = DIALECTS[dialect].event_text
    return "".join(_text(text_of(_object(read_block(block)[1]))) for block in split_blocks(data))


def said_in_whole(dialect: str, body: bytes) -> str:
    """Return the text of a whole answer; of one that is cut, nothing."""
    return _text(DIALECTS[dialect].reply_text(_object(body)))


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
    texts = [part.get("text") for part in objects_in(content) if part.get("type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))
