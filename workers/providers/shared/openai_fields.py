"""Which fields do both of OpenAI's wires have with the same words and limits?"""

import hashlib
from typing import Any

from common.canonical.generation import DocumentPart, ToolResultPart

_END_USER_CHARS_MAX = 64
_FILE_NAME = {"application/pdf": "document.pdf"}
_CALL_ID_CHARS_MAX = 40  # In chat completions; the Responses API accepts 64.


def end_user(name: str | None) -> str | None:
    """Return the end user's name, or a digest if it is too long for OpenAI: Claude Code sends a JSON object."""
    return _within(name, _END_USER_CHARS_MAX) if name else None


def call_id(name: str) -> str:
    """Return the id of a tool call, or a digest if it is too long for OpenAI: some vendors' ids contain a signature."""
    return _within(name, _CALL_ID_CHARS_MAX)


def _within(name: str, chars_max: int) -> str:
    return name if len(name) <= chars_max else hashlib.sha256(name.encode()).hexdigest()[:chars_max]


def file(part: DocumentPart) -> dict[str, Any]:
    """Return the fields of a file. OpenAI wants a name for its data."""
    if part.file_id is not None:
        return {"file_id": part.file_id}
    return {"filename": part.name or _FILE_NAME.get(part.media_type, "document"), "file_data": part.address}


def audio_format(media_type: str) -> str:
    """Return OpenAI's name of a format of audio: it knows "wav" and "mp3"."""
    subtype = media_type.removeprefix("audio/").removeprefix("x-")
    return {"mpeg": "mp3", "wave": "wav"}.get(subtype, subtype)


def result_text(result: ToolResultPart, text: str) -> str:
    """Return the text of a tool's result. If the call failed, the text says so, because there is no field for it."""
    if not result.is_error or text.lower().startswith("error"):
        return text
    return f"Error: {text}" if text else "Error"
