"""What does Cerebras refuse? https://inference-docs.cerebras.ai/api-reference/chat-completions

It refuses every field that it does not know: https://github.com/proxysoul/Empryo/pull/209 has measured it.
"""

import re
from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, allows_type, objects_in, value_for

_FIELDS = (
    "model",
    "messages",
    "clear_thinking",
    "disable_reasoning",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_tokens",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "reasoning_format",
    "response_format",
    "seed",
    "service_tier",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
)
_MESSAGE_FIELDS = {
    "assistant": {"role", "content", "name", "tool_calls", "reasoning", "refusal"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
# zai-glm: the API's own error lists all four (mnfst/modelparams.dev pull request 115); the reference names only "none".
# Models that do not reason: https://github.com/egoist/chatwise-releases/issues/1325
_EFFORTS: ByModel[tuple[str, ...]] = [
    (r"gpt-oss", ("low", "medium", "high")),
    (r"zai-glm|gemma-4", ("none", "low", "medium", "high")),
]
# https://inference-docs.cerebras.ai/capabilities/structured-outputs; https://github.com/musistudio/claude-code-router/issues/708
_REFUSED_KEYWORDS = ("minItems", "maxItems", "pattern", "format")


def _wrong(words: str) -> Complaint:
    return Complaint(words, "validation_error", "wrong_api_format")


def _fields(call: Call) -> Complaint | None:
    if name := next((name for name in call.body if name not in _FIELDS), None):
        return _wrong(f"body.{name}: property 'body.{name}' is unsupported")
    for index, message in enumerate(call.items("messages")):
        role = message.get("role", "")
        known = _MESSAGE_FIELDS.get(role, {"role", "content", "name"})
        if name := next((name for name in message if name not in known), None):
            place = f"messages.{index}.{role}.{name}"
            return _wrong(f"{place}: property '{place}' is unsupported")
    return None


def _effort(call: Call) -> Complaint | None:
    effort = call.body.get("reasoning_effort")
    if effort is None:
        return None
    words = value_for(call.model, _EFFORTS, ())
    if effort not in words:
        listed = ", ".join(f"'{word}'" for word in words) or "absent for this model"
        return _wrong(f"reasoning_effort: Input should be {listed} [input_value='{effort}']")
    return None


def _strict_tools(call: Call) -> Complaint | None:
    """https://github.com/livekit/agents/pull/3134; all or none: https://inference-docs.cerebras.ai/capabilities/tool-use"""
    marks = {bool(function.get("strict")) for _, function in chat.functions_of(call)}
    if len(marks) > 1:
        return _wrong("Tools with mixed values for 'strict' are not allowed.")
    if marks == {True} and re.match("qwen|llama", call.model):
        return _wrong("Tools with strict=True are not supported by this model")
    return None


def _schema(call: Call) -> Complaint | None:
    wanted = call.get("response_format", "json_schema") or {}
    if not wanted.get("strict"):
        return None
    for _, node in objects_in(wanted.get("schema")):
        if keywords := [keyword for keyword in _REFUSED_KEYWORDS if keyword in node]:
            return Complaint(f"Unsupported JSON schema fields: {set(keywords)}", "response_format", "wrong_api_format")
        if allows_type(node, "object") and node.get("additionalProperties") is not False:
            words = "Object fields require at least one of: 'properties' or 'anyOf', with 'additionalProperties' set to false"
            return Complaint(words, "response_format", "wrong_api_format")
    return None


def _format_and_tools(call: Call) -> Complaint | None:
    """https://inference-docs.cerebras.ai/capabilities/structured-outputs: not together."""
    if call.get("response_format", "type") in ("json_schema", "json_object") and call.body.get("tools"):
        return Complaint('"tools" is incompatible with "response_format"', "response_format", "wrong_api_format")
    return None


RULES: tuple[Rule, ...] = (
    _fields,
    chat.known_roles("system", "developer", "user", "assistant", "tool"),
    chat.messages_say_something,
    chat.some_tools,
    chat.choice_needs_tools,
    chat.stop_count(4),
    _effort,
    _strict_tools,
    _schema,
    _format_and_tools,
    chat.without_images("messages.{index}.content: content type 'image_url' is not supported by this model"),
)


def error_body(complaint: Complaint) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"message": complaint.message, "type": kind, "param": complaint.param, "code": complaint.code, "id": ""}
