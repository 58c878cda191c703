"""How is a canonical request written for Cohere's chat API, version 2?

Almost as for OpenAI, with other names and narrower ranges. A value outside of a range that only Cohere has is moved to the end
of the range. A field that Cohere does not have is dropped (and named to the client) if the answer does not need it, otherwise
refused. Source: https://docs.cohere.com/reference/chat
"""

from collections.abc import Iterator
from typing import Any

import orjson

from common.canonical.generation import (
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
    ToolResultPart,
)
from common.vendors.models import ModelFacts
from workers.providers.shared.reasoning import ReasoningWords, reasoning_words
from workers.providers.shared.unsupported import invalid_field_error, unsupported_part_error

_TOP_P_MIN, _TOP_P_MAX, _TOP_K_MAX, _PENALTY_MAX = 0.01, 0.99, 500, 1.0
_TOOL_CHOICE = {"required": "REQUIRED", "tool": "REQUIRED", "none": "NONE"}  # Auto is its default.


def build_body(request: GenerationRequest, model: str, facts: ModelFacts) -> tuple[bytes, list[str]]:
    """Return the body of a streaming request, and the names of the dropped fields.

    Raises:
        GatewayError: INVALID_REQUEST that names what Cohere cannot express.
    """
    for part in request.opaque:
        raise unsupported_part_error(part)
    if request.choices > 1:
        raise invalid_field_error("n", "must be 1: the provider of this model gives one choice")
    words = reasoning_words(request.reasoning, facts, has_efforts=False)
    left_out = {"user": request.end_user, "prompt_cache_key": request.prompt_cache_key}
    dropped = [name for name, value in left_out.items() if value is not None] + list(words.dropped)
    fields: dict[str, Any] = {
        "model": model,
        "messages": [item for message in request.messages for item in _items(message)],
        "stream": True,
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "p": None if request.top_p is None else min(max(request.top_p, _TOP_P_MIN), _TOP_P_MAX),
        "k": None if request.top_k is None else min(request.top_k, _TOP_K_MAX),
        "stop_sequences": request.stop or None,
        "seed": request.seed,
        "presence_penalty": _penalty("presence_penalty", request.presence_penalty, dropped),
        "frequency_penalty": _penalty("frequency_penalty", request.frequency_penalty, dropped),
        "response_format": _response_format(request),
        "thinking": _thinking(words),
    }
    if request.tools:
        fields |= _tools(request, dropped)
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}), dropped


def _penalty(name: str, penalty: float | None, dropped: list[str]) -> float | None:
    if penalty is None or penalty >= 0:
        return None if penalty is None else min(penalty, _PENALTY_MAX)
    dropped.append(name)  # A negative penalty rewards repetition. Cohere does not support that.
    return None


def _items(message: Message) -> Iterator[dict[str, Any]]:
    """Yield one message as Cohere's messages. Tool results are their own messages, before the rest of the turn."""
    if message.role is Role.ASSISTANT:
        yield from _assistant_items(message.parts)
        return
    user_parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            text = "\n\n".join(_text(content_part) for content_part in part.content if not isinstance(content_part, ImagePart))
            yield {"role": "tool", "tool_call_id": part.tool_call_id, "content": text}
            # A result can contain text and documents. Its images follow in the user's message.
            user_parts.extend(content_part for content_part in part.content if isinstance(content_part, ImagePart))
    user_parts.extend(part for part in message.parts if not isinstance(part, ToolResultPart | ReasoningPart))
    content = _content(user_parts)
    if content:
        yield {"role": message.role.value, "content": content}


def _assistant_items(parts: list[Part]) -> Iterator[dict[str, Any]]:
    text = "".join(_text(part) for part in parts if not isinstance(part, ToolCallPart | ReasoningPart))
    calls = [
        {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
        for part in parts
        if isinstance(part, ToolCallPart)
    ]
    item: dict[str, Any] = {"role": "assistant"}
    if text:
        item["content"] = text
    if calls:
        item["tool_calls"] = calls
        # Reasoning before the calls belongs to them; other reasoning is dropped. Signed reasoning is another vendor's.
        plan = "".join(part.text for part in parts if isinstance(part, ReasoningPart) and not part.signature)
        if plan:
            item["tool_plan"] = plan
    if len(item) > 1:
        yield item


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise unsupported_part_error(part if isinstance(part, OpaquePart) else OpaquePart(type(part).__name__, "messages"))


def _content(parts: list[Part]) -> str | list[dict[str, Any]]:
    if not any(isinstance(part, ImagePart) for part in parts):
        return "\n\n".join(text for part in parts if (text := _text(part)))
    return [_image(part) if isinstance(part, ImagePart) else {"type": "text", "text": _text(part)} for part in parts]


def _image(part: ImagePart) -> dict[str, Any]:
    image = {"url": part.address}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _tools(request: GenerationRequest, dropped: list[str]) -> dict[str, Any]:
    if request.parallel_tool_calls is False:
        dropped.append("parallel_tool_calls")  # The AI SDK always sends it when a tool must be called.
    choice, tools = request.tool_choice, request.tools
    if choice is not None and choice.mode == "tool":
        # Cohere cannot force a named tool. But if the list has only that tool, it must call it.
        tools = [tool for tool in tools if tool.name == choice.name]
        if not tools:
            raise invalid_field_error("tool_choice", "must name one of the tools")
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in tools]}
    if choice is not None:
        fields["tool_choice"] = _TOOL_CHOICE.get(choice.mode)
    if any(tool.strict for tool in tools):
        # Cohere is strict for all tools or for none, and refuses strict mode for a tool without required parameters.
        if all(tool.strict and tool.parameters.get("required") for tool in tools):
            fields["strict_tools"] = True
        else:
            dropped.append("tools.strict")
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters or {"type": "object", "properties": {}}}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _response_format(request: GenerationRequest) -> dict[str, Any] | None:
    response_format = request.response_format
    if response_format is None:
        return None
    return (
        {"type": "json_object"}
        if response_format.schema is None
        else {"type": "json_object", "json_schema": response_format.schema}
    )


def _thinking(words: ReasoningWords) -> dict[str, Any] | None:
    """Return the thinking settings, if the client asks for any: a model that cannot reason refuses the field."""
    if words.thinking is not None:
        return {"type": words.thinking}
    return {"type": "enabled", "token_budget": words.budget_tokens} if words.budget_tokens else None
