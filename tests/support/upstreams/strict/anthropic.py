"""What does Anthropic refuse? The fields are those of its own SDK, the models' differences from the pages "What's new in"."""

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from anthropic.types.beta import message_create_params

from tests.support.upstreams.strict.rules import (
    ByModel,
    Call,
    Complaint,
    Rule,
    allows_type,
    objects_in,
    unknown_field,
    value_for,
)

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

# https://platform.claude.com/docs/en/about-claude/models/overview: "max output".
_OUTPUT_TOKENS: ByModel[int] = [
    (r"claude-3-haiku|claude-3-opus", 4_096),
    (r"claude-3-5", 8_192),
    (r"claude-opus-4-(0|1|2)", 32_000),
    (r"claude-(sonnet|haiku|opus)-4-5|claude-sonnet-4-(0|2)|claude-3-7", 64_000),
    (r"claude-", 128_000),
]
_NEWER = r"claude-(opus-4-[78]|(opus|sonnet|haiku)-5|fable|mythos)"  # Adaptive thinking only, no sampling fields.
_5_5 = r"claude-((opus|sonnet)-5-5|(fable|mythos)-5-1)"

# https://platform.claude.com/docs/en/build-with-claude/effort: the list of models, and which know "xhigh" and "max".
_EFFORTS: ByModel[tuple[str, ...]] = [
    (r"claude-opus-4-5", ("low", "medium", "high")),
    (r"claude-(opus|sonnet)-4-6", ("low", "medium", "high", "max")),
    (_NEWER, ("low", "medium", "high", "xhigh", "max")),
]
# What `thinking.type` may be.
# "adaptive" came with 4.6; "enabled" is gone since Opus 4.7: https://platform.claude.com/docs/en/models/sonnet-5/migration-guide
# Opus 5.5 cannot be kept from thinking: https://platform.claude.com/docs/en/models/opus-5-5/whats-new-opus-5-5
# Sonnet 5.5 has "between_tools" instead: https://platform.claude.com/docs/en/models/sonnet-5-5/whats-new-sonnet-5-5
_THINKING: ByModel[tuple[str, ...]] = [
    (r"claude-sonnet-5-5", ("adaptive", "between_tools")),
    (r"claude-(opus-5-5|(fable|mythos))", ("adaptive",)),
    (_NEWER, ("adaptive", "disabled")),
    (r"claude-(opus|sonnet)-4-6", ("adaptive", "enabled", "disabled")),
    (r"claude-(3-7|(opus|sonnet|haiku)-4)", ("enabled", "disabled")),
    (r"claude-", ("disabled",)),
]
# A system message after a user's: https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages
# Sonnet 5: LangChain's profiles (@langchain/anthropic 1.5.13) say that it takes them, gproxy-transform that it does not.
_SYSTEM_WITHIN = r"claude-(opus-4-8|(opus|sonnet|haiku)-5|fable|mythos)"


def _blocks(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every block with its place, also those inside results of tools."""
    for place, block in _system_blocks(call):
        yield place, block
    for index, message in enumerate(call.items("messages")):
        for position, block in enumerate(_content(message)):
            yield f"messages.{index}.content.{position}", block
            inner = block.get("content")
            for number, each in enumerate(inner if isinstance(inner, list) else []):
                yield f"messages.{index}.content.{position}.{block.get('type')}.content.{number}", each


def _system_blocks(call: Call) -> list[tuple[str, dict[str, Any]]]:
    return [(f"system.{index}", block) for index, block in enumerate(call.items("system"))]


def _content(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _fields(call: Call) -> Complaint | None:
    """https://github.com/home-assistant/core/issues/147760 shows the words of such a refusal."""
    name = unknown_field(call.body, _KNOWN_FIELDS)
    return Complaint(f"{name}: Extra inputs are not permitted") if name else None


# The SDK no longer has the sampling fields; the API has them in its older version, see `_version`.
_SAMPLING = ("temperature", "top_p", "top_k")
_KNOWN_FIELDS = {*typing.get_type_hints(message_create_params.MessageCreateParamsBase), *_SAMPLING, "stream"} - {"betas"}


def _version(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/api/versioning; 2026-10-21 has no sampling fields:

    https://codersera.com/blog/anthropic-api-2026-10-21-sdk-migration-guide-2026/
    """
    version = call.headers.get("anthropic-version")
    if not version:
        return Complaint("anthropic-version: header is required")
    for field in _SAMPLING:
        if version == "2026-10-21" and field in call.body:
            return Complaint(f"{field}: Extra inputs are not permitted")
    return None


def _max_tokens(call: Call) -> Complaint | None:
    tokens = call.body.get("max_tokens")
    if tokens is None:
        return Complaint("max_tokens: Field required")
    most = value_for(call.model, _OUTPUT_TOKENS, 1 << 30)
    if tokens > most:
        words = f"max_tokens: {tokens} > {most}, which is the maximum allowed number of output tokens for {call.model}"
        return Complaint(words)
    return None


def _roles(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/api/messages: two of one role in a row are joined, but the first is the user's.

    Words of a refusal: https://github.com/letta-ai/letta-code/issues/3989
    """
    messages = call.items("messages")
    if not messages:
        return Complaint("messages: at least one message is required")
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "system":
            if not re.match(_SYSTEM_WITHIN, call.model):
                return Complaint(f"messages.{index}: role 'system' is not supported on this model")
            if index == 0 or messages[index - 1]["role"] != "user":
                return Complaint(f"messages.{index}: a system message must immediately follow a user message")
            if index + 1 < len(messages) and messages[index + 1]["role"] != "assistant":
                return Complaint(f"messages.{index}: role 'system' must precede an 'assistant' message or end the array")
        elif role not in ("user", "assistant"):
            return Complaint(f"messages.{index}.role: Input should be 'user' or 'assistant'")
    if messages[0]["role"] != "user":
        return Complaint('messages: first message must use the "user" role')
    return None


def _texts(call: Call) -> Complaint | None:
    """https://github.com/NousResearch/hermes-agent/pull/97618, https://github.com/anthropics/claude-code/issues/50082"""
    if call.body.get("system") == "":
        return None  # A system prompt that is an empty string is accepted.
    for place, block in _blocks(call):
        if block.get("type") != "text":
            continue
        text = block.get("text", "")
        if not text and block.get("cache_control"):
            return Complaint(f"{place}.text: cache_control cannot be set for empty text blocks")
        if not text:
            return Complaint(f"{place.partition('.')[0]}: text content blocks must be non-empty")
        if not text.strip():
            return Complaint(f"{place.partition('.')[0]}: text content blocks must contain non-whitespace text")
    messages = call.items("messages")
    for index, message in enumerate(messages):
        is_last_assistant = index == len(messages) - 1 and message["role"] == "assistant"
        if not message.get("content") and not is_last_assistant:
            return Complaint(
                f"messages.{index}: all messages must have non-empty content except for the optional final assistant message"
            )
    return None


def _prefill(call: Call) -> Complaint | None:
    """Not since 4.6: https://platform.claude.com/docs/en/about-claude/models/whats-new-claude-4-6, deepagents issue 1585"""
    last = call.items("messages")[-1]
    if last["role"] != "assistant":
        return None
    if re.match(rf"{_NEWER}|claude-(opus|sonnet)-4-6", call.model):
        words = "This model does not support assistant message prefill. The conversation must end with a user message."
        return Complaint(words)
    if call.get("thinking", "type") == "enabled":
        return Complaint("Assistant message prefill is not supported when thinking is enabled.")
    blocks = _content(last)
    if blocks and blocks[-1].get("type") == "text" and blocks[-1]["text"] != blocks[-1]["text"].rstrip():
        return Complaint("messages: final assistant content cannot end with trailing whitespace")
    return None


def _calls_and_results(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/agents-and-tools/tool-use/handle-tool-calls: results follow at once, and first."""
    messages, seen = [message for message in call.items("messages") if message["role"] != "system"], set()
    waiting: list[str] = []
    for index, message in enumerate(_joined(messages)):
        blocks = message["content"]
        results = [block["tool_use_id"] for block in blocks if block.get("type") == "tool_result"]
        leading = 0
        while leading < len(blocks) and blocks[leading].get("type") == "tool_result":
            leading += 1
        if stray := next((id_ for id_ in results if id_ not in waiting), None):
            words = f"messages.{index}.content.0: unexpected `tool_use_id` found in `tool_result` blocks: {stray}."
            return Complaint(
                f"{words} Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        answered = [block["tool_use_id"] for block in blocks[:leading]]
        if missing := [id_ for id_ in waiting if id_ not in answered]:
            words = "`tool_use` ids were found without `tool_result` blocks immediately after"
            each = "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
            return Complaint(f"messages.{index - 1}: {words}: {', '.join(missing)}. {each}")
        waiting = [block["id"] for block in blocks if block.get("type") == "tool_use"]
        for id_ in waiting:
            if not re.fullmatch(r"[a-zA-Z0-9_-]+", id_):
                return Complaint(f"messages.{index}.content.0.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            if id_ in seen:
                return Complaint("messages: `tool_use` ids must be unique")
            seen.add(id_)
    if waiting:
        return Complaint(f"messages: `tool_use` ids were found without `tool_result` blocks immediately after: {waiting[0]}.")
    return None


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"].extend(_content(message))
        else:
            joined.append({"role": message["role"], "content": _content(message)})
    return joined


def _tools(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/agents-and-tools/tool-use/define-tools; names: home-assistant/core issue 147760"""
    names = [tool.get("name", "") for tool in call.items("tools")]
    for index, tool in enumerate(call.items("tools")):
        if tool.get("type", "custom") != "custom":
            continue
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool.get("name", "")):
            return Complaint(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            return Complaint(f"tools.{index}.custom.input_schema: Field required")
        if "type" not in schema:
            return Complaint(f"tools.{index}.custom.input_schema.type: Field required")
        if schema["type"] != "object":
            return Complaint(f"tools.{index}.custom.input_schema.type: Input should be 'object'")
        if schema.keys() & {"oneOf", "allOf", "anyOf"}:
            return Complaint(
                f"tools.{index}.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level"
            )
        if tool.get("strict") and (words := _unsupported(schema)):
            return Complaint(f"tools.{index}.custom: {words}")
    if len(set(names)) < len(names):  # https://github.com/danny-avila/LibreChat/issues/13162
        return Complaint("tools: Tool names must be unique.")
    if call.body.get("tool_choice") and not names:
        return Complaint("tool_choice: tool_choice may only be specified while providing tools.")
    return None


def _forced_tool(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/models/sonnet-5-5/whats-new-sonnet-5-5#forced-tool-use-is-not-supported

    With thinking: https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility. OmniRoute 4389
    reports the same refusal for "adaptive"; CLIProxyAPI 4797 says that `any` passes there.
    """
    if call.get("tool_choice", "type") not in ("any", "tool"):
        return None
    if re.match(_5_5, call.model):
        return Complaint("tool_choice: forced tool use is not supported by this model. Use `auto` or `none` instead.")
    if call.get("thinking", "type") in ("enabled", "adaptive"):
        return Complaint("Thinking may not be enabled when tool_choice forces tool use.")
    return None


def _thinking(call: Call) -> Complaint | None:
    kind = call.get("thinking", "type")
    if kind is None:
        return None
    instead = 'Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
    if kind not in value_for(call.model, _THINKING, ("adaptive", "enabled", "disabled")):
        if kind == "adaptive":
            return Complaint("adaptive thinking is not supported on this model")
        return Complaint(f'"thinking.type.{kind}" is not supported for this model. {instead}')
    effort = call.get("output_config", "effort")
    # https://platform.claude.com/docs/en/about-claude/models/whats-new-opus-5: only at effort high or below.
    if kind == "disabled" and effort in ("xhigh", "max") and re.match(r"claude-opus-5$", call.model):
        return Complaint(f'"thinking.type.disabled" is not supported at effort {effort!r}.')
    if kind == "enabled":
        budget = call.get("thinking", "budget_tokens")
        if not isinstance(budget, int):
            return Complaint("thinking.enabled.budget_tokens: Field required")
        if budget < 1024:
            return Complaint("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if budget >= call.body.get("max_tokens", 0) and "interleaved" not in call.headers.get("anthropic-beta", ""):
            return Complaint("`max_tokens` must be greater than `thinking.budget_tokens`.")
    return None


def _sampling(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/models/sonnet-5/migration-guide; both at once: open-webui/functions pull request 9"""
    values = {field: call.body[field] for field in _SAMPLING if call.body.get(field) is not None}
    temperature = values.get("temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        return Complaint("temperature: range: 0..1")
    if re.match(_NEWER, call.model):
        for field, value in values.items():
            if value != 1:
                return Complaint(f"`{field}` is deprecated for this model.")
    if call.get("thinking", "type") in ("enabled", "adaptive"):
        if values.get("temperature", 1) != 1:
            return Complaint("`temperature` may only be set to 1 when thinking is enabled or in adaptive mode.")
        if "top_k" in values:
            return Complaint("`top_k` must be unset when thinking is enabled or in adaptive mode.")
        if not 0.95 <= values.get("top_p", 1) <= 1:
            return Complaint(
                "`top_p` must be greater than or equal to 0.95 or unset when thinking is enabled or in adaptive mode."
            )
    if {"temperature", "top_p"} <= values.keys() and re.match(r"claude-(opus-4-[1-6]|(sonnet|haiku)-4-[56])", call.model):
        words = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
        return Complaint(words)
    return None


def _effort(call: Call) -> Complaint | None:
    effort = call.get("output_config", "effort")
    if effort is None:
        return None
    words_of_model = value_for(call.model, _EFFORTS, ())
    if not words_of_model:
        return Complaint("This model does not support the effort parameter.")
    if effort not in words_of_model:
        return Complaint(
            f"output_config.effort: '{effort}' is not supported by this model. Supported: {', '.join(words_of_model)}."
        )
    return None


def _cache_marks(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/build-with-claude/prompt-caching: up to 4"""
    marked = sum("cache_control" in block for _, block in _blocks(call)) + sum(
        "cache_control" in each for each in call.items("tools")
    )
    count = marked + ("cache_control" in call.body)
    return Complaint(f"A maximum of 4 blocks with cache_control may be provided. Found {count}.") if count > 4 else None


def _stops(call: Call) -> Complaint | None:
    """https://github.com/BerriAI/litellm/issues/3286"""
    if any(not stop.strip() for stop in call.body.get("stop_sequences") or []):
        return Complaint("stop_sequences: each stop sequence must contain non-whitespace")
    return None


# https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
_REFUSED_KEYWORDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "maxItems",
)


def _unsupported(schema: Any) -> str | None:
    for _, node in objects_in(schema):
        if allows_type(node, "object") and node.get("additionalProperties") is not False:
            return "For 'object' type, 'additionalProperties' must be explicitly set to false"
        for keyword in _REFUSED_KEYWORDS:
            if keyword in node:
                return f"For '{node.get('type')}' type, property '{keyword}' is not supported"
        if node.get("minItems", 0) > 1:
            return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    return None


def _schema(call: Call) -> Complaint | None:
    wanted = call.get("output_config", "format") or {}
    words = _unsupported(wanted.get("schema")) if wanted.get("type") == "json_schema" else None
    return Complaint(f"output_config.format.schema: {words}") if words else None


def _media(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/build-with-claude/vision and /pdf-support"""
    for place, block in _blocks(call):
        source = block.get("source") or {}
        kind, media_type = block.get("type"), source.get("media_type")
        if source.get("type") == "base64" and kind == "image" and media_type not in _IMAGE_TYPES:
            listed = ", ".join(f"'{each}'" for each in _IMAGE_TYPES)
            return Complaint(f"{place}.image.source.base64.media_type: Input should be {listed}")
        if source.get("type") == "base64" and kind == "document" and media_type != "application/pdf":
            return Complaint(f"{place}.document.source.base64.media_type: Input should be 'application/pdf'")
    return None


def _thoughts(call: Call) -> Complaint | None:
    """https://platform.claude.com/docs/en/build-with-claude/extended-thinking#preserving-thinking-blocks"""
    for place, block in _blocks(call):
        if block.get("type") == "thinking" and not block.get("signature"):
            return Complaint(f"{place}.thinking.signature: Field required")
    messages = _joined([message for message in call.items("messages") if message["role"] != "system"])
    is_in_loop = any(block.get("type") == "tool_result" for block in messages[-1]["content"])
    if call.get("thinking", "type") == "enabled" and is_in_loop and len(messages) > 1:
        first = messages[-2]["content"][0].get("type")
        if first not in ("thinking", "redacted_thinking"):
            words = f"Expected `thinking` or `redacted_thinking`, but found `{first}`."
            why = "When `thinking` is enabled, a final `assistant` message must start with a thinking block."
            return Complaint(f"messages.{len(messages) - 2}.content.0.type: {words} {why}")
    return None


MESSAGES: tuple[Rule, ...] = (
    _version,
    _fields,
    _max_tokens,
    _roles,
    _texts,
    _calls_and_results,
    _prefill,
    _tools,
    _forced_tool,
    _thinking,
    _effort,
    _sampling,
    _cache_marks,
    _stops,
    _schema,
    _media,
    _thoughts,
)


def error_body(complaint: Complaint) -> dict[str, Any]:
    """https://platform.claude.com/docs/en/api/errors"""
    return {"type": "error", "error": {"type": "invalid_request_error", "message": complaint.message}, "request_id": "req_1"}
