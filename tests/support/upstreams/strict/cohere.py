"""What does Cohere refuse? https://docs.cohere.com/reference/chat, version 2

Whether a model that does not reason refuses `thinking` is not documented, and no report says so: there is no rule for it.
"""

from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import Call, Complaint, Rule, allows_type, objects_in

_FIELDS = (
    "model",
    "messages",
    "stream",
    "tools",
    "strict_tools",
    "documents",
    "citation_options",
    "response_format",
    "safety_mode",
    "max_tokens",
    "stop_sequences",
    "temperature",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "k",
    "p",
    "logprobs",
    "tool_choice",
    "thinking",
    "priority",
)


def _fields(call: Call) -> Complaint | None:
    name = next((name for name in call.body if name not in _FIELDS), None)
    return Complaint(f"unknown field: parameter '{name}' is not a valid field") if name else None


def _messages(call: Call) -> Complaint | None:
    for index, message in enumerate(call.items("messages")):
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            return Complaint(f"invalid role '{message.get('role')}' in message at index {index}")
        if not (message.get("content") or message.get("tool_calls")):
            return Complaint("invalid request: all elements in messages must have content or tool calls.")
    return None


def _tools(call: Call) -> Complaint | None:
    """Names: https://github.com/lobehub/lobehub/pull/4216 reports that a dash is refused (in 2024, at Bedrock)."""
    for _, function in chat.functions_of(call):
        schema = function.get("parameters")
        if not isinstance(schema, dict) or schema.get("type") != "object":
            return Complaint(
                f"invalid request: the parameters of tool {function.get('name')!r} must be a schema of type 'object'"
            )
    choice = call.body.get("tool_choice")
    if choice not in (None, "REQUIRED", "NONE"):
        return Complaint("invalid request: tool_choice must be one of REQUIRED or NONE")
    if choice and not call.body.get("tools"):
        return Complaint("invalid request: tool_choice can only be specified if tools are provided")
    return None


def _format(call: Call) -> Complaint | None:
    """https://docs.cohere.com/docs/structured-outputs: not with tools or documents; a required field in each object."""
    wanted = call.body.get("response_format") or {}
    if wanted.get("type") != "json_object":
        return None
    if call.body.get("tools"):
        return Complaint("invalid request: response_format and tools cannot be used together")
    for _, node in objects_in(wanted.get("json_schema") or wanted.get("schema")):
        if allows_type(node, "object") and not node.get("required"):
            return Complaint("invalid request: each object of response_format.schema must have at least one required field")
        if keyword := next(
            (key for key in ("minimum", "maximum", "multipleOf", "maxItems", "minLength", "maxLength") if key in node), None
        ):
            return Complaint(f"invalid request: response_format.schema: '{keyword}' is not supported")
    return None


def _limits(call: Call) -> Complaint | None:
    if len(call.body.get("stop_sequences") or []) > 5:
        return Complaint("invalid request: stop_sequences must have at most 5 elements")
    if not 0 <= (call.body.get("temperature") or 0) <= 1:
        return Complaint("invalid request: temperature must be between 0 and 1.0 inclusive")
    if not 0.01 <= call.body.get("p", 0.5) <= 0.99:
        return Complaint("invalid request: p must be between 0.01 and 0.99 inclusive")
    return None


RULES: tuple[Rule, ...] = (_fields, _messages, chat.results_answer_calls, _tools, _format, _limits)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"id": "1", "message": complaint.message}
