"""Is the body of an upstream's answer a stream of events, or one complete body? It may not be what the request asked for.

The first bytes decide where they can: no event begins with a bracket, and no JSON body begins with a field's name. Otherwise
the content type decides. If that says nothing, the body is treated as what the request asked for.
"""

import re

_EVENT = re.compile(rb"(?:data|event|id|retry)?:")


def is_stream(content_type: str, beginning: bytes, *, is_asked: bool) -> bool:
    """``beginning``: the first bytes of the body, without leading blanks. ``is_asked``: the request asked for a stream."""
    if beginning.startswith((b"{", b"[", b"<")):  # A JSON object, a JSON list, or an HTML page.
        return False
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "text/event-stream" or _EVENT.match(beginning):
        return True
    return is_asked and media_type != "application/json"
