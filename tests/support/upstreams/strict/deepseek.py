"""What does DeepSeek refuse? https://api-docs.deepseek.com and reports of what its API answered."""

import re
from collections.abc import Iterator
from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import Call, Complaint, Rule, parts_of

# The guide names none, low, high and max, and what it maps: https://api-docs.deepseek.com/guides/thinking_mode
_CHAT_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max", "ultra")


def _thinks(call: Call) -> bool:
    """On by default since V4; deepseek-chat is V4 without it: https://api-docs.deepseek.com/quick_start/pricing"""
    if re.match(r"deepseek-chat", call.model):
        return False
    if "/responses" in call.path:
        return bool(call.get("reasoning", "effort") != "none")
    return bool(call.get("thinking", "type") != "disabled")


def _broken(words: str) -> Complaint:
    return Complaint(f"Failed to deserialize the JSON body into the target type: {words} at line 1 column 85")


def _roles(call: Call) -> Complaint | None:
    """https://github.com/losesky/ai-auto-trading/issues/14"""
    for index, message in enumerate(call.items("messages")):
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            listed = "expected one of `system`, `user`, `assistant`, `tool`"
            return _broken(f"messages[{index}].role: unknown variant `{message.get('role')}`, {listed}")
    return None


def _text_only(call: Call) -> Complaint | None:
    """https://github.com/DayuanJiang/next-ai-draw-io/pull/326, and of tools' results https://github.com/Gitlawb/openclaude/pull/806"""
    for index, message in enumerate(call.items("messages")):
        if message.get("role") == "tool" and isinstance(message.get("content"), list):
            return _broken(f"messages[{index}]: invalid type: sequence, expected a string")
        for part in parts_of(message):
            if part.get("type") != "text":
                return _broken(f"messages[{index}]: unknown variant `{part.get('type')}`, expected `text`")
    return None


def _turns(call: Call) -> Iterator[list[dict[str, Any]]]:
    """Yield the assistant's messages between two user's messages."""
    turn: list[dict[str, Any]] = []
    for message in [*call.items("messages"), {"role": "user"}]:
        if message["role"] == "user":
            yield turn
            turn = []
        elif message["role"] == "assistant":
            turn.append(message)


def _thoughts(call: Call) -> Complaint | None:
    """https://api-docs.deepseek.com/guides/thinking_mode#tool-calls: all messages of a turn that called a tool bring it back.

    That the last answer of such a turn needs it, and that an empty one is enough: https://github.com/vercel/ai/issues/13203
    """
    for turn in _turns(call):
        has_calls = any(message.get("tool_calls") for message in turn)
        if _thinks(call) and has_calls and any(message.get("reasoning_content") is None for message in turn):
            return Complaint("The `reasoning_content` in the thinking mode must be passed back to the API.")
    return None


def _forced_tool(call: Call) -> Complaint | None:
    """https://github.com/BerriAI/litellm/pull/37470 has measured it, https://github.com/deepseek-ai/DeepSeek-V3/issues/1376"""
    if _thinks(call) and chat.forced_tool(call):
        return Complaint("Thinking mode does not support this tool_choice")
    return None


def _format(call: Call) -> Complaint | None:
    """https://api-docs.deepseek.com/api/create-chat-completion: text or json_object; https://github.com/llm-exe/llm-exe/issues/662"""
    kind = call.get("response_format", "type")
    if kind not in (None, "text", "json_object"):
        return Complaint("This response_format type is unavailable now")
    return chat.json_is_named(call)


def _effort(call: Call) -> Complaint | None:
    effort = call.body.get("reasoning_effort")
    if effort is not None and effort not in _CHAT_EFFORTS:
        return _broken(f"reasoning_effort: unknown variant `{effort}`, expected one of `low`, `high`, `max`")
    return None


def _stops(call: Call) -> Complaint | None:
    """https://api-docs.deepseek.com/api/create-chat-completion: at most 16"""
    return chat.stop_count(16)(call)


CHAT: tuple[Rule, ...] = (
    _roles,
    _text_only,
    chat.results_answer_calls,
    chat.messages_say_something,
    chat.options_need_stream,
    chat.tool_names(),  # https://api-docs.deepseek.com/api/create-chat-completion
    _thoughts,
    _forced_tool,
    _format,
    _effort,
    _stops,
)
# https://api-docs.deepseek.com/guides/thinking_mode has the responses' efforts.
RESPONSES: tuple[Rule, ...] = (_forced_tool,)


def error_body(complaint: Complaint) -> dict[str, Any]:
    error = {"message": complaint.message, "type": "invalid_request_error", "param": None, "code": "invalid_request_error"}
    return {"error": error}
