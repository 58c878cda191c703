"""What does Groq refuse? https://console.groq.com/docs"""

from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, not_strict, value_for

# https://console.groq.com/docs/reasoning#options-for-reasoning-effort; https://github.com/earendil-works/pi/issues/1745
_EFFORTS: ByModel[tuple[str, ...]] = [(r"qwen", ("none", "default")), (r"gpt-oss", ("low", "medium", "high"))]
# https://console.groq.com/docs/structured-outputs#supported-models
_SCHEMA_MODELS: ByModel[bool] = [(r"gpt-oss|llama-4|kimi-k2|qwen3", True)]
_STRICT_MODELS: ByModel[bool] = [(r"gpt-oss", True)]
_VISION: ByModel[bool] = [(r"llama-4|qwen3\.[5-9]", True)]  # https://console.groq.com/docs/vision
# https://console.groq.com/docs/api-reference#chat-create
_FIELDS = [
    "model",
    "messages",
    "citation_options",
    "compound_custom",
    "disable_tool_validation",
    "documents",
    "exclude_domains",
    "frequency_penalty",
    "function_call",
    "functions",
    "include_domains",
    "include_reasoning",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "reasoning_effort",
    "reasoning_format",
    "response_format",
    "search_settings",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
]


def _unsupported_fields(call: Call) -> Complaint | None:
    """https://console.groq.com/docs/openai#currently-unsupported-openai-features"""
    for field in ("logprobs", "logit_bias", "top_logprobs"):
        if call.body.get(field):
            return Complaint(f"`{field}` is not supported with this model", field)
    if call.body.get("n") not in (None, 1):
        return Complaint("'n' : number must be at most 1", "n")
    known = {
        "assistant": {"role", "content", "tool_calls", "function_call", "reasoning"},
        "tool": {"role", "content", "tool_call_id"},
    }
    for index, message in enumerate(call.items("messages")):
        role = message.get("role", "")
        for name in message:
            if name not in known.get(role, {"role", "content"}):
                start = f"'messages.{index}' : for 'role:{role}' the following must be satisfied"
                return Complaint(f"{start}[('messages.{index}' : property '{name}' is unsupported)]")
    return None


def _effort(call: Call) -> Complaint | None:
    effort = call.body.get("reasoning_effort")
    if effort is None:
        return None
    words = value_for(call.model, _EFFORTS, ())
    if not words:
        return Complaint("`reasoning_effort` is not supported with this model", "reasoning_effort")
    if effort not in words:
        listed = " or ".join(f"`{word}`" for word in words)
        return Complaint(f"`reasoning_effort` must be one of {listed}", "reasoning_effort")
    return None


def _format(call: Call) -> Complaint | None:
    """https://console.groq.com/docs/structured-outputs; with tools: https://github.com/vercel/ai/pull/16540"""
    kind = call.get("response_format", "type")
    if kind in ("json_object", "json_schema") and call.body.get("tools"):
        return Complaint("json mode cannot be combined with tool/function calling", "response_format")
    if kind == "json_schema":
        if not value_for(call.model, _SCHEMA_MODELS, False):
            return Complaint("This model does not support response format `json_schema`.", "response_format")
        wanted = call.get("response_format", "json_schema")
        if (
            wanted.get("strict")
            and value_for(call.model, _STRICT_MODELS, False)
            and (reason := not_strict(wanted.get("schema")))
        ):
            return Complaint(f"invalid JSON schema for response_format: '{wanted.get('name')}': {reason}", "response_format")
    return chat.json_is_named(call)


def _images(call: Call) -> Complaint | None:
    if value_for(call.model, _VISION, False):
        return None
    return chat.without_images("messages[{index}].content must be a string")(call)


RULES: tuple[Rule, ...] = (
    chat.known_fields(_FIELDS, "property '{name}' is unsupported"),
    *chat.SHAPE,
    chat.tool_names(),  # groq-python, types/shared_params/function_definition.py
    chat.stop_count(4),  # groq-python, types/chat/completion_create_params.py
    _unsupported_fields,
    _effort,
    _format,
    _images,
)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"error": {"message": complaint.message, "type": "invalid_request_error", "param": complaint.param}}
