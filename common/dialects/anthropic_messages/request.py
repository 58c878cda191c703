"""What does the body of an Anthropic messages request ask for?

Source: https://docs.anthropic.com/en/api/messages, and what Claude Code and the SDKs actually send.
"""

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import Field

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    ReasoningPart,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
)
from common.dialects.shared.parts import (
    Text,
    mark_part,
    read_base64,
    read_cache_mark,
    read_content,
    read_file_url,
    requested_fields,
    require_object,
    tool_result,
    unknown_part,
)
from common.dialects.shared.reading import Shape, invalid, join_path, opaque_part, read

# Fields that change the answer and that no other family has. Each maps to its neutral values, which request nothing.
_OPAQUE_FIELDS: dict[str, tuple[object, ...]] = {"mcp_servers": ([],), "container": (), "compaction": (), "thread": ()}
# Fields that only Anthropic has and that are not essential for the answer.
_DROPPED_FIELDS = (
    "billing_policy",
    "cache_control",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
)
_BILLING_LINE = "x-anthropic-billing-header"
_BLOCKS = "a string or a list of content blocks"  # What content must be.
_NAMES = {
    "max_output_tokens": "max_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
}


class Body(Shape):
    model: str = Field(min_length=1)
    messages: list[Any] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[Any] | None = None
    metadata: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # The name of output_config.format during its beta.


class _Message(Shape):
    # Source of "system": https://platform.claude.com/docs/build-with-claude/mid-conversation-system-messages
    role: Literal["user", "assistant", "system"]


class _Thinking(Shape):
    thinking: str
    signature: str | None = None


class _RedactedThinking(Shape):
    data: str


class _ToolUse(Shape):
    id: str
    name: str
    input: dict[str, Any] | None = None


class _ToolResult(Shape):
    tool_use_id: str
    is_error: bool | None = None


class _Base64Source(Shape):
    media_type: str
    data: str


class _UrlSource(Shape):
    url: str


class _FileSource(Shape):
    file_id: str


class _TextSource(Shape):
    data: str


class _Document(Shape):
    title: str | None = None


class _SearchResult(Shape):
    source: str
    title: str
    content: list[Text]


class _Tool(Shape):
    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class _ToolChoice(Shape):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingConfig(Shape):
    type: str
    budget_tokens: int | None = Field(None, ge=1)
    display: str | None = None


class _Format(Shape):
    # Not named "schema": that would hide a pydantic method.
    schema_: dict[str, Any] = Field(alias="schema")


def parse(body: Mapping[str, Any]) -> GenerationRequest:
    fields = read(Body, dict(body))
    end_user = (fields.metadata or {}).get("user_id")
    effort = _effort(fields)
    request = GenerationRequest(
        model=fields.model,
        messages=_system(body.get("system")) + _messages(fields.messages),
        stream=bool(fields.stream),
        max_output_tokens=fields.max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        stop=fields.stop_sequences or [],
        reasoning=_reasoning(body.get("thinking"), effort),
        end_user=end_user if isinstance(end_user, str) else None,
        cache_mark=read_cache_mark(body),
        names=dict(_NAMES),
        opaque=[OpaquePart(name, name) for name in requested_fields(body, _OPAQUE_FIELDS)],
        dropped=requested_fields(body, dict.fromkeys(_DROPPED_FIELDS, ("auto",))),
    )
    request.names["reasoning"] = "output_config.effort" if request.reasoning and request.reasoning.effort else "thinking"
    if effort is not None and not (request.reasoning and request.reasoning.effort):
        request.dropped.append("output_config.effort")
    _read_tool_choice(body.get("tool_choice"), request)
    _read_tools(fields.tools or [], request)
    _read_format(fields, request)
    return request


def _effort(fields: Body) -> object:
    """Return the effort of the last message that sets one, otherwise the request's.

    Source: https://platform.claude.com/docs/build-with-claude/effort-per-message
    """
    within = [item.get("output_config") for item in fields.messages if isinstance(item, dict) and item.get("role") == "system"]
    efforts = [config.get("effort") for config in (fields.output_config, *within) if isinstance(config, dict)]
    return next((effort for effort in reversed(efforts) if effort is not None), None)


def _reasoning(thinking: object, effort: object) -> Reasoning | None:
    if thinking is None:
        return Reasoning(effort=effort, is_shown=False) if isinstance(effort, str) else None
    config = read(_ThinkingConfig, thinking, "thinking")
    if config.type in ("disabled", "between_tools"):  # The latter is the former of newer models.
        return Reasoning(enabled=False)
    is_shown = config.display != "omitted"
    if config.budget_tokens is None and isinstance(effort, str):
        # "adaptive": the model decides, and its effort is only a hint. Claude Code always sends both, and many models of other
        # families refuse a request with an effort.
        return Reasoning(effort=effort, effort_is_hint=True, is_shown=is_shown)
    return Reasoning(budget_tokens=config.budget_tokens, is_shown=is_shown)


def _system(value: object) -> list[Message]:
    if value is None:
        return []
    parts = _content(value, "system")
    if parts and isinstance(parts[0], TextPart) and parts[0].text.startswith(_BILLING_LINE):
        parts = _without_billing_line(parts[0], parts[1:])
    return [Message(Role.SYSTEM, parts)] if parts else []


def _without_billing_line(first: TextPart, others: list[Part]) -> list[Part]:
    """Return a system prompt without Claude Code's first line, which has another hash in each request.

    It means something to Anthropic alone, which gets the body's bytes. In front of another vendor's prompt it would end the
    cached prefix after some characters.
    """
    rest = first.text.partition("\n")[2].lstrip("\n")
    return [TextPart(rest, first.cache_mark), *others] if rest else others


def _messages(items: list[Any]) -> list[Message]:
    messages = []
    for index, item in enumerate(items):
        path = join_path("messages", index)
        role = read(_Message, item, path).role
        parts = _content(item.get("content"), join_path(path, "content"))
        if parts or role != "system":  # A system message without content only sets an effort.
            messages.append(Message(Role(role), parts))
    if not messages:
        raise invalid("messages", "must have a message of the user")
    return messages


def _content(value: object, path: str) -> list[Part]:
    return [] if value == "" else read_content(value, path, _part, _BLOCKS)


def _part(part: object, path: str) -> Part:
    part = require_object(part, path, "a content block")
    return mark_part(_unmarked_part(part, path), part)


def _unmarked_part(part: dict[str, Any], path: str) -> Part:
    match part.get("type"):
        case "text":
            return TextPart(read(Text, part, path).text)
        case "image":
            return _image(part.get("source"), path)
        case "document":
            return _document(part, path)
        case "search_result" if all(_is_text(block) for block in part.get("content") or []):
            found = read(_SearchResult, part, path)
            return TextPart("\n\n".join([f"{found.title}\n{found.source}", *(block.text for block in found.content)]))
        case "thinking":
            thinking = read(_Thinking, part, path)
            # We send an empty signature if the model signs nothing.
            return ReasoningPart(thinking.thinking, thinking.signature or None)
        case "redacted_thinking":
            return ReasoningPart(redacted=read(_RedactedThinking, part, path).data)
        case "tool_use":
            call = read(_ToolUse, part, path)
            return ToolCallPart(call.id, call.name, orjson.dumps(call.input or {}).decode())
        case "tool_result":
            result = read(_ToolResult, part, path)
            return tool_result(
                result.tool_use_id,
                part.get("content") or None,
                join_path(path, "content"),
                _part,
                _BLOCKS,
                is_error=bool(result.is_error),
            )
        case type_:
            return unknown_part(type_, path)


def _image(source: object, path: str) -> Part:
    match source:
        case {"type": "base64"}:
            image = read(_Base64Source, source, join_path(path, "source"))
            return ImagePart(data=image.data, media_type=image.media_type, path=path)
        case {"type": "url"}:
            return ImagePart(url=read(_UrlSource, source, join_path(path, "source")).url, path=path)
        case {"type": str()}:
            return OpaquePart("image", path)  # A file uploaded to the vendor.
        case _:
            raise invalid(join_path(path, "source"), "must be an object with a type")


def _document(part: dict[str, Any], path: str) -> Part:
    """Source: https://platform.claude.com/docs/en/build-with-claude/pdf-support"""
    name, source, source_path = read(_Document, part, path).title, part.get("source"), join_path(path, "source")
    match source:
        case {"type": "base64"}:
            file = read(_Base64Source, source, source_path)
            return read_base64(file.data, file.media_type.lower(), name, path)
        case {"type": "text"}:
            return DocumentPart("text/plain", text=read(_TextSource, source, source_path).data, name=name, path=path)
        case {"type": "content", "content": str() as text}:
            return DocumentPart("text/plain", text=text, name=name, path=path)
        case {"type": "content", "content": [*blocks]} if all(_is_text(block) for block in blocks):
            text = "\n\n".join(block["text"] for block in blocks)
            return DocumentPart("text/plain", text=text, name=name, path=path)
        case {"type": "url"}:
            return read_file_url(read(_UrlSource, source, source_path).url, name, "document", path)
        case {"type": "file"}:
            file_id = read(_FileSource, source, source_path).file_id
            return DocumentPart("application/pdf", file_id=file_id, files_at="anthropic", name=name, path=path)
        case {"type": str()}:
            return OpaquePart("document", path)
        case _:
            raise invalid(source_path, "must be an object with a type")


def _is_text(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _read_tools(items: list[Any], request: GenerationRequest) -> None:
    vendor_tools: list[OpaquePart] = []
    for index, item in enumerate(items):
        path = join_path("tools", index)
        if isinstance(item, dict) and item.get("type") not in (None, "custom"):
            vendor_tools.append(opaque_part(item.get("name") or item["type"], path))
            continue
        tool = read(_Tool, item, path)
        request.tools.append(Tool(tool.name, tool.description, tool.input_schema, tool.strict, read_cache_mark(item)))
    choice = request.tool_choice or ToolChoice("auto")
    # Tools that run at the vendor, or that its models were trained on. Another vendor can ignore a tool that is only offered
    # (agents offer many), but not a tool that must be called.
    request.opaque += [
        part for part in vendor_tools if choice.name == part.type or (choice.mode == "required" and not request.tools)
    ]
    request.dropped += [part.path for part in vendor_tools]


def _read_tool_choice(value: object, request: GenerationRequest) -> None:
    if value is None:
        return
    choice = read(_ToolChoice, value, "tool_choice")
    match choice.type:
        case "tool":
            if not choice.name:
                raise invalid("tool_choice.name", "is required if the type is tool")
            request.tool_choice = ToolChoice("tool", choice.name)
        case "any":
            request.tool_choice = ToolChoice("required")
        case "auto" | "none" as mode:
            request.tool_choice = ToolChoice(mode)
    if choice.disable_parallel_tool_use is not None:
        request.parallel_tool_calls = not choice.disable_parallel_tool_use


def _read_format(fields: Body, request: GenerationRequest) -> None:
    config = fields.output_config or {}
    path, value = (
        ("output_config.format", config["format"]) if config.get("format") else ("output_format", fields.output_format)
    )
    match value:
        case None:
            pass
        case {"type": "json_schema"}:
            request.response_format = ResponseFormat(read(_Format, value, path).schema_)
        case {"type": str() as type_}:
            request.opaque.append(OpaquePart(type_, path))
        case _:
            raise invalid(path, "must be an object with a type")
