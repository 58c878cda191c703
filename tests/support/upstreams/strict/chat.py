"""Which rules do all vendors of the chat completions have, or almost all?

Most of these vendors took OpenAI's checks over together with its format, and often its words.
"""

import re
from collections.abc import Collection
from typing import Any

from tests.support.upstreams.strict.rules import Call, Complaint, Rule, not_strict, parts_of, unknown_field

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")


def functions_of(call: Call) -> list[tuple[int, dict[str, Any]]]:
    """Return the offered functions with their positions."""
    tools = enumerate(call.items("tools"))
    return [(index, tool["function"]) for index, tool in tools if isinstance(tool.get("function"), dict)]


def forced_tool(call: Call) -> bool:
    """Whether the model must call a tool."""
    choice = call.get("tool_choice")
    return choice in ("required", "any") or isinstance(choice, dict)


def known_roles(*roles: str) -> Rule:
    def check(call: Call) -> Complaint | None:
        for index, message in enumerate(call.items("messages")):
            if message.get("role") not in roles:
                listed = ", ".join(f"'{role}'" for role in roles)
                message_text = f"Invalid value: '{message.get('role')}'. Supported values are: {listed}."
                return Complaint(message_text, f"messages[{index}].role", "invalid_value")
        return None

    return check


def results_answer_calls(call: Call) -> Complaint | None:
    """Each result follows the message with its call, and each call has its result.

    https://github.com/smarter-sh/smarter/issues/264
    """
    waiting: list[str] = []
    for index, message in enumerate(call.items("messages")):
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in waiting:
                words = "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
                return Complaint(f"Invalid parameter: {words}", f"messages.[{index}].role")
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            return _unanswered(waiting, index)
        waiting = [item["id"] for item in message.get("tool_calls") or []]
    return _unanswered(waiting, len(call.items("messages"))) if waiting else None


def _unanswered(ids: list[str], index: int) -> Complaint:
    words = (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'."
        f" The following tool_call_ids did not have response messages: {', '.join(ids)}"
    )
    return Complaint(words, f"messages.[{index}].role")


def messages_say_something(call: Call) -> Complaint | None:
    """Only an assistant's message with calls may have no content. https://platform.openai.com/docs/api-reference/chat/create"""
    for index, message in enumerate(call.items("messages")):
        has_calls = bool(message.get("tool_calls")) or bool(message.get("function_call"))
        if message.get("content") is None and not (has_calls or message.get("refusal") or message.get("audio")):
            words = f"Invalid value for 'content': expected a string, got null. ('messages[{index}].content')"
            return Complaint(words, f"messages.[{index}].content", "invalid_type")
        if message.get("content") == []:
            return Complaint(f"Invalid 'messages[{index}].content': empty array.", f"messages[{index}].content", "empty_array")
    return None


def tool_names(pattern: str = r"[a-zA-Z0-9_-]{1,64}") -> Rule:
    """https://developers.openai.com/api/docs/api-reference/chat: a-z, A-Z, 0-9, underscores and dashes, at most 64."""

    def check(call: Call) -> Complaint | None:
        used = [(f"tools[{index}].function.name", function.get("name", "")) for index, function in functions_of(call)]
        for index, message in enumerate(call.items("messages")):
            for place, item in enumerate(message.get("tool_calls") or []):
                name = item.get("function", {}).get("name", "")
                used.append((f"messages[{index}].tool_calls[{place}].function.name", name))
        for param, name in used:
            if len(name) > 64:
                return too_long(param, name, 64)
            if not re.fullmatch(pattern, name):
                words = f"string does not match pattern. Expected a string that matches the pattern '^{pattern}$'."
                return Complaint(f"Invalid '{param}': {words}", param, "invalid_value")
        return None

    return check


def choice_needs_tools(call: Call) -> Complaint | None:
    """https://github.com/vllm-project/vllm/pull/40311 has a table of what OpenAI answers."""
    if call.body.get("tools"):
        return None
    for field in ("tool_choice", "parallel_tool_calls"):
        if call.body.get(field) is not None:
            return Complaint(f"Invalid value for '{field}': '{field}' is only allowed when 'tools' are specified.", field)
    return None


def some_tools(call: Call) -> Complaint | None:
    """https://github.com/vllm-project/vllm/pull/40311, https://github.com/runebookai/tome/pull/87 (DeepSeek)"""
    if call.body.get("tools") == []:
        words = "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead."
        return Complaint(words, "tools", "empty_array")
    return None


def strict_schemas(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/structured-outputs"""
    for index, function in functions_of(call):
        if function.get("strict") and (reason := not_strict(function.get("parameters") or {})):
            words = f"Invalid schema for function '{function['name']}': {reason}"
            return Complaint(words, f"tools[{index}].function.parameters", "invalid_function_parameters")
    wanted = call.get("response_format", "json_schema") or {}
    if wanted.get("strict") and (reason := not_strict(wanted.get("schema") or {})):
        return Complaint(f"Invalid schema for response_format '{wanted.get('name')}': {reason}", "response_format")
    return None


def stop_count(most: int) -> Rule:
    def check(call: Call) -> Complaint | None:
        stop = call.body.get("stop")
        if isinstance(stop, list) and len(stop) > most:
            words = f"Expected an array with maximum length {most}, but got an array with length {len(stop)} instead."
            return Complaint(f"Invalid 'stop': array too long. {words}", "stop", "array_above_max_length")
        return None

    return check


def options_need_stream(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/api-reference/chat: "only set this when you set stream: true"."""
    if call.body.get("stream_options") is not None and not call.body.get("stream"):
        return Complaint("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    return None


def known_fields(known: Collection[str], words: str = "Unrecognized request argument supplied: {name}") -> Rule:
    def check(call: Call) -> Complaint | None:
        name = unknown_field(call.body, known)
        return Complaint(words.format(name=name), name) if name else None

    return check


def without_images(words: str) -> Rule:
    """For models that read text only."""

    def check(call: Call) -> Complaint | None:
        for index, message in enumerate(call.items("messages")):
            if any(part.get("type") != "text" for part in parts_of(message)):
                return Complaint(words.format(index=index), f"messages[{index}].content")
        return None

    return check


def image_types(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/images-vision#image-input-requirements"""
    for message in call.items("messages"):
        for part in parts_of(message):
            url = (part.get("image_url") or {}).get("url", "") if part.get("type") == "image_url" else ""
            if url.startswith("data:") and url[5:].partition(";")[0] not in IMAGE_TYPES:
                listed = "['png', 'jpeg', 'gif', 'webp']"
                return Complaint(
                    f"You uploaded an unsupported image. Please make sure your image is one of these formats: {listed}.",
                    code="invalid_image_format",
                )
    return None


def json_is_named(call: Call) -> Complaint | None:
    """https://developers.openai.com/api/docs/guides/structured-outputs#json-mode"""
    if call.get("response_format", "type") != "json_object":
        return None
    texts = [part.get("text", "") for message in call.items("messages") for part in parts_of(message)]
    if any("json" in text.lower() for text in texts):
        return None
    words = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
    return Complaint(words, "messages")


def too_long(param: str, value: str, most: int) -> Complaint:
    words = f"Expected a string with maximum length {most}, but got a string with length {len(value)} instead."
    return Complaint(f"Invalid '{param}': string too long. {words}", param, "string_above_max_length")


def unsupported_value(model: str, field: str, value: object, supported: Collection[str]) -> Complaint:
    """https://github.com/openai/openai-agents-python/issues/2089"""
    words = f"Unsupported value: '{value}' is not supported with the '{model}' model."
    listed = f" Supported values are: {', '.join(repr(each) for each in supported)}." if supported else ""
    return Complaint(words + listed, field, "unsupported_value")


# The rules that every vendor of the chat completions has.
SHAPE: tuple[Rule, ...] = (results_answer_calls, messages_say_something, choice_needs_tools, some_tools, options_need_stream)
