"""What does Perplexity refuse? https://docs.perplexity.ai/api-reference/chat-completions-post"""

from itertools import pairwise
from typing import Any

from tests.support.upstreams.strict.rules import Call, Complaint, Rule


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


RULES: tuple[Rule, ...] = (_roles, _tools, _order, _effort)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"error": {"message": complaint.message, "type": "invalid_message", "code": complaint.status}}
