"""How is a canonical request said to OpenAI, and to those who speak its chat completions?

Vendors differ in what they know: OpenAI refuses ``max_tokens`` for its newer models, many others know nothing else.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import orjson

from common.errors import ErrorKind, GatewayError
from common.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    Role,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)

# Where a vendor has another word than the rest, or none (None): it would refuse a field that it does not know.
# Mistral always reports usage, and refuses to be asked for it.
_NAMES: dict[str, dict[str, str | None]] = {
    "openai": {"max_tokens": "max_completion_tokens"},
    "mistral": {"seed": "random_seed", "stream_options": None, "user": None},
}
_MISTRAL_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


def knows_stream_options(provider: str) -> bool:
    return "stream_options" not in _NAMES.get(provider, {})


def build_body(request: GenerationRequest, provider: str, model: str) -> bytes:
    """Return the body of a streaming request.

    Raises:
        GatewayError: INVALID_REQUEST that names what chat completions cannot express.
    """
    for part in request.opaque:
        raise _inexpressible(part)
    fields: dict[str, Any] = {
        "model": model,
        "messages": [item for message in request.messages for item in _items(message, provider)],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop or None,
        "seed": request.seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "n": request.choices if request.choices > 1 else None,
        "response_format": _response_format(request),
        "reasoning_effort": _effort(request.reasoning),
        "user": request.end_user,
    }
    if request.tools:
        fields["tools"] = [_tool(tool) for tool in request.tools]
        fields["tool_choice"] = _tool_choice(request.tool_choice)
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    names = _NAMES.get(provider, {})
    body = {names.get(name, name): value for name, value in fields.items() if value is not None}
    body.pop(None, None)
    return orjson.dumps(body)


def _inexpressible(part: OpaquePart) -> GatewayError:
    message = f"{part.path}: the provider of this model has nothing like {part.type!r}; leave it out or choose another model."
    return GatewayError(ErrorKind.INVALID_REQUEST, message, param=part.path)


def _items(message: Message, provider: str) -> Iterable[dict[str, Any]]:
    """Yield one message as the wire's messages: results of tools are messages of their own, before the rest of the turn."""
    if message.role is Role.ASSISTANT:
        yield from _assistant_items(message.parts, provider)
        return
    shown: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            text = "\n\n".join(_text(each) for each in part.content if not isinstance(each, ImagePart))
            yield {"role": "tool", "tool_call_id": _call_id(part.tool_call_id, provider), "content": text}
            # A tool message holds text only: its images follow as the user's.
            shown.extend(each for each in part.content if isinstance(each, ImagePart))
    shown.extend(part for part in message.parts if not isinstance(part, ToolResultPart))
    content = _content(shown)
    if content:
        yield {"role": message.role.value, "content": content}


def _assistant_items(parts: list[Part], provider: str) -> Iterable[dict[str, Any]]:
    # Pieces of one answer, cut where the vendor liked: they join without a seam. Thinking is dropped, as OpenAI's
    # models never see their own; to refuse it would end every conversation that changes its model.
    spoken = [part for part in parts if not isinstance(part, ToolCallPart | ThinkingPart)]
    text = "".join(_text(part) for part in spoken)
    calls = [
        {
            "id": _call_id(part.id, provider),
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in parts
        if isinstance(part, ToolCallPart)
    ]
    if calls:
        yield {"role": "assistant", "content": text or None, "tool_calls": calls}
    elif text:
        yield {"role": "assistant", "content": text}


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise _inexpressible(part if isinstance(part, OpaquePart) else OpaquePart(type(part).__name__, "messages"))


def _content(parts: list[Part]) -> str | list[dict[str, Any]]:
    """Return a string where it is text alone: some compatible servers know no content parts."""
    if not any(isinstance(part, ImagePart) for part in parts):
        texts = [_text(part) for part in parts if not isinstance(part, ThinkingPart)]
        return "\n\n".join(text for text in texts if text)
    return [
        _image(part) if isinstance(part, ImagePart) else {"type": "text", "text": _text(part)}
        for part in parts
        if not isinstance(part, ThinkingPart)
    ]


def _image(part: ImagePart) -> dict[str, Any]:
    image = {"url": part.url or f"data:{part.media_type};base64,{part.data}"}
    if part.detail is not None:
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _call_id(call_id: str, provider: str) -> str:
    """Return the id as the vendor takes it: Mistral wants nine letters and digits. The same id is always changed alike."""
    if provider != "mistral" or _MISTRAL_CALL_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


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
    wanted = request.response_format
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}


# Anthropic's words for more than "high".
_EFFORT = {"xhigh": "high", "max": "high"}
_LOW_BUDGET_TOKENS, _MEDIUM_BUDGET_TOKENS = 2_048, 8_192  # The budgets that clients set for a little and for some thought.


def _effort(reasoning: Reasoning | None) -> str | None:
    """Return the effort, if one was asked for: a model that cannot reason refuses a request that has the field."""
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.budget_tokens is None:
        return _EFFORT.get(reasoning.effort or "", reasoning.effort)
    if reasoning.budget_tokens <= _LOW_BUDGET_TOKENS:
        return "low"
    return "medium" if reasoning.budget_tokens <= _MEDIUM_BUDGET_TOKENS else "high"
