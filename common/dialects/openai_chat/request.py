"""What does the body of an OpenAI chat completions request ask for?

Source: https://platform.openai.com/docs/api-reference/chat/create, and what clients of compatible servers also send.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    Message,
    OpaquePart,
    Part,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
)
from common.dialects.openai_chat.call_signatures import add_signatures
from common.dialects.shared.custom_tools import custom_arguments, custom_function
from common.dialects.shared.openai_words import REASONING_FIELDS
from common.dialects.shared.parts import (
    Refusal,
    Text,
    add_turn,
    allow_tools,
    caches_marked_only,
    mark_part,
    parse_effort,
    parse_stop,
    read_arguments,
    read_audio,
    read_cache_mark,
    read_content,
    read_file,
    read_image,
    requested_fields,
    require_object,
    tool_result,
    unknown_part,
)
from common.dialects.shared.reading import Shape, as_list, invalid, join_path, opaque_part, read

# Fields that change the answer and that no other family has. Each maps to its neutral values, which request nothing.
_OPAQUE_FIELDS: dict[str, tuple[object, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": ([], ["text"]),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
# Hints that no other family has; without them the answer is the same. Each maps to its neutral values.
_DROPPED_FIELDS: dict[str, tuple[object, ...]] = {
    "metadata": ({},),
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
}


class Body(Shape):
    model: str = Field(min_length=1)
    messages: list[Any] = Field(min_length=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None  # The name of ``tools`` before 2023-11.
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # Not OpenAI's; compatible servers support it.
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = Field(None, ge=1, le=128)
    reasoning_effort: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class _Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]


class _ToolMessage(Shape):
    tool_call_id: str


class _FunctionMessage(Shape):
    name: str


class _Function(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _FunctionTool(Shape):
    function: _Function


class _Call(Shape):
    name: str


class _ToolCall(Shape):
    id: str
    function: _Call


class _NamedChoice(Shape):
    name: str


class _ImageUrl(Shape):
    url: str
    detail: str | None = None


class _File(Shape):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class _Audio(Shape):
    data: str
    format: str


class _Custom(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    format: dict[str, Any] | None = None


class _CustomTool(Shape):
    custom: _Custom


class _CustomCall(Shape):
    name: str
    input: str = ""


class _CustomToolCall(Shape):
    id: str
    custom: _CustomCall


class _AllowedTools(Shape):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class _JsonSchema(Shape):
    # Not named "schema": that would hide a pydantic method.
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    name: str | None = None
    strict: bool | None = None


def parse(body: Mapping[str, Any]) -> GenerationRequest:
    fields = read(Body, dict(body))
    request = GenerationRequest(
        model=fields.model,
        messages=_messages(fields.messages),
        stream=bool(fields.stream),
        include_usage=bool((fields.stream_options or {}).get("include_usage")),
        parallel_tool_calls=fields.parallel_tool_calls,
        max_output_tokens=fields.max_completion_tokens or fields.max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        stop=parse_stop(body.get("stop")),
        seed=fields.seed,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        choices=fields.n or 1,
        reasoning=parse_effort(fields.reasoning_effort),
        end_user=fields.user or fields.safety_identifier,
        prompt_cache_key=fields.prompt_cache_key,
        cache_mark=read_cache_mark(body),
        caches_marked_only=caches_marked_only(body),
        opaque=[OpaquePart(name, name) for name in requested_fields(body, _OPAQUE_FIELDS)],
        dropped=requested_fields(body, _DROPPED_FIELDS),
        names={
            "reasoning": "reasoning_effort",
            "max_output_tokens": "max_completion_tokens" if fields.max_completion_tokens else "max_tokens",
        },
    )
    _read_tools(fields, request)
    _read_tool_choice(body, request)
    _read_response_format(body.get("response_format"), request)
    return request


def _messages(items: list[Any]) -> list[Message]:
    messages: list[Message] = []
    legacy_call_id = ""
    for index, item in enumerate(items):
        path = join_path("messages", index)
        match read(_Message, item, path).role:
            case "system" | "developer":
                messages.append(Message(Role.SYSTEM, _content(item, path)))
            case "user":
                messages.append(Message(Role.USER, _content(item, path)))
            case "assistant":
                # A legacy call has no id. Its result is the next function message, so we create an id that pairs them.
                legacy_call_id = f"call_legacy_{index}" if item.get("function_call") is not None else legacy_call_id
                messages.append(Message(Role.ASSISTANT, _assistant(item, path, legacy_call_id)))
            case "tool":
                add_turn(messages, Role.USER, [_result(read(_ToolMessage, item, path).tool_call_id, item, path)])
            case "function":
                read(_FunctionMessage, item, path)
                add_turn(messages, Role.USER, [_result(legacy_call_id, item, path)])
    return messages


def _content(item: dict[str, Any], path: str) -> list[Part]:
    """Return a message's content. A mark of the message itself, as LiteLLM and the AI SDK send it, is one of its last part."""
    parts = read_content(item.get("content"), join_path(path, "content"), _part)
    if parts:
        mark_part(parts[-1], item)
    return parts


def _result(call_id: str, item: dict[str, Any], path: str) -> Part:
    return mark_part(tool_result(call_id, item.get("content"), join_path(path, "content"), _part), item)


def _assistant(item: dict[str, Any], path: str, legacy_call_id: str) -> list[Part]:
    parts: list[Part] = []
    # Content is null next to tool calls. Some clients also store null for an empty answer.
    if item.get("content") is not None:
        parts.extend(_content(item, path))
    if isinstance(item.get("refusal"), str) and item["refusal"]:
        parts.append(TextPart(item["refusal"]))
    if item.get("audio") is not None:
        parts.append(OpaquePart("audio", join_path(path, "audio")))
    reasoning = next(filter(None, map(item.get, REASONING_FIELDS)), None)
    calls: list[Any] = []
    if item.get("tool_calls") is not None:
        calls = as_list(item["tool_calls"], join_path(path, "tool_calls"), "a list of tool calls")
    read_calls = [(call, _tool_call(call, join_path(path, "tool_calls", index))) for index, call in enumerate(calls)]
    parts = add_signatures(parts, read_calls, reasoning if isinstance(reasoning, str) else "")
    if item.get("function_call") is not None:
        call = item["function_call"]
        name = read(_Call, call, join_path(path, "function_call")).name
        arguments = read_arguments(call.get("arguments"), join_path(path, "function_call.arguments"))
        parts.append(ToolCallPart(legacy_call_id, name, arguments))
    return parts


def _tool_call(call: object, path: str) -> Part:
    if isinstance(call, dict) and call.get("type") == "custom":
        # A call whose input is no JSON. In the history it is a call like every other.
        custom = read(_CustomToolCall, call, path)
        return ToolCallPart(custom.id, custom.custom.name, custom_arguments(custom.custom.input))
    if isinstance(call, dict) and call.get("type", "function") != "function":
        return opaque_part(call["type"], path)
    fields = read(_ToolCall, call, path)
    assert isinstance(call, dict)
    arguments = read_arguments(call["function"].get("arguments"), join_path(path, "function.arguments"))
    return ToolCallPart(fields.id, fields.function.name, arguments)


def _part(part: object, path: str) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    part = require_object(part, path)
    return mark_part(_unmarked_part(part, path), part)


def _unmarked_part(part: dict[str, Any], path: str) -> Part:
    match part.get("type"):
        case "text":
            return TextPart(read(Text, part, path).text)
        case "refusal":
            return TextPart(read(Refusal, part, path).refusal)
        case "image_url":
            return _image(part.get("image_url"), join_path(path, "image_url"))
        case "file":
            return _file(part.get("file"), path)
        case "input_audio":
            audio = read(_Audio, part.get("input_audio"), join_path(path, "input_audio"))
            return read_audio(audio.data, audio.format, path)
        case type_:
            return unknown_part(type_, path)


def _image(value: object, path: str) -> Part:
    image = read(_ImageUrl, {"url": value} if isinstance(value, str) else value, path)
    return read_image(image.url, image.detail, "image_url", path)


def _file(value: object, path: str) -> Part:
    file = read(_File, value, join_path(path, "file"))
    if file.file_data:
        return read_file(file.file_data, file.filename, path)
    if file.file_id:
        return DocumentPart("application/pdf", file_id=file.file_id, files_at="openai", name=file.filename, path=path)
    return OpaquePart("file", path)


def custom_tools(body: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a parsed body's custom tools."""
    return frozenset(item["custom"]["name"] for item in body.get("tools") or [] if item.get("type") == "custom")


def _read_tools(fields: Body, request: GenerationRequest) -> None:
    for index, item in enumerate(fields.tools or []):
        path = join_path("tools", index)
        if isinstance(item, dict) and item.get("type") == "custom":
            custom = read(_CustomTool, item, path).custom
            request.tools.append(custom_function(custom.name, custom.description, custom.format))
            continue
        if isinstance(item, dict) and item.get("type", "function") != "function":
            request.opaque.append(opaque_part(item["type"], path))
            continue
        tool = _tool(read(_FunctionTool, item, path).function)
        tool.cache_mark = read_cache_mark(item) or read_cache_mark(item["function"])
        request.tools.append(tool)
    for index, item in enumerate(fields.functions or []):
        request.tools.append(_tool(read(_Function, item, join_path("functions", index))))


def _tool(function: _Function) -> Tool:
    return Tool(function.name, function.description, function.parameters or {}, function.strict)


def _read_tool_choice(body: Mapping[str, Any], request: GenerationRequest) -> None:
    field = "tool_choice" if body.get("tool_choice") is not None else "function_call"
    match body.get(field):
        case None:
            pass
        case "auto":
            request.tool_choice = ToolChoice("auto")
        case "none":
            request.tool_choice = ToolChoice("none")
        case "required" | "any":  # "any" is Mistral's word.
            request.tool_choice = ToolChoice("required")
        case {"type": "custom", "custom": {"name": str() as name}}:
            request.tool_choice = ToolChoice("tool", name)
        case {"function": function}:
            name = read(_NamedChoice, function, join_path(field, "function")).name
            request.tool_choice = ToolChoice("tool", name)
        case {"name": str() as name}:  # The legacy function_call; some clients send the same as tool_choice.
            request.tool_choice = ToolChoice("tool", name)
        case {"type": "allowed_tools", "allowed_tools": value}:
            allowed = read(_AllowedTools, value, join_path(field, "allowed_tools"))
            allow_tools(request, allowed.mode, {_tool_name(tool) for tool in allowed.tools}, field)
        case {"type": str() as type_}:
            request.opaque.append(OpaquePart(type_, field))
        case _:
            raise invalid(field, 'must be "auto", "none", "required" or an object that names a function')


def _tool_name(tool: dict[str, Any]) -> object:
    function = tool.get("function") or tool.get("custom")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


def _read_response_format(value: object, request: GenerationRequest) -> None:
    match value:
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            request.response_format = ResponseFormat()
        case {"type": "json_schema", **rest}:
            schema = read(_JsonSchema, rest.get("json_schema"), "response_format.json_schema")
            if schema.schema_ is None:
                raise invalid("response_format.json_schema.schema", "is required")
            request.response_format = ResponseFormat(schema.schema_, schema.name, schema.strict)
        case {"type": str() as type_}:
            request.opaque.append(OpaquePart(type_, "response_format"))
        case _:
            raise invalid("response_format", "must be an object with a type")
