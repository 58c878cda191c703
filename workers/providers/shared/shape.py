"""How is a request put into the shape that a model's vendor accepts, and how do the calls of its answer get back into the
client's?

``fit_shape`` is a step of every wire's builder, after ``fit_history``. It changes form only, never what the client asks for:
names of tools, ids of calls, schemas, media types. What it changes follows from the request and the model's facts alone. So
the same turn always looks the same to the vendor's cache, and ``ClientCalls`` can derive the client's names again in any
worker.
"""

import hashlib
from dataclasses import replace
from typing import Protocol

from common.canonical.events import ToolCallStarted
from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolResultPart,
)
from common.vendors.models import ModelFacts
from workers.providers.base import Decoder
from workers.providers.shared.call_order import pair_calls
from workers.providers.shared.roles import CONTINUE_PROMPT
from workers.providers.shared.schemas import answer_schema, tool_schema
from workers.providers.shared.tool_names import client_names, vendor_name

# The beginning of an image's base64 data, and what it says about its type. Vendors compare it with the declared type.
_TYPE_OF_BYTES = (("iVBORw0KGgo", "image/png"), ("/9j/", "image/jpeg"), ("R0lGOD", "image/gif"), ("UklGR", "image/webp"))
_TYPE_NAMES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


def fit_shape(request: GenerationRequest, facts: ModelFacts) -> tuple[GenerationRequest, list[str]]:
    """Return the request in the shape that the model's vendor accepts, and the names of what had to be given up.

    Parts that stay the same are shared, not copied.
    """
    dropped = []
    messages = [_fit_message(message, facts) for message in pair_calls(request.messages)]
    if _is_prefill(messages):
        messages[-1] = _without_space(messages[-1])
        if facts.prefill is False:
            messages.append(Message(Role.USER, [TextPart(CONTINUE_PROMPT)]))
            dropped.append("prefill")
    tools = [_fit_tool(tool, facts) for tool in request.tools]
    if facts.tools_strict_alike and len({bool(tool.strict) for tool in tools}) > 1:
        tools = [replace(tool, strict=None) for tool in tools]
        dropped.append("tools.strict")
    choice = request.tool_choice
    if choice is not None and choice.name is not None:
        choice = replace(choice, name=vendor_name(choice.name, facts))
    response_format = _fit_format(request.response_format, facts)
    shaped = replace(request, messages=messages, tools=tools, tool_choice=choice, response_format=response_format)
    return shaped, dropped


def _is_prefill(messages: list[Message]) -> bool:
    """Whether the conversation ends with the beginning of the model's next answer."""
    last = messages[-1]
    return last.role is Role.ASSISTANT and bool(last.parts) and isinstance(last.parts[-1], TextPart)


def _without_space(message: Message) -> Message:
    """Return a prefill without white space at its end: Anthropic refuses that."""
    *parts, last = message.parts
    assert isinstance(last, TextPart)
    text = last.text.rstrip()
    return message if text == last.text else Message(message.role, [*parts, TextPart(text)])


def _fit_message(message: Message, facts: ModelFacts) -> Message:
    parts = [_fit_part(part, facts) for part in message.parts]
    has_changed = any(fitted is not part for fitted, part in zip(parts, message.parts, strict=True))
    return Message(message.role, parts) if has_changed else message


def _fit_part(part: Part, facts: ModelFacts) -> Part:
    match part:
        case TextPart():
            return part
        case ToolCallPart():
            name = vendor_name(part.name, facts)
            return part if name == part.name else replace(part, name=name)
        case ToolResultPart() if any(isinstance(content_part, ImagePart) for content_part in part.content):
            return replace(part, content=[_fit_content(content_part) for content_part in part.content])
        case ImagePart():
            return _fit_image(part)
    return part


def _fit_content(
    part: TextPart | ImagePart | DocumentPart | OpaquePart,
) -> TextPart | ImagePart | DocumentPart | OpaquePart:
    return _fit_image(part) if isinstance(part, ImagePart) else part


def _fit_image(part: ImagePart) -> ImagePart:
    """Correct the media type. Clients guess it from a file's name, and Anthropic refuses an image of another type."""
    if part.data is None:
        return part
    declared = (part.media_type or "").lower()
    seen = next((type_ for start, type_ in _TYPE_OF_BYTES if part.data.startswith(start)), None)
    media_type = seen or _TYPE_NAMES.get(declared, declared)
    return part if media_type == part.media_type else replace(part, media_type=media_type)


def _fit_tool(tool: Tool, facts: ModelFacts) -> Tool:
    return replace(tool, name=vendor_name(tool.name, facts), parameters=tool_schema(tool.parameters, facts))


def _fit_format(response_format: ResponseFormat | None, facts: ModelFacts) -> ResponseFormat | None:
    if response_format is None or response_format.schema is None:
        return response_format
    return replace(response_format, schema=answer_schema(response_format.schema, facts))


class _Decodes(Protocol):
    def decoder(self, choices: int = 1) -> Decoder: ...


class ClientCalls:
    """A wire whose decoders give each call the client's name of the tool, and an id that its conversation does not have yet.

    Some servers count their ids from 0 in each answer, and a client would take a new call for one that it knows.
    """

    def __init__(self, wire: _Decodes, request: GenerationRequest, facts: ModelFacts, generation_id: str) -> None:
        self._wire, self._generation_id = wire, generation_id
        self._names = client_names(request, facts)
        self._used = {part.id for message in request.messages for part in message.parts if isinstance(part, ToolCallPart)}

    def decoder(self, choices: int = 1) -> Decoder:
        decoder = self._wire.decoder(choices)
        decoder.start_call = self._start_call
        return decoder

    def _start_call(self, index: int, id: str, name: str, choice: int = 0) -> ToolCallStarted:
        if id in self._used:
            id = "call_" + hashlib.sha256(f"{self._generation_id}.{choice}.{index}".encode()).hexdigest()[:24]
        self._used.add(id)
        return ToolCallStarted(index, id, self._names.get(name, name), choice)
