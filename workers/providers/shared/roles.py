"""In which order do a vendor's chat completions take the roles of a conversation?

OpenAI takes any order. Others apply a chat template, which knows fewer roles and wants them in its own order; what they want is
in the model's facts. The same message always becomes the same, so that a conversation keeps its prefix from turn to turn.
"""

from typing import Any

from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import list_of

_SYSTEM = ("system", "developer")
# Stands between a tool's result and a user's message where a vendor wants the assistant's word first.
# Source: https://github.com/avante-corp/avante.nvim/pull/2695
_BETWEEN: dict[str, Any] = {"role": "assistant", "content": "OK."}

# For a model that takes no beginning of its answer, and would refuse the request.
# Source: https://platform.claude.com/docs/en/about-claude/models/migration-guide (prefills)
CONTINUE_PROMPT = "Continue your last message exactly where it ends. Do not repeat any of it."


def fit_roles(messages: list[dict[str, Any]], facts: ModelFacts) -> list[dict[str, Any]]:
    """Return the messages in an order that the model takes. Messages that change are replaced, never changed in place."""
    if not facts.developer_role:
        messages = [{**message, "role": "system"} if message.get("role") == "developer" else message for message in messages]
    if facts.system_position != "anywhere":
        messages = _place_system(messages, is_single=facts.system_position == "first")
    if not facts.user_after_tool:
        messages = _answer_results(messages)
    if facts.roles_alternate:
        messages = _alternate(messages)
    if is_prefill(messages):
        if facts.prefill is False:
            messages = [*messages, {"role": "user", "content": CONTINUE_PROMPT}]
        elif facts.prefill_flag:
            messages = [*messages[:-1], {facts.prefill_flag: True, **messages[-1]}]
    return messages


def _place_system(messages: list[dict[str, Any]], *, is_single: bool) -> list[dict[str, Any]]:
    """Keep the leading system messages, as one if there must be only one. Later ones keep their place, as a user's."""
    leading = next((at for at, message in enumerate(messages) if message.get("role") not in _SYSTEM), len(messages))
    first = messages[:leading]
    if is_single and leading > 1:
        joined = first[0]
        for message in first[1:]:
            joined = _join(joined, message)
        first = [joined]
    rest = [{**message, "role": "user"} if message.get("role") in _SYSTEM else message for message in messages[leading:]]
    return first + rest


def _answer_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    for message in messages:
        if placed and placed[-1].get("role") == "tool" and message.get("role") == "user":
            placed.append(_BETWEEN)
        placed.append(message)
    return placed


def _alternate(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    for message in messages:
        if placed and message.get("role") in ("user", "assistant") and placed[-1].get("role") == message["role"]:
            placed[-1] = _join(placed[-1], message)
        else:
            placed.append(message)
    return placed


def _join(message: dict[str, Any], next_message: dict[str, Any]) -> dict[str, Any]:
    """Return one message with the content and the calls of both."""
    joined = {**message, **next_message, "content": _join_content(message.get("content"), next_message.get("content"))}
    if calls := [*list_of(message.get("tool_calls")), *list_of(next_message.get("tool_calls"))]:
        joined["tool_calls"] = calls
    return joined


def _join_content(content: Any, next_content: Any) -> Any:
    if not (content and next_content):
        return content or next_content
    if isinstance(content, str) and isinstance(next_content, str):
        return f"{content}\n\n{next_content}"
    return _parts(content) + _parts(next_content)


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list_of(content)


def is_prefill(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is the beginning of the answer."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and bool(last.get("content")) and not last.get("tool_calls")
