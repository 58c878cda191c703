"""How are the parts of a conversation read that several dialects write in the same way?

What one dialect alone has stays in its own reader. A reader passes here what it found, and where in the body it stands.
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
from common.dialects.shared.reading import Shape, as_list, at, invalid

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]*)*;base64,", re.IGNORECASE)


class Text(Shape):
    text: str


class Refusal(Shape):
    refusal: str


# Fields


def asking(body: Mapping[str, Any], fields: Mapping[str, tuple[object, ...]]) -> list[str]:
    """Return which of some fields ask for something; each has the values with which it does not."""
    return [name for name, neutral in fields.items() if body.get(name) is not None and body[name] not in neutral]


def stops_in(value: object) -> list[str]:
    """Return the stop sequences in the field ``stop``: a string or several."""
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise invalid("stop", "must be a string or a list of strings")
    return [stop for stop in stops if stop]


def reasoning_of(effort: str | None) -> Reasoning | None:
    if effort is None:
        return None
    return Reasoning(enabled=False) if effort == "none" else Reasoning(effort=effort)


# Content


def content_in(
    value: object, path: str, part_of: Callable[[object, str], Part], of: str = "a string or a list of content parts"
) -> list[Part]:
    """Return content: a string, or a list whose items ``part_of`` reads; ``of`` says in the error what it may be."""
    if isinstance(value, str):
        return [TextPart(value)]
    return [part_of(part, at(path, index)) for index, part in enumerate(as_list(value, path, of))]


def object_at(part: object, path: str, of: str = "a content part") -> dict[str, Any]:
    if not isinstance(part, dict):
        raise invalid(path, f"must be {of}: an object with a type")
    return part


def other_part(type_: object, path: str) -> OpaquePart:
    """Return a part of a type that the dialect's reader does not know: some vendor may."""
    if not isinstance(type_, str):
        raise invalid(at(path, "type"), "must be a string")
    return OpaquePart(type_, path)


def image_at(url: str, detail: str | None, type_: str, path: str) -> Part:
    """Return the image that an address names or holds. Other addresses (``gs://``, a vendor's file) are some vendor's own:
    what stands at ``path`` is then a part of ``type_`` that passes as it is, or not at all.
    """
    if found := _DATA_URL.match(url):
        return ImagePart(data=url[found.end() :], media_type=found[1].lower(), detail=detail)
    if url.startswith(("http://", "https://")):
        return ImagePart(url=url, detail=detail)
    return OpaquePart(type_, path)


# Calls and their results


def arguments_at(value: object, path: str) -> str:
    """Return a call's arguments as JSON; those who wrote them by hand left them out, or sent an object, as Ollama does."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    if not isinstance(value, str):
        raise invalid(path, "must be an object, or a string that holds JSON")
    return value


def result_of(call_id: str, content: list[Part]) -> ToolResultPart:
    """Return a call's result; what a result cannot hold does not come out of the dialects' content."""
    return ToolResultPart(call_id, [each for each in content if isinstance(each, TextPart | ImagePart | OpaquePart)])


def add_turn(messages: list[Message], role: Role, parts: list[Part]) -> None:
    """Append a turn. The results of one turn's calls are one turn, however many messages they came in."""
    last = messages[-1] if messages else None
    if last and last.role is role and _are_results(last.parts) and _are_results(parts):
        last.parts += parts
    else:
        messages.append(Message(role, parts))


def add_spoken(messages: list[Message], parts: list[Part]) -> None:
    """Append to the assistant's turn that goes on: its items follow each other, and a provider wants them together."""
    if messages and messages[-1].role is Role.ASSISTANT:
        messages[-1].parts += parts
    else:
        messages.append(Message(Role.ASSISTANT, parts))


def _are_results(parts: list[Part]) -> bool:
    return bool(parts) and all(isinstance(part, ToolResultPart) for part in parts)
