"""Is the body of an answer a stream of events, or one whole answer? It need not be what was asked for.

Its first bytes tell where they can: no event begins with a bracket, and no JSON with a field's name. Otherwise its content type
does; where that says nothing, it is taken for what was asked for.
"""

import re

_EVENT = re.compile(rb"(?:data|event|id|retry)?:")


def is_stream(content_type: str, beginning: bytes, *, is_asked: bool) -> bool:
    """``beginning`` is the body's, without the blanks before it; ``is_asked``: a stream was asked for."""
    if beginning.startswith((b"{", b"[", b"<")):  # An object, a list of them, a page.
        return False
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "text/event-stream" or _EVENT.match(beginning):
        return True
    return is_asked and media_type != "application/json"
