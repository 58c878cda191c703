"""What does the body that agentary-js posts ask for?

Its releases differ. Messages hold text, tool calls and results in OpenAI's older form, or as the client's own parts. With
``modelProvider: "openai"`` it sends ``input`` in the form of OpenAI's Responses. Tools are bare or wrapped. All forms are
read. Options that affect only models in the browser are dropped, as in the proxies that the client was written for, and
reported as dropped.
Source: ``src/types/worker.ts`` and ``src/providers/transformation.ts`` in https://github.com/agentary-ai/agentary-js
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from common.canonical.generation import (
    GenerationRequest,
    Message,
    OpaquePart,
    Part,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.dialects.shared.parts import (
    Text,
    add_to_assistant,
    add_turn,
    json_text,
    parse_stop,
    read_arguments,
    read_content,
    require_object,
    unknown_part,
)
from common.dialects.shared.reading import Shape, as_list, invalid, join_path, opaque_part, read

_LIMITS = ("max_tokens", "max_new_tokens", "max_output_tokens")  # Names of one field; the first that is set counts.
_IN_BROWSER_ONLY = ("repetition_penalty", "deterministic", "enable_thinking")


class Body(Shape):
    model: str = Field(min_length=1)
    provider: str | None = None  # Taken from the URL path.
    stream: bool | None = None
    instructions: str | None = None
    tools: list[Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


class _Messages(Shape):
    messages: list[Any] = Field(min_length=1)


class _Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]


class _ToolMessage(Shape):
    tool_call_id: str


class _Function(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    input_schema: dict[str, Any] | None = None


class _Call(Shape):
    name: str


class _ToolCall(Shape):
    id: str
    function: _Call


class _ToolUse(Shape):
    id: str
    name: str


class _ToolResult(Shape):
    tool_use_id: str
    is_error: bool | None = None


class _CallItem(Shape):
    call_id: str
    name: str


class _OutputItem(Shape):
    call_id: str


def parse(body: Mapping[str, Any]) -> GenerationRequest:
    fields = read(Body, dict(body))
    messages = _input(body["input"]) if _has_input(body) else _messages(read(_Messages, dict(body)).messages)
    if fields.instructions:
        messages.insert(0, Message(Role.SYSTEM, [TextPart(fields.instructions)]))
    request = GenerationRequest(
        model=fields.model,
        messages=messages,
        provider=fields.provider,
        stream=fields.stream is not False,
        max_output_tokens=next((limit for name in _LIMITS if (limit := getattr(fields, name))), None),
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        stop=parse_stop(body.get("stop") or None),
        seed=fields.seed,
        tool_choice=_tool_choice(body.get("tool_choice")),
        dropped=[name for name in _IN_BROWSER_ONLY if body.get(name)],
        names={"max_output_tokens": next((name for name in _LIMITS if body.get(name)), _LIMITS[-1])},
    )
    _read_tools(fields.tools or [], request)
    return request


def _has_input(body: Mapping[str, Any]) -> bool:
    return body.get("messages") is None and body.get("input") is not None


def _messages(items: list[Any]) -> list[Message]:
    messages: list[Message] = []
    for index, item in enumerate(items):
        path = join_path("messages", index)
        match read(_Message, item, path).role:
            case "system" | "developer":
                add_turn(messages, Role.SYSTEM, read_content(item.get("content"), join_path(path, "content"), _part))
            case "user":
                add_turn(messages, Role.USER, read_content(item.get("content"), join_path(path, "content"), _part))
            case "assistant":
                add_turn(messages, Role.ASSISTANT, _assistant(item, path))
            case "tool":
                call_id = read(_ToolMessage, item, path).tool_call_id
                result = _result(item.get("content"), join_path(path, "content"))
                add_turn(messages, Role.USER, [ToolResultPart(call_id, result)])
    return messages


def _assistant(item: dict[str, Any], path: str) -> list[Part]:
    # Content is null next to tool calls, as at OpenAI.
    parts = [] if item.get("content") is None else read_content(item["content"], join_path(path, "content"), _part)
    calls_path = join_path(path, "tool_calls")
    for index, item_call in enumerate(as_list(item.get("tool_calls") or [], calls_path, "a list of tool calls")):
        call = read(_ToolCall, item_call, join_path(calls_path, index))
        arguments = read_arguments(item_call["function"].get("arguments"), join_path(calls_path, index, "function.arguments"))
        parts.append(ToolCallPart(call.id, call.function.name, arguments))
    return parts


def _part(part: object, path: str) -> Part:
    part = require_object(part, path)
    match part.get("type"):
        case "text" | "input_text" | "output_text":
            return TextPart(read(Text, part, path).text)
        case "tool_use":
            call = read(_ToolUse, part, path)
            name = "input" if part.get("arguments") is None else "arguments"
            arguments = read_arguments(part.get(name), join_path(path, name), "an object, or a string that holds JSON")
            return ToolCallPart(call.id, call.name, arguments)
        case "tool_result":
            result = read(_ToolResult, part, path)
            name = "content" if part.get("result") is None else "result"
            return ToolResultPart(result.tool_use_id, _result(part.get(name), join_path(path, name)), bool(result.is_error))
        case type_:
            return unknown_part(type_, path)


def _result(value: object, path: str) -> list[Any]:
    """Return a tool's result: text, parts, or any JSON that the tool returned (as text)."""
    match value:
        case None:
            return []
        case str():
            return [TextPart(value)]
        case [{"type": "text", "text": str()}, *_]:
            return [
                part if isinstance(part, TextPart) else TextPart(json_text(item))
                for part, item in zip(read_content(value, path, _part), value, strict=True)
            ]
        case _:
            return [TextPart(json_text(value))]


def _input(value: object) -> list[Message]:
    if isinstance(value, str) and value:
        return [Message(Role.USER, [TextPart(value)])]
    messages: list[Message] = []
    for index, item in enumerate(as_list(value, "input", "a string or a list of items")):
        _read_item(item, join_path("input", index), messages)
    if not messages:
        raise invalid("input", "must not be empty")
    return messages


def _read_item(item: Any, path: str, messages: list[Message]) -> None:
    match item:
        case {"type": "function_call"}:
            call = read(_CallItem, item, path)
            arguments = read_arguments(item.get("arguments"), join_path(path, "arguments"))
            add_to_assistant(messages, [ToolCallPart(call.call_id, call.name, arguments)])
        case {"type": "function_call_output"}:
            call_id = read(_OutputItem, item, path).call_id
            result = _result(item.get("output"), join_path(path, "output"))
            add_turn(messages, Role.USER, [ToolResultPart(call_id, result)])
        case {"type": str() as type_} if type_ != "message":
            messages.append(Message(Role.USER, [OpaquePart(type_, path)]))
        case _:
            _read_input_message(item, path, messages)


def _read_input_message(item: object, path: str, messages: list[Message]) -> None:
    role = read(_Message, item, path).role
    assert isinstance(item, dict)
    parts = read_content(item.get("content"), join_path(path, "content"), _part)
    # The client sends the assistant's turns as the developer's, because OpenAI accepts no input text from an assistant.
    is_assistant_turn = role == "developer" and any(message.role is Role.USER for message in messages)
    match role:
        case "assistant":
            add_to_assistant(messages, parts)
        case "developer" if is_assistant_turn:
            add_to_assistant(messages, parts)
        case "system" | "developer":
            messages.append(Message(Role.SYSTEM, parts))
        case "user":
            messages.append(Message(Role.USER, parts))
        case "tool":
            raise invalid(join_path(path, "role"), "must not be 'tool' here: a result is an item of type function_call_output")


def _read_tools(items: list[Any], request: GenerationRequest) -> None:
    for index, item in enumerate(items):
        path = join_path("tools", index)
        if isinstance(item, dict) and item.get("type") not in (None, "function", "custom"):
            request.opaque.append(opaque_part(item["type"], path))  # A tool that the vendor runs.
            continue
        if isinstance(item, dict) and "function" in item:
            item, path = item["function"], join_path(path, "function")
        tool = read(_Function, item, path)
        request.tools.append(Tool(tool.name, tool.description, tool.parameters or tool.input_schema or {}))


def _tool_choice(value: object) -> ToolChoice | None:
    """Read the tool choice. The original proxies passed it through, so it may be in OpenAI's or Anthropic's words."""
    match value:
        case None:
            return None
        case "auto" | {"type": "auto"}:
            return ToolChoice("auto")
        case "none" | {"type": "none"}:
            return ToolChoice("none")
        case "required" | "any" | {"type": "any"}:
            return ToolChoice("required")
        case {"function": {"name": str() as name}} | {"name": str() as name}:
            return ToolChoice("tool", name)
        case _:
            raise invalid("tool_choice", 'must be "auto", "none", "required" or an object that names a function')
