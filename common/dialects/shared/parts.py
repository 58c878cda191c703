"""How are those parts of a conversation read that several dialects share?

What only one dialect has stays in that dialect's own reader. A reader passes a value, and ``path``: its place in the body.
"""

import base64
import binascii
import mimetypes
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal

import orjson

from common.canonical.generation import (
    CacheMark,
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    Role,
    TextPart,
    ToolChoice,
    ToolResultPart,
)
from common.dialects.shared.reading import Shape, as_list, invalid, join_path

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]*)*;base64,", re.IGNORECASE)
_PDF = "application/pdf"
_ENDINGS = mimetypes.MimeTypes()  # Python's own table, the same on every machine. Only its newer versions know these:
_ENDINGS.add_type("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ".docx")
_ENDINGS.add_type("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ".xlsx")
_ENDINGS.add_type("application/vnd.openxmlformats-officedocument.presentationml.presentation", ".pptx")
# Media types of files that are read as text, besides text/….
_TEXT_TYPES = {"application/json", "application/xml", "application/yaml", "application/x-yaml", "application/javascript"}
# Base64 within JSON text is of no use to a model, and can be longer than its context window.
_LONG_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{2000,}")


class Text(Shape):
    text: str


class Refusal(Shape):
    refusal: str


# Fields


def requested_fields(body: Mapping[str, Any], fields: Mapping[str, tuple[object, ...]]) -> list[str]:
    """Return the names of ``fields`` that request something. Each maps to its neutral values, which request nothing."""
    return [name for name, neutral in fields.items() if body.get(name) is not None and body[name] not in neutral]


def parse_stop(value: object) -> list[str]:
    """Return the stop sequences in the field ``stop``: a string or a list of strings."""
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise invalid("stop", "must be a string or a list of strings")
    return [stop for stop in stops if stop]


def parse_effort(effort: str | None) -> Reasoning | None:
    if effort is None:
        return None
    return Reasoning(enabled=False) if effort == "none" else Reasoning(effort=effort)


# Content


def read_content(
    value: object, path: str, read_part: Callable[[object, str], Part], expected: str = "a string or a list of content parts"
) -> list[Part]:
    """Return content: a string, or a list whose items ``read_part`` reads. The error message says what was ``expected``."""
    if isinstance(value, str):
        return [TextPart(value)]
    return [read_part(part, join_path(path, index)) for index, part in enumerate(as_list(value, path, expected))]


def require_object(part: object, path: str, expected: str = "a content part") -> dict[str, Any]:
    if not isinstance(part, dict):
        raise invalid(path, f"must be {expected}: an object with a type")
    return part


def unknown_part(type_: object, path: str) -> OpaquePart:
    """Return a part of a type that the dialect's reader does not know. A vendor may know it."""
    if not isinstance(type_, str):
        raise invalid(join_path(path, "type"), "must be a string")
    return OpaquePart(type_, path)


def read_image(url: str, detail: str | None, type_: str, path: str) -> Part:
    """Return the image of an http(s) URL or a data URL.

    Other URLs (``gs://``, a vendor's file) mean something to one vendor only. The result is then an ``OpaquePart`` of
    ``type_`` at ``path``, which passes unchanged or not at all.
    """
    if match := _DATA_URL.match(url):
        return ImagePart(data=url[match.end() :], media_type=match[1].lower(), detail=detail, path=path)
    if url.startswith(("http://", "https://")):
        return ImagePart(url=url, detail=detail, path=path)
    return OpaquePart(type_, path)


def read_file(data: str, name: str | None, path: str) -> Part:
    """Return the file of a data URL, or of bare base64, whose type its name tells; without a type it counts as a PDF."""
    match = _DATA_URL.match(data)
    media_type = match[1].lower() if match else _ENDINGS.guess_type(name or "")[0] or _PDF
    return read_base64(data[match.end() :] if match else data, media_type, name, path)


def read_base64(data: str, media_type: str, name: str | None, path: str) -> Part:
    """Return the file in ``data``. An image is an image, and a text file holds its text."""
    if media_type.startswith("image/"):
        return ImagePart(data=data, media_type=media_type, path=path)
    if media_type.startswith("text/") or media_type in _TEXT_TYPES:
        try:
            text = base64.b64decode(data).decode(errors="replace")
        except binascii.Error:
            text = data  # Some clients send the text itself.
        return DocumentPart(media_type, text=text, name=name, path=path)
    return DocumentPart(media_type, data=data, name=name, path=path)


def read_file_url(url: str, name: str | None, type_: str, path: str) -> Part:
    """Return the file at an http(s) URL; another URL means something to one vendor only (see ``read_image``)."""
    if not url.startswith(("http://", "https://")):
        return OpaquePart(type_, path)
    media_type = _ENDINGS.guess_type(url.partition("?")[0].partition("#")[0])[0] or _PDF
    return DocumentPart(media_type, url=url, name=name, path=path)


def read_audio(data: str, format_: str, path: str) -> Part:
    """Return OpenAI's ``input_audio``. ``format_`` is the last part of a media type, or a file's ending."""
    return DocumentPart("audio/" + {"mp3": "mpeg"}.get(format_.lower(), format_.lower()), data=data, path=path)


# Marks for the prompt cache


def read_cache_mark(fields: Mapping[str, Any]) -> CacheMark | None:
    """Return the mark on a part, a message, a tool or a body. What is no mark is ignored: it does not change an answer.

    Anthropic's ``cache_control`` (many clients send it in chat completions too), or OpenAI's ``prompt_cache_breakpoint``.
    Sources: https://platform.claude.com/docs/en/build-with-claude/prompt-caching,
    https://developers.openai.com/api/docs/guides/prompt-caching
    """
    match fields.get("cache_control"):
        case {"type": "ephemeral", "ttl": "5m" | "1h" as ttl}:
            return {"type": "ephemeral", "ttl": ttl}
        case {"type": "ephemeral"}:
            return {"type": "ephemeral"}
    return {"type": "ephemeral"} if isinstance(fields.get("prompt_cache_breakpoint"), dict) else None


def caches_marked_only(body: Mapping[str, Any]) -> bool:
    """Whether OpenAI's ``prompt_cache_options`` say that nothing is cached but what has a mark."""
    options = body.get("prompt_cache_options")
    return isinstance(options, dict) and options.get("mode") == "explicit"


def mark_part(part: Part, fields: Mapping[str, Any]) -> Part:
    """Put the mark in ``fields`` on the part that was read from them."""
    if isinstance(part, TextPart | ImagePart | DocumentPart | ToolResultPart) and (mark := read_cache_mark(fields)):
        part.cache_mark = mark
    return part


# Calls and their results


def read_arguments(value: object, path: str, expected: str = "a string that holds JSON") -> str:
    """Return a call's arguments as JSON text.

    Also accepts missing arguments, and objects as Ollama sends them: some clients write calls by hand. The error message says
    what was ``expected``: by default only what OpenAI's API accepts.
    """
    if value is None or value == "":
        return "{}"
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    if not isinstance(value, str):
        raise invalid(path, f"must be {expected}")
    return value


def tool_result(
    call_id: str,
    value: object,
    path: str,
    read_part: Callable[[object, str], Part],
    expected: str = "a string or a list of content parts",
    *,
    is_error: bool = False,
) -> ToolResultPart:
    """Return a call's result: nothing, a string, or a list whose items ``read_part`` reads.

    A result is history, whatever a tool puts into it. So an item that the dialect does not know becomes JSON text.
    """

    def read_item(item: object, item_path: str) -> Part:
        if isinstance(item, str):
            return TextPart(item)
        has_type = isinstance(item, dict) and isinstance(item.get("type"), str)
        part = read_part(item, item_path) if has_type else None
        return part if isinstance(part, TextPart | ImagePart | DocumentPart) else TextPart(json_text(item))

    content: list[Any] = [] if value is None else read_content(value, path, read_item, expected)
    return ToolResultPart(call_id, content, is_error)


def json_text(value: object) -> str:
    """Return a part that has no other form as JSON text."""
    return _LONG_BASE64.sub("…", orjson.dumps(value).decode())


def allow_tools(request: GenerationRequest, mode: Literal["auto", "required"], names: Container[object], path: str) -> None:
    """Apply OpenAI's choice of ``allowed_tools``: other vendors get only the tools that it names."""
    request.tools = [tool for tool in request.tools if tool.name in names]
    request.tool_choice = ToolChoice(mode)
    if mode == "required" and not request.tools:
        request.opaque.append(OpaquePart(mode, path))  # All tools that it could mean were dropped.


def add_turn(messages: list[Message], role: Role, parts: list[Part]) -> None:
    """Append a turn. The results of one turn's calls become one turn, even if they arrive in several messages."""
    last = messages[-1] if messages else None
    if last and last.role is role and _are_results(last.parts) and _are_results(parts):
        last.parts += parts
    else:
        messages.append(Message(role, parts))


def add_to_assistant(messages: list[Message], parts: list[Part]) -> None:
    """Add parts to the assistant's current turn, or begin one. Providers want consecutive assistant items in one message."""
    if messages and messages[-1].role is Role.ASSISTANT:
        messages[-1].parts += parts
    else:
        messages.append(Message(Role.ASSISTANT, parts))


def _are_results(parts: list[Part]) -> bool:
    return bool(parts) and all(isinstance(part, ToolResultPart) for part in parts)
