"""What do OpenAI and Azure refuse? Chat completions and responses; the fields are those of OpenAI's own SDK."""

import re
import typing
from typing import Any

from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, not_strict, value_for

_DECLARED = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# https://developers.openai.com/api/docs/guides/reasoning and https://developers.openai.com/api/docs/models (a page for each).
# gpt-6: https://developers.openai.com/api/docs/guides/deployment-checklist; gpt-6.1-sol has no "none", "max" on responses only:
# https://docs.laozhang.ai/en/announcements/gpt-6-chat-tools-2026-11
# gpt-5.1: https://github.com/openai/openai-agents-python/issues/2089; gpt-5.4: the guide to the latest model; gpt-5.6 "max":
# https://github.com/anomalyco/opencode/issues/36141, against https://github.com/livekit/agents/pull/7169, which lists no "max".
_EFFORTS: ByModel[tuple[str, ...]] = [
    (r"gpt-6-astra|gpt-6\.1-sol", ("low", "medium", "high", "xhigh", "max")),
    (r"gpt-6", ("none", "low", "medium", "high", "xhigh", "max")),
    (r"gpt-5(\.\d)?-chat", ("medium",)),
    (r"gpt-5-pro", ("high",)),
    (r"gpt-5\.[2-5]-pro", ("medium", "high", "xhigh")),
    (r"gpt-5(-|$)", ("minimal", "low", "medium", "high")),
    (r"gpt-5\.1(-|$)", ("none", "low", "medium", "high")),
    (r"gpt-5\.[2-5](-|$)", ("none", "low", "medium", "high", "xhigh")),
    (r"gpt-5\.", ("none", "low", "medium", "high", "xhigh", "max")),
    (r"o\d", ("low", "medium", "high")),
]
# What a model does that is told no effort. gpt-5.1 to 5.4 do not reason unless asked:
# https://github.com/langchain-ai/langchain/pull/35424
_DEFAULT_EFFORT: ByModel[str] = [(r"gpt-5\.[1-4](-(mini|nano|\d)|$)", "none")]
# Tools with an effort since gpt-5.4: https://github.com/openai/openai-openapi/issues/541 (livekit/agents 5088: gpt-5.2, too);
# tools at all, unless the effort is "none", since gpt-5.6: https://github.com/BerriAI/litellm/pull/34569
_TOOLS_NEED_NONE = r"gpt-5\.(?:[6-9]|\d\d)|gpt-6"
_TOOLS_WITHOUT_EFFORT = r"gpt-5\.[45]"
# Only on responses: https://developers.openai.com/api/docs/models/o1-pro and the other pages of pro and codex models.
_RESPONSES_ONLY = r"o\d-pro|gpt-5(\.\d)?-(pro|codex)|gpt-5\.\d-codex|codex-mini|computer-use"
# https://developers.openai.com/api/docs/models: "max output tokens" of each model.
_OUTPUT_TOKENS: ByModel[int] = [
    (r"gpt-4o|chatgpt-4o", 16_384),
    (r"gpt-4\.1", 32_768),
    (r"gpt-5(\.\d)?-chat", 16_384),
    (r"gpt-5-pro", 272_000),
    (r"gpt-[56]", 128_000),
    (r"o\d", 100_000),
]
_SAMPLING = ("temperature", "top_p")
_PENALTIES = ("presence_penalty", "frequency_penalty")


def _reasons(model: str) -> bool:
    return bool(re.match(r"o\d|gpt-[56]|codex-mini", model)) and "-chat" not in model


def _effort(call: Call) -> Any:
    return call.get("reasoning", "effort") if "/responses" in call.path else call.body.get("reasoning_effort")


def _effort_words(call: Call) -> Complaint | None:
    effort = _effort(call)
    field = "reasoning.effort" if "/responses" in call.path else "reasoning_effort"
    if effort is None:
        return None
    if effort not in _DECLARED:
        return Complaint(f"Invalid value: '{effort}'. Supported values are: {_DECLARED}.", field, "invalid_value")
    if not re.match(r"o\d|gpt-[56]|codex-mini", call.model):
        if "/responses" in call.path:
            words = f"Unsupported parameter: '{field}' is not supported with this model."
            return Complaint(words, field, "unsupported_parameter")
        return Complaint(f"Unrecognized request argument supplied: {field}")
    words_of_model = value_for(call.model, _EFFORTS, _DECLARED)
    if "/responses" not in call.path and call.model.startswith("gpt-6.1-sol"):
        words_of_model = tuple(word for word in words_of_model if word != "max")
    return None if effort in words_of_model else chat.unsupported_value(call.model, field, effort, words_of_model)


def _sampling(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/latest-model#gpt-54-parameter-compatibility

    A model that reasons takes defaults only; from gpt-5.1 on anything while its effort is "none". Azure says the same:
    https://learn.microsoft.com/azure/ai-foundry/openai/how-to/reasoning#api--feature-support
    """
    if not _reasons(call.model):
        return None
    effort = _effort(call) or value_for(call.model, _DEFAULT_EFFORT, "medium")
    if effort == "none":
        return None
    for field in _SAMPLING:
        value = call.body.get(field)
        if value is not None and value != 1:
            if field == "temperature" and "/responses" not in call.path:
                words = f"Unsupported value: '{field}' does not support {value} with this model."
                return Complaint(f"{words} Only the default (1) value is supported.", field, "unsupported_value")
            return _unsupported(field)
    for field in (*_PENALTIES, "logit_bias", "logprobs", "top_logprobs"):
        if call.body.get(field) not in (None, 0, False, {}):
            return _unsupported(field)
    return None


def _unsupported(field: str, instead: str = "") -> Complaint:
    words = f"Unsupported parameter: '{field}' is not supported with this model."
    return Complaint(f"{words} {instead}".strip(), field, "unsupported_parameter")


def _stop(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/api-reference/chat: not with reasoning models. smolagents 1662, 1868, 1893"""
    return _unsupported("stop") if call.body.get("stop") and re.match(r"o[34]|gpt-[56](?!.*-chat)", call.model) else None


def _tokens(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/reasoning: `max_tokens` is not for models that reason."""
    if call.body.get("max_tokens") is not None and _reasons(call.model):
        return _unsupported("max_tokens", "Use 'max_completion_tokens' instead.")
    most = value_for(call.model, _OUTPUT_TOKENS, 1 << 30)
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        value = call.body.get(field) or 0
        if value > most:
            words = f"This model supports at most {most} completion tokens, whereas you provided {value}."
            return Complaint(f"{field} is too large: {value}. {words}", field, "invalid_value")
    least = call.body.get("max_output_tokens")
    if least is not None and least < 16:  # https://github.com/earendil-works/pi/issues/6265
        words = f"integer below minimum value. Expected a value >= 16, but got {least} instead."
        return Complaint(f"Invalid 'max_output_tokens': {words}", "max_output_tokens", "integer_below_min_value")
    return None


def _chat_tools(call: Call) -> Complaint | None:
    if not chat.functions_of(call):
        return None
    effort = call.body.get("reasoning_effort")
    words = f"Function tools with reasoning_effort are not supported for {call.model} in /v1/chat/completions."
    if re.match(_TOOLS_NEED_NONE, call.model) and effort != "none":
        return Complaint(
            f"{words} To use function tools, use /v1/responses or set reasoning_effort to 'none'.", "reasoning_effort"
        )
    if re.match(_TOOLS_WITHOUT_EFFORT, call.model) and effort not in (None, "none"):
        return Complaint(f"{words} Please use /v1/responses instead.", "reasoning_effort")
    return None


def _responses_only(call: Call) -> Complaint | None:
    if re.match(_RESPONSES_ONLY, call.model):
        words = "This model is only supported in v1/responses and not in v1/chat/completions."
        return Complaint(words, "model", status=404)
    return None


def _schema_of_tool(schema: Any, name: str, param: str) -> Complaint | None:
    """https://github.com/openai/openai-agents-python/issues/449"""
    if not isinstance(schema, dict) or not schema:
        return None  # A function without parameters takes none.
    reason = None
    if schema.get("type") != "object":
        reason = f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    elif clash := next((key for key in ("oneOf", "anyOf", "allOf", "enum", "not") if key in schema), None):
        words = "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level."
        reason = f"{words} Found '{clash}'."
    elif not isinstance(schema.get("properties"), dict):
        reason = "In context=(), object schema missing properties."
    if reason:
        return Complaint(f"Invalid schema for function '{name}': {reason}", param, "invalid_function_parameters")
    return None


def _chat_schemas(call: Call) -> Complaint | None:
    for index, function in chat.functions_of(call):
        param = f"tools[{index}].function.parameters"
        if complaint := _schema_of_tool(function.get("parameters"), function.get("name", ""), param):
            return complaint
    return None


def _too_many_tools(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/api-reference/chat: at most 128 functions."""
    count = len(call.items("tools"))
    if count > 128:
        words = f"Expected an array with maximum length 128, but got an array with length {count} instead."
        return Complaint(f"Invalid 'tools': array too long. {words}", "tools", "array_above_max_length")
    return None


def _chat_ids(call: Call) -> Complaint | None:
    """https://github.com/agno-agi/agno/issues/5382: at most 40 characters."""
    for index, message in enumerate(call.items("messages")):
        for place, item in enumerate(message.get("tool_calls") or []):
            if len(item.get("id", "")) > 40:
                param = f"messages[{index}].tool_calls[{place}].id"
                return chat.too_long(param, item["id"], 40)
    return None


def _results_are_text(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/api-reference/chat: "for tool messages, only type text"; system likewise."""
    for index, message in enumerate(call.items("messages")):
        if message.get("role") in ("tool", "system", "developer"):
            for part in message["content"] if isinstance(message.get("content"), list) else []:
                if part.get("type") != "text":
                    words = (
                        f"Invalid content type '{part.get('type')}': only 'text' is supported for {message['role']} messages."
                    )
                    return Complaint(words, f"messages[{index}].content")
    return None


def _chat_message_fields(call: Call) -> Complaint | None:
    """The fields of OpenAI's SDK for each role."""
    known = {
        "assistant": {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call"},
        "tool": {"role", "content", "tool_call_id"},
    }
    for index, message in enumerate(call.items("messages")):
        fields = known.get(message.get("role", ""), {"role", "content", "name"})
        for name in message:
            if name not in fields:
                words = f"Unknown parameter: 'messages[{index}].{name}'."
                return Complaint(words, f"messages[{index}].{name}", "unknown_parameter")
    return None


def _without_tools(call: Call) -> Complaint | None:
    """https://github.com/sbintuitions/flexeval/pull/242"""
    if call.model == "gpt-5-chat-latest" and call.body.get("tools"):
        return Complaint("tools is not supported in this model.", "tools")
    return None


_CHAT_FIELDS = {*typing.get_type_hints(chat_params.CompletionCreateParamsBase), "stream"}
CHAT: tuple[Rule, ...] = (
    chat.known_fields(_CHAT_FIELDS),
    _responses_only,
    chat.known_roles("system", "assistant", "user", "function", "tool", "developer"),
    _chat_message_fields,
    *chat.SHAPE,
    _without_tools,
    _chat_tools,
    _effort_words,
    _sampling,
    _stop,
    chat.stop_count(4),
    _tokens,
    _too_many_tools,
    chat.tool_names(),
    _chat_schemas,
    chat.strict_schemas,
    chat.json_is_named,
    chat.image_types,
    _results_are_text,
    _chat_ids,
)


# --- responses


def _responses_tools(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/api-reference/responses/create#tools"""
    for index, tool in enumerate(call.items("tools")):
        if tool.get("type") != "function":
            continue
        param, name = f"tools[{index}].name", tool.get("name", "")
        if len(name) > 64:
            words = (
                f"string too long. Expected a string with maximum length 64, but got a string with length {len(name)} instead."
            )
            return Complaint(f"Invalid '{param}': {words}", param, "string_above_max_length")
        if not re.fullmatch(r"[a-zA-Z0-9_-]+", name):
            words = "string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
            return Complaint(f"Invalid '{param}': {words}", param, "invalid_value")
        schema = tool.get("parameters")
        if complaint := _schema_of_tool(schema, name, f"tools[{index}].parameters"):
            return complaint
        if tool.get("strict") and (reason := not_strict(schema or {})):
            words = f"Invalid schema for function '{name}': {reason}"
            return Complaint(words, f"tools[{index}].parameters", "invalid_function_parameters")
    return None


def _summaries(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/reasoning#reasoning-summaries: only models that reason have them."""
    summary = call.get("reasoning", "summary")
    if summary is None:
        return None
    if not _reasons(call.model):
        return _unsupported("reasoning.summary")
    if summary not in ("auto", "concise", "detailed"):
        words = f"Invalid value: '{summary}'. Supported values are: 'concise', 'detailed', and 'auto'."
        return Complaint(words, "reasoning.summary", "invalid_value")
    return None


def _namespaces(call: Call) -> Complaint | None:
    """https://github.com/openai/codex/issues/37432: tools in the body and in items need a description."""
    lists = [("tools", call.items("tools"))]
    lists += [(f"input[{index}].tools", item.get("tools") or []) for index, item in enumerate(call.items("input"))]
    for place, tools in lists:
        for index, tool in enumerate(tools):
            if tool.get("type") == "namespace" and not tool.get("description"):
                param = f"{place}[{index}].description"
                words = "empty string. Expected a string with minimum length 1, but got an empty string instead."
                return Complaint(f"Invalid '{param}': {words}", param, "empty_string")
    return None


def _item_fields(call: Call) -> Complaint | None:
    """https://github.com/openai/codex/issues/30161"""
    for index, item in enumerate(call.items("input")):
        if name := next((name for name in item if name.startswith("internal_")), None):
            return Complaint(f"Unknown parameter: 'input[{index}].{name}'.", f"input[{index}].{name}", "unknown_parameter")
    return None


def _responses_format(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/structured-outputs"""
    wanted = call.get("text", "format") or {}
    if wanted.get("type") != "json_schema":
        return None
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", wanted.get("name") or ""):
        return Complaint("Missing required parameter: 'text.format.name'.", "text.format.name", "missing_required_parameter")
    if wanted.get("strict") and (reason := not_strict(wanted.get("schema") or {})):
        words = f"Invalid schema for response_format '{wanted['name']}': {reason}"
        return Complaint(words, "text.format.schema", "invalid_json_schema")
    return None


# The parts that each role may say: https://developers.openai.com/api/docs/api-reference/responses/create#input
_OUTPUT_PARTS = ("output_text", "refusal")
_INPUT_PARTS = ("input_text", "input_image", "input_file", "input_audio")


def _responses_parts(call: Call) -> Complaint | None:
    for index, item in enumerate(call.items("input")):
        role = item.get("role")
        if item.get("type", "message") != "message" or not isinstance(item.get("content"), list):
            continue
        supported = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
        for place, part in enumerate(item["content"]):
            if part.get("type") not in supported:
                listed = ", ".join(f"'{each}'" for each in supported)
                words = f"Invalid value: '{part.get('type')}'. Supported values are: {listed}."
                return Complaint(words, f"input[{index}].content[{place}]", "invalid_value")
    return None


# https://github.com/oracle/wayflow/pull/100: "Expected an ID that begins with 'fc'."
_ID_STARTS = {"function_call": "fc", "reasoning": "rs", "message": "msg"}


def _responses_ids(call: Call) -> Complaint | None:
    for index, item in enumerate(call.items("input")):
        start, id_ = _ID_STARTS.get(item.get("type", "")), item.get("id")
        if start and id_ and not id_.startswith(start):
            words = f"Invalid 'input[{index}].id': '{id_}'. Expected an ID that begins with '{start}'."
            return Complaint(words, f"input[{index}].id", "invalid_value")
        if len(item.get("call_id") or "") > 64:
            return chat.too_long(f"input[{index}].call_id", item["call_id"], 64)
    return None


def _responses_pairs(call: Call) -> Complaint | None:
    """https://github.com/continuedev/continue/pull/11785; what `previous_response_id` names is not visible here."""
    if call.body.get("previous_response_id"):
        return None
    items = call.items("input")
    calls = [item.get("call_id") for item in items if item.get("type") == "function_call"]
    outputs = [item.get("call_id") for item in items if item.get("type") == "function_call_output"]
    if stray := next((id_ for id_ in outputs if id_ not in calls), None):
        return Complaint(f"No tool call found for function call output with call_id {stray}.", "input")
    if open_ := next((id_ for id_ in calls if id_ not in outputs), None):
        return Complaint(f"No tool output found for function call {open_}.", "input")
    return None


def _lone_reasoning(call: Call) -> Complaint | None:
    """https://github.com/continuedev/continue/pull/11785: reasoning without the item that followed it."""
    items = call.items("input")
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else {}
        is_own = (
            following.get("type") in ("function_call", "reasoning", "custom_tool_call") or following.get("role") == "assistant"
        )
        if item.get("type") == "reasoning" and not is_own:
            words = f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item."
            return Complaint(words, "input")
    return None


def _sealed_reasoning(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/reasoning#encrypted-reasoning-items: only of models that reason."""
    wanted = call.body.get("include") or []
    if "reasoning.encrypted_content" in wanted and not _reasons(call.model):
        return Complaint("Encrypted content is not supported with this model.", "include")
    return None


_RESPONSES_FIELDS = {*typing.get_type_hints(response_create_params.ResponseCreateParamsBase), "stream"}
RESPONSES: tuple[Rule, ...] = (
    chat.known_fields(_RESPONSES_FIELDS, "Unknown parameter: '{name}'."),
    _summaries,
    _effort_words,
    _sampling,
    _tokens,
    _too_many_tools,
    _responses_tools,
    _namespaces,
    _item_fields,
    _responses_format,
    _responses_parts,
    _responses_ids,
    _responses_pairs,
    _lone_reasoning,
    _sealed_reasoning,
)


def error_body(complaint: Complaint) -> dict[str, Any]:
    """https://developers.openai.com/api/docs/guides/error-codes"""
    error = {"message": complaint.message, "type": "invalid_request_error", "param": complaint.param, "code": complaint.code}
    return {"error": error}
