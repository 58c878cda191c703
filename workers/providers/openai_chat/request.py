"""How is a canonical request written for OpenAI's chat completions, and for vendors that speak them?

The body is in OpenAI's format. The differences of each vendor are in ``quirks``.
"""

from collections.abc import Iterable
from typing import Any

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.dialects.shared.openai_words import REASONING_FIELDS
from common.vendors.models import ModelFacts
from workers.providers.shared import openai_fields
from workers.providers.shared.quirks import Quirks
from workers.providers.shared.reasoning import ReasoningWords
from workers.providers.shared.unsupported import unsupported_part_error


def build_body(
    request: GenerationRequest, model: str, quirks: Quirks, facts: ModelFacts, words: ReasoningWords
) -> dict[str, Any]:
    """Return the body of a streaming request, not yet adapted to the vendor.

    Raises:
        GatewayError: INVALID_REQUEST that names what chat completions cannot express.
    """
    for part in request.opaque:
        raise unsupported_part_error(part)
    fields: dict[str, Any] = {
        "model": model,
        "messages": [item for message in request.messages for item in _items(message, quirks, facts)],
        "stream": True,
        "stream_options": None if "stream_options" in quirks.unknown else {"include_usage": True},
        quirks.limit: request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop or None,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "n": request.choices if request.choices > 1 else None,
        "response_format": _response_format(request),
        "reasoning_effort": words.effort,
        "thinking": {"type": words.thinking} if words.thinking else None,
        "user": openai_fields.end_user(request.end_user),
        "prompt_cache_key": request.prompt_cache_key,
    }
    if request.tools:
        fields["tools"] = [_tool(tool) for tool in request.tools]
        fields["tool_choice"] = _tool_choice(request.tool_choice)
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return {name: value for name, value in fields.items() if value is not None}


def _items(message: Message, quirks: Quirks, facts: ModelFacts) -> Iterable[dict[str, Any]]:
    """Yield one message as the wire's messages. Tool results are their own messages, before the rest of the turn."""
    if message.role is Role.ASSISTANT:
        yield from _assistant_items(message.parts, facts)
        return
    user_parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            text = "\n\n".join(_text(inner) for inner in part.content if not isinstance(inner, ImagePart | DocumentPart))
            content = openai_fields.result_text(part, text)
            yield {"role": "tool", "tool_call_id": openai_fields.call_id(part.tool_call_id), "content": content}
            # A tool message can contain only text. Its images and documents follow in the user's message.
            user_parts.extend(inner for inner in part.content if isinstance(inner, ImagePart | DocumentPart))
    user_parts.extend(part for part in message.parts if not isinstance(part, ToolResultPart))
    user_content = _content(user_parts, quirks)
    if user_content:
        yield {"role": message.role.value, "content": user_content}


def _assistant_items(parts: list[Part], facts: ModelFacts) -> Iterable[dict[str, Any]]:
    # These are pieces of one answer, so they are joined without a separator. Reasoning goes back only to models that take it:
    # most models never see their own, and refusing it would end every conversation that changes its model.
    content_parts = [part for part in parts if not isinstance(part, ToolCallPart | ReasoningPart)]
    item: dict[str, Any] = {"role": "assistant", "content": "".join(_text(part) for part in content_parts) or None}
    if facts.reasoning_field and (thought := "".join(part.text for part in parts if isinstance(part, ReasoningPart))):
        item[REASONING_FIELDS[0]] = thought
    calls = [
        {
            "id": openai_fields.call_id(part.id),
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in parts
        if isinstance(part, ToolCallPart)
    ]
    if calls:
        item["tool_calls"] = calls
    if calls or item["content"]:
        yield item


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise unsupported_part_error(part if isinstance(part, OpaquePart) else OpaquePart(type(part).__name__, "messages"))


def _content(parts: list[Part], quirks: Quirks) -> str | list[dict[str, Any]]:
    """Return a string if there is only text: some compatible servers do not support content parts."""
    if not any(isinstance(part, ImagePart | DocumentPart) for part in parts):
        texts = [_text(part) for part in parts if not isinstance(part, ReasoningPart)]
        return "\n\n".join(text for text in texts if text)
    return [_content_part(part, quirks) for part in parts if not isinstance(part, ReasoningPart)]


def _content_part(part: Part, quirks: Quirks) -> dict[str, Any]:
    match part:
        case ImagePart():
            return _image(part)
        case DocumentPart():
            return _document(part, quirks)
        case _:
            return {"type": "text", "text": _text(part)}


def _document(part: DocumentPart, quirks: Quirks) -> dict[str, Any]:
    if part.media_type.startswith("audio/"):
        return {
            "type": "input_audio",
            "input_audio": {"data": part.data, "format": openai_fields.audio_format(part.media_type)},
        }
    if quirks.document_part == "document_url":
        return {"type": "document_url", "document_url": part.address} | ({"document_name": part.name} if part.name else {})
    return {"type": "file", "file": openai_fields.file(part)}


def _image(part: ImagePart) -> dict[str, Any]:
    image = {"url": part.address}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters or {"type": "object", "properties": {}}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    return {"type": "function", "function": {"name": choice.name}} if choice.mode == "tool" else choice.mode


def _response_format(request: GenerationRequest) -> dict[str, Any] | None:
    response_format = request.response_format
    if response_format is None:
        return None
    if response_format.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": response_format.name or "answer", "schema": response_format.schema}
    if response_format.strict is not None:
        schema["strict"] = response_format.strict
    return {"type": "json_schema", "json_schema": schema}
