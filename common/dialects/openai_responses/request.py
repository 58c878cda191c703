"""What does the body of an OpenAI responses request ask for?

A conversation is a flat list of items: messages, calls, results of calls, reasoning. Consecutive items of the model are one
turn. Features that only OpenAI has are dropped if they are only an offer (a tool that runs at OpenAI; Codex always offers some)
or history (a search that OpenAI made). Other wires refuse those that the client asks for now.

Source: https://platform.openai.com/docs/api-reference/responses/create, and what Codex and the SDKs actually send.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import orjson
from pydantic import Field

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    ReasoningPart,
    ResponseFormat,
    Role,
    TextPart,
    ToolCallPart,
)
from common.dialects.openai_responses.compaction import ask_for_summary, asks_for_compaction, summary_in
from common.dialects.openai_responses.tools import flat_name, read_tool_choice, read_tools, tool_lists
from common.dialects.openai_responses.wrapped_reasoning import unwrap
from common.dialects.shared.parts import (
    Refusal,
    Text,
    add_to_assistant,
    add_turn,
    caches_marked_only,
    json_text,
    mark_part,
    parse_effort,
    read_audio,
    read_cache_mark,
    read_content,
    read_file,
    read_file_url,
    read_image,
    requested_fields,
    require_object,
    tool_result,
    unknown_part,
)
from common.dialects.shared.reading import Shape, invalid, join_path, opaque_part, read

# Fields that change the answer and that no other family has. Each maps to its neutral values, which request nothing.
_OPAQUE_FIELDS: dict[str, tuple[object, ...]] = {"conversation": (), "prompt": (), "top_logprobs": (0,)}
# Hints that no other family has; without them the answer is the same. Each maps to its neutral values.
_DROPPED_FIELDS: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "context_management": ([],),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}
_LOGPROBS = "message.output_text.logprobs"
# Items of the model, or of a tool that ran at OpenAI. Others are the client's words.
_MODELS_ITEMS = {
    "compaction",
    "compaction_summary",
    "ghost_snapshot",
    "mcp_approval_request",
    "mcp_list_tools",
    "program",
    "program_output",
    "tool_search_call",
    "tool_search_output",
}
# The fields of a call that are no arguments.
_CALL_FIELDS = {"type", "id", "call_id", "status", "caller", "created_by"}


class Body(Shape):
    model: str = Field(min_length=1)
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    tools: list[Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class _Message(Shape):
    role: Literal["system", "developer", "user", "assistant"]


class _Call(Shape):
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    namespace: str | None = None


class _CustomCall(Shape):
    call_id: str = Field(min_length=1)
    name: str
    input: str
    namespace: str | None = None


class _Output(Shape):
    call_id: str = Field(min_length=1)


class _Summary(Shape):
    text: str


class _ReasoningItem(Shape):
    summary: list[_Summary] | None = None
    content: list[_Summary] | None = None
    encrypted_content: str | None = None


class _Image(Shape):
    image_url: str | None = None
    detail: str | None = None


class _File(Shape):
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None
    filename: str | None = None


class _Audio(Shape):
    data: str
    format: str


class _Reasoning(Shape):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # The older name of ``summary``.


class _JsonSchema(Shape):
    # Not named "schema": that would hide a pydantic method.
    schema_: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    strict: bool | None = None


def parse(body: Mapping[str, Any]) -> GenerationRequest:
    fields = read(Body, dict(body))
    instructions = [Message(Role.SYSTEM, [TextPart(fields.instructions)])] if fields.instructions else []
    request = GenerationRequest(
        model=fields.model,
        messages=instructions + _input(body),
        # A background response always runs as a stream: its events are kept for later readers.
        stream=bool(fields.stream or fields.background),
        parallel_tool_calls=fields.parallel_tool_calls,
        max_output_tokens=fields.max_output_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        reasoning=_reasoning(fields.reasoning),
        end_user=fields.user or fields.safety_identifier,
        prompt_cache_key=fields.prompt_cache_key,
        cache_mark=read_cache_mark(body),
        caches_marked_only=caches_marked_only(body),
        opaque=[OpaquePart(name, name) for name in requested_fields(body, _OPAQUE_FIELDS)],
        dropped=requested_fields(body, _DROPPED_FIELDS),
        names={"response_format": "text.format"},
    )
    if _LOGPROBS in (fields.include or []):
        request.opaque.append(OpaquePart(_LOGPROBS, "include"))
    if (fields.text or {}).get("verbosity") not in (None, "medium"):
        request.dropped.append("text.verbosity")
    for path, items in tool_lists(body):
        read_tools(items, path, request)
    read_tool_choice(body.get("tool_choice"), request)
    _read_format((fields.text or {}).get("format"), request)
    if asks_for_compaction(body):
        ask_for_summary(request)
    return request


def _reasoning(value: dict[str, Any] | None) -> Reasoning | None:
    fields = read(_Reasoning, value or {}, "reasoning")
    is_shown = (fields.summary or fields.generate_summary) not in (None, "none")
    reasoning = parse_effort(fields.effort)
    if reasoning is None:
        return Reasoning() if is_shown else None
    return replace(reasoning, is_shown=is_shown)


def _input(body: Mapping[str, Any]) -> list[Message]:
    value = body.get("input")
    if value is None:
        # A prompt or conversation that is stored at OpenAI is an input too; no other vendor has it.
        for name in ("prompt", "conversation"):
            if body.get(name) is not None:
                return [Message(Role.USER, [OpaquePart(name, name)])]
        raise invalid("input", "is required")
    if not isinstance(value, str | list):
        raise invalid("input", "must be a string or a list of items")
    if not value:
        raise invalid("input", "must not be empty")
    messages = [Message(Role.USER, [TextPart(value)])] if isinstance(value, str) else _messages(value)
    if not messages:
        raise invalid("input", "must not consist of empty items only")
    return messages


def _messages(items: list[Any]) -> list[Message]:
    messages: list[Message] = []
    for index, item in enumerate(items):
        path = join_path("input", index)
        if not isinstance(item, dict):
            raise invalid(path, "must be an item: an object")
        match item_type(item):
            case "message":
                _add_message(messages, item, path)
            case "function_call":
                add_to_assistant(messages, [_call(item, path)])
            case "custom_tool_call":
                add_to_assistant(messages, [_custom_call(item, path)])
            case str() as type_ if type_.endswith("_call_output") and "call_id" in item:
                add_turn(messages, Role.USER, [_result(item, path)])
            case str() as type_ if _is_call_of_client(type_, item):
                add_to_assistant(messages, [_other_call(type_, item)])
            case "additional_tools":
                pass  # See ``_tool_lists``.
            case "reasoning":
                if reasoning := _reasoning_part(item, path):
                    add_to_assistant(messages, [reasoning])
            case "compaction_trigger" if index == len(items) - 1:
                pass  # See ``ask_for_summary``.
            case "compaction" if summary := summary_in(item):
                messages.append(Message(Role.USER, [TextPart(summary)]))
            case str() as type_ if type_.endswith("_call") or type_ in _MODELS_ITEMS:
                add_to_assistant(messages, [OpaquePart(type_, path)])
            case type_:
                messages.append(Message(Role.USER, [opaque_part(type_, path)]))
    return messages


def item_type(item: dict[str, Any]) -> object:
    """Return an item's type, which messages and references may leave out."""
    type_ = item.get("type")
    return type_ if type_ is not None else "item_reference" if item.keys() - {"type"} == {"id"} else "message"


def _add_message(messages: list[Message], item: dict[str, Any], path: str) -> None:
    role = read(_Message, item, path).role
    parts = read_content(item.get("content"), join_path(path, "content"), _part)
    if role != "assistant":
        messages.append(Message(Role.USER if role == "user" else Role.SYSTEM, parts))
    elif _ends_in_text(messages):
        messages.append(Message(Role.ASSISTANT, parts))  # Two messages must not become one text.
    elif parts:
        add_to_assistant(messages, parts)


def _ends_in_text(messages: list[Message]) -> bool:
    """Whether the assistant's text is the last thing that other vendors get."""
    parts = messages[-1].parts if messages and messages[-1].role is Role.ASSISTANT else []
    return isinstance(next((part for part in reversed(parts) if not isinstance(part, OpaquePart)), None), TextPart)


def _call(item: dict[str, Any], path: str) -> Part:
    call = read(_Call, item, path)
    return ToolCallPart(call.call_id, flat_name(call.namespace, call.name), call.arguments or "{}")


def _custom_call(item: dict[str, Any], path: str) -> Part:
    """Return a call whose input is no JSON. In the history it is a call like every other."""
    call = read(_CustomCall, item, path)
    return ToolCallPart(call.call_id, flat_name(call.namespace, call.name), orjson.dumps({"input": call.input}).decode())


def _is_call_of_client(type_: str, item: dict[str, Any]) -> bool:
    """Whether the client answers this call. Calls of tools that run at OpenAI have only an ``id``."""
    call_id = item.get("call_id")
    return type_.endswith("_call") and type_ not in _MODELS_ITEMS and isinstance(call_id, str) and call_id != ""


def _other_call(type_: str, item: dict[str, Any]) -> Part:
    """Return the call of a tool that OpenAI defines and the client runs, such as a shell."""
    arguments = {name: value for name, value in item.items() if name not in _CALL_FIELDS}
    return ToolCallPart(item["call_id"], type_.removesuffix("_call"), json_text(arguments))


def _result(item: dict[str, Any], path: str) -> Part:
    call_id, output = read(_Output, item, path).call_id, item.get("output")
    if isinstance(output, dict) and item["type"] != "function_call_output":
        output = [output]  # A computer's screenshot.
    elif output is None:
        raise invalid(join_path(path, "output"), "is required")
    return tool_result(call_id, output, join_path(path, "output"), _part)


def _reasoning_part(item: dict[str, Any], path: str) -> Part | None:
    fields = read(_ReasoningItem, item, path)
    part = unwrap(fields.encrypted_content or "")
    if part.redacted is None:
        part.text = "\n\n".join(summary.text for summary in fields.summary or fields.content or [])
    return part if part != ReasoningPart() else None


def _part(part: object, path: str) -> Part:
    part = require_object(part, path)
    return mark_part(_unmarked_part(part, path), part)


def _unmarked_part(part: dict[str, Any], path: str) -> Part:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return TextPart(read(Text, part, path).text)
        case "refusal":
            return TextPart(read(Refusal, part, path).refusal)
        case "input_image" | "computer_screenshot" as type_:
            image = read(_Image, part, path)
            return read_image(image.image_url or "", image.detail, type_, path)
        case "input_file":
            return _file(read(_File, part, path), path)
        case "input_audio":
            audio = read(_Audio, part.get("input_audio"), join_path(path, "input_audio"))
            return read_audio(audio.data, audio.format, path)
        case type_:
            return unknown_part(type_, path)


def _file(file: _File, path: str) -> Part:
    """Source: https://developers.openai.com/api/docs/guides/file-inputs"""
    if file.file_data:
        return read_file(file.file_data, file.filename, path)
    if file.file_url:
        return read_file_url(file.file_url, file.filename, "input_file", path)
    if file.file_id:
        return DocumentPart("application/pdf", file_id=file.file_id, files_at="openai", name=file.filename, path=path)
    return OpaquePart("input_file", path)


def _read_format(value: object, request: GenerationRequest) -> None:
    match value:
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            request.response_format = ResponseFormat()
        case {"type": "json_schema"}:
            schema = read(_JsonSchema, value, "text.format")
            request.response_format = ResponseFormat(schema.schema_, schema.name, schema.strict)
        case {"type": str() as type_}:
            request.opaque.append(OpaquePart(type_, "text.format"))
        case _:
            raise invalid("text.format", "must be an object with a type")
