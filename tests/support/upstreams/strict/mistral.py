"""What does Mistral refuse? Its server checks with the open library mistral-common, whose messages it shows."""

import re
from itertools import pairwise
from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, unknown_field, value_for

# https://docs.mistral.ai/api/endpoint/chat; anything else is 422: max_completion_tokens in
# https://github.com/editor-code-assistant/eca/issues/231, store in https://github.com/Gitlawb/openclaude/issues/739
_FIELDS = [
    "model",
    "messages",
    "temperature",
    "top_p",
    "max_tokens",
    "stream",
    "stop",
    "random_seed",
    "metadata",
    "response_format",
    "tools",
    "tool_choice",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "prediction",
    "parallel_tool_calls",
    "prompt_mode",
    "reasoning_effort",
    "guardrails",
    "safe_prompt",
    "prompt_cache_key",
    "stream_options",
]
# Of each role; reasoning_content is 422: https://github.com/charmbracelet/crush/issues/1590
_MESSAGE_FIELDS = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "tool_calls", "prefix"),
    "tool": ("role", "content", "tool_call_id", "name"),
}
# mistral-common, protocol/instruct/validator.py. A newer version of the library lets a user follow a tool; the hosted API was
# seen to refuse it in 2026-08: https://github.com/NousResearch/hermes-agent/issues/84944
_NEXT_ROLES = {
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool"),
}
# https://docs.mistral.ai/capabilities/reasoning; https://github.com/anomalyco/models.dev/pull/1986 has probed them. There,
# magistral-small took the field; https://github.com/NousResearch/hermes-agent/issues/11243 says 422 for it, as for all others.
# Large 4: https://docs.mistral.ai/inference/conversations/reasoning
_EFFORTS: ByModel[tuple[str, ...]] = [
    (r"mistral-large-4|zai-glm", ("none", "low", "medium", "high")),
    (r"mistral-small-(latest|26)|magistral-small|mistral-medium-(latest|3[.-]5|26)|mistral-vibe", ("none", "high")),
]
_ORDER = "invalid_request_message_order"


def _fields(call: Call) -> Complaint | None:
    if name := unknown_field(call.body, _FIELDS):
        return _extra("body", name)
    for index, message in enumerate(call.items("messages")):
        role = message.get("role", "")
        if role not in _MESSAGE_FIELDS:
            tags = ", ".join(f"'{each}'" for each in _MESSAGE_FIELDS)
            words = f"Input tag '{role}' found using 'role' does not match any of the expected tags: {tags}"
            return Complaint(words, code="union_tag_invalid", status=422)
        if name := unknown_field(message, _MESSAGE_FIELDS[role]):
            return _extra("body", "messages", index, role, name)
    return None


def _parts(call: Call) -> Complaint | None:
    """https://docs.mistral.ai/api/endpoint/chat, `ContentChunk`"""
    known = ("text", "image_url", "document_url", "reference", "file", "thinking", "input_audio")
    for message in call.items("messages"):
        for part in message["content"] if isinstance(message.get("content"), list) else []:
            kind = part.get("type")
            if kind not in known or (kind == "file" and "file_id" not in part):
                words = f"Input tag '{kind}' found using 'type' does not match any of the expected tags"
                return Complaint(words, "content", "union_tag_invalid", 422)
    return None


def _extra(*place: object) -> Complaint:
    return Complaint(f"Extra inputs are not permitted: {list(place)}", str(place[-1]), "extra_forbidden", 422)


def _order(call: Call) -> Complaint | None:
    roles = [message["role"] for message in call.items("messages")]
    for before, role in pairwise(roles):
        if role not in _NEXT_ROLES[before]:
            return Complaint(f"Unexpected role '{role}' after role '{before}'", _ORDER, "3230")
    # https://docs.mistral.ai/capabilities/completion/prefixes
    last = call.items("messages")[-1]
    if last["role"] not in ("user", "tool") and not last.get("prefix"):
        words = f"Expected last role User or Tool (or Assistant with prefix True) for serving but got {last['role']}"
        return Complaint(words, _ORDER, "3230")
    return None


def _counts(call: Call) -> Complaint | None:
    """mistral-common: "Not the same number of function calls and responses"."""
    calls = results = 0
    for message in [*call.items("messages"), {"role": "user"}]:
        if message["role"] == "tool":
            results += 1
        elif calls != results:
            return Complaint("Not the same number of function calls and responses", _ORDER, "3230")
        elif message["role"] == "assistant":
            calls, results = len(message.get("tool_calls") or []), 0
        else:
            calls = results = 0
    return None


def _ids(call: Call) -> Complaint | None:
    """https://github.com/nearai/ironclaw/issues/1241"""
    for message in call.items("messages"):
        ids = [item.get("id") for item in message.get("tool_calls") or []]
        for id_ in [*ids, *([message.get("tool_call_id")] if message["role"] == "tool" else [])]:
            if not re.fullmatch(r"[a-zA-Z0-9]{9}", id_ or ""):
                words = f"Tool call id was {id_} but must be a-z, A-Z, 0-9, with a length of 9."
                return Complaint(words, "invalid_function_call", "3280")
    return None


def _names(call: Call) -> Complaint | None:
    """mistral-common, `_validate_function_call` and `_validate_function`."""
    names = [function.get("name", "") for _, function in chat.functions_of(call)]
    names += [item["function"]["name"] for message in call.items("messages") for item in message.get("tool_calls") or []]
    for name in names:
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            limits = "must be a-z, A-Z, 0-9, or contain underscores and dashes, with a maximum length of 64."
            return Complaint(f"Function name was {name} but {limits}", "invalid_request_invalid_args", "3280")
    return None


def _says_something(call: Call) -> Complaint | None:
    """https://github.com/OpenHands/OpenHands/issues/8685"""
    for message in call.items("messages"):
        if message["role"] == "assistant" and not (
            message.get("content") or message.get("tool_calls") or message.get("prefix")
        ):
            words = "Assistant message must have either content or tool_calls, but not none."
            return Complaint(words, "invalid_request_assistant_message", "3240")
    return None


def _effort(call: Call) -> Complaint | None:
    effort = call.body.get("reasoning_effort")
    if effort is None:
        return None
    if effort not in ("none", "low", "medium", "high"):
        return Complaint("Input should be 'none', 'low', 'medium' or 'high'", "reasoning_effort", "literal_error", 422)
    if effort not in value_for(call.model, _EFFORTS, ()):
        return Complaint(f"reasoning_effort {effort!r} is not enabled for this model", "reasoning_effort", "value_error", 422)
    return None


def _temperature(call: Call) -> Complaint | None:
    """https://docs.mistral.ai/api/endpoint/chat: 0 to 1.5"""
    value = call.body.get("temperature")
    if value is not None and not 0 <= value <= 1.5:
        return Complaint("Input should be less than or equal to 1.5", "temperature", "less_than_equal", 422)
    return None


RULES: tuple[Rule, ...] = (_fields, _parts, _order, _counts, _ids, _names, _says_something, _effort, _temperature)


def error_body(complaint: Complaint) -> dict[str, Any]:
    if complaint.status == 422:
        detail = [{"type": complaint.code, "loc": ["body", complaint.param], "msg": complaint.message}]
        return {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "param": None, "code": None}
    return {"object": "error", "message": complaint.message, "type": complaint.param, "param": None, "code": complaint.code}
