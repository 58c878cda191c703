"""What does Perplexity refuse? https://docs.perplexity.ai/api-reference/agent-post

The Agent API took the place of chat completions on 2026-09-27. What those refused is here for proxies that still have them:
https://docs.perplexity.ai/api-reference/chat-completions-post

The Agent API's fields and items are those of the vendor's SDK: https://github.com/perplexityai/perplexity-py,
types/response_create_params.py and types/input_item_param.py. It refuses every other field:
https://github.com/anomalyco/opencode/issues/32108
"""

from itertools import pairwise
from typing import Any

from tests.support.upstreams.strict.rules import Call, Complaint, Rule, unknown_field

_FIELDS = (
    "background",
    "input",
    "instructions",
    "language_preference",
    "max_output_tokens",
    "max_steps",
    "model",
    "models",
    "preset",
    "reasoning",
    "response_format",
    "stream",
    "tools",
)
_ITEM_FIELDS = {
    "message": ("type", "role", "content"),
    "function_call": ("type", "call_id", "name", "arguments", "thought_signature"),
    "function_call_output": ("type", "call_id", "name", "output", "thought_signature"),
}
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh")
_PRESETS = ("fast", "low", "medium", "high", "xhigh")  # https://docs.perplexity.ai/docs/agent-api/presets


def _invalid(words: str) -> Complaint:
    return Complaint(f"invalid request body: {words}", code="invalid_request")


def _fields(call: Call) -> Complaint | None:
    name = unknown_field(call.body, _FIELDS)
    return _invalid(f'json: unknown field "{name}"') if name else None


def _engine(call: Call) -> Complaint | None:
    """A model has its maker's name before it: https://docs.perplexity.ai/docs/agent-api/building-agents/define-the-run"""
    model, preset = call.body.get("model"), call.body.get("preset")
    if model is not None and "/" not in model:
        return _invalid(f"model '{model}' must be in provider/model format")
    if model is None and preset not in _PRESETS:
        return _invalid(f"unknown preset '{preset}'")
    return None


def _items(call: Call) -> Complaint | None:
    for item in call.items("input"):
        kind = item.get("type", "message")
        if kind not in _ITEM_FIELDS:
            return _invalid(f"unknown input item type '{kind}'")
        if name := unknown_field(item, _ITEM_FIELDS[kind]):
            return _invalid(f'json: unknown field "{name}"')
        if kind == "function_call_output" and not isinstance(item.get("output"), str):
            return _invalid("function_call_output.output must be a string")
        if kind == "message" and (complaint := _message(item)):
            return complaint
    return None


def _message(item: dict[str, Any]) -> Complaint | None:
    if item.get("role") not in ("user", "assistant", "system", "developer"):
        return _invalid(f"unknown role '{item.get('role')}'")
    content = item.get("content")
    if not isinstance(content, str | list) or not content:
        return _invalid("message.content is required")
    kinds = [] if isinstance(content, str) else [part.get("type") for part in content]
    unknown = next((kind for kind in kinds if kind not in ("input_text", "input_image")), None)
    return _invalid(f"unknown content part type '{unknown}'") if unknown else None


def _wishes(call: Call) -> Complaint | None:
    if unknown := unknown_field(call.get("reasoning") or {}, ("effort",)):
        return _invalid(f'json: unknown field "{unknown}"')
    effort = call.get("reasoning", "effort")
    if effort not in (None, *_EFFORTS):
        return _invalid(f"reasoning.effort must be one of {', '.join(_EFFORTS)}")
    if call.get("response_format", "type") not in (None, "json_schema"):
        return _invalid("response_format.type must be json_schema")
    return None


AGENT: tuple[Rule, ...] = (_fields, _engine, _items, _wishes)


def _roles(call: Call) -> Complaint | None:
    """https://github.com/BerriAI/litellm/issues/11665"""
    for index, message in enumerate(call.items("messages")):
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            words = "Input should be 'system', 'user', 'assistant' or 'tool'"
            return Complaint(f'["At body -> messages -> {index} -> role: {words}"]')
        if message.get("content") is None:
            return Complaint(f'["At body -> messages -> {index} -> content: Field required"]')
    return None


def _order(call: Call) -> Complaint | None:
    """https://github.com/perplexityai/api-discussion/issues/265, https://github.com/serac-labs/serac/issues/53"""
    roles = [message["role"] for message in call.items("messages")]
    while roles and roles[0] == "system":
        roles = roles[1:]
    sides = ["assistant" if role == "assistant" else role if role == "system" else "user" for role in roles]
    if "system" in sides or sides[:1] == ["assistant"] or any(one == other for one, other in pairwise(sides)):
        words = "After the (optional) system message(s), user or tool message(s) should alternate with assistant message(s)."
        return Complaint(words)
    if roles and roles[-1] not in ("user", "tool"):  # https://github.com/karakeep-app/karakeep/issues/262
        return Complaint("Last message must have role `user` or `tool`.")
    return None


def _tools(call: Call) -> Complaint | None:
    """https://github.com/pipecat-ai/pipecat/pull/4862"""
    if call.body.get("tools") or any(message.get("tool_calls") for message in call.items("messages")):
        return Complaint("Tool calling is not supported for this model")
    return None


def _effort(call: Call) -> Complaint | None:
    """https://docs.perplexity.ai/api-reference/chat-completions-post: minimal, low, medium or high"""
    if call.body.get("reasoning_effort") not in (None, "minimal", "low", "medium", "high"):
        return Complaint("[\"At body -> reasoning_effort: Input should be 'minimal', 'low', 'medium' or 'high'\"]")
    return None


CHAT: tuple[Rule, ...] = (_roles, _tools, _order, _effort)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"error": {"message": complaint.message, "type": "invalid_request", "code": complaint.status}}
