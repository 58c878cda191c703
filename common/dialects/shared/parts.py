"""How are those parts of a conversation read that several dialects share?

What only one dialect has stays in that dialect's own reader. A reader passes a value, and ``path``: its place in the body.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from common.canonical.generation import (
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    Role,
    TextPart,
    ToolResultPart,
)
from common.dialects.shared.reading import Shape, as_list, invalid, join_path

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]*)*;base64,", re.IGNORECASE)


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
        return ImagePart(data=url[match.end() :], media_type=match[1].lower(), detail=detail)
    if url.startswith(("http://", "https://")):
        return ImagePart(url=url, detail=detail)
    return OpaquePart(type_, path)


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


def tool_result(call_id: str, content: list[Part]) -> ToolResultPart:
    """Return a call's result. The dialects' content has only parts that a result can hold."""
    return ToolResultPart(call_id, [part for part in content if isinstance(part, TextPart | ImagePart | OpaquePart)])


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
