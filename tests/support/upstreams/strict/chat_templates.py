"""What do servers refuse that apply the model's own chat template? vLLM, llama.cpp and Ollama, with the template of Qwen3.5.

https://huggingface.co/Qwen/Qwen3.5-27B/blob/main/chat_template.jinja: one system message, first; a user's message; no other
roles than system, user, assistant and tool. Other models' templates ask for less, so a model with another name gets only the
server's own checks.
"""

import re
from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import Call, Complaint, Rule, parts_of


def _template(call: Call) -> Complaint | None:
    """https://github.com/vllm-project/vllm/issues/41114, https://github.com/QwenLM/Qwen3.8/issues/244"""
    if not re.match(r"(?i)qwen[-_]?3[.:-][5-9]", call.model):
        return None
    messages = call.items("messages")
    for index, message in enumerate(messages):
        if message.get("role") == "system" and index:
            return _raised("System message must be at the beginning.", call)
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            return _raised("Unexpected message role.", call)
        if message.get("role") == "system" and any(part.get("type") != "text" for part in parts_of(message)):
            return _raised("System message cannot contain images.", call)
    if not any(message["role"] == "user" for message in messages):
        return _raised("No user query found in messages.", call)
    return None


def _parts(call: Call) -> Complaint | None:
    """vLLM, entrypoints/chat_utils.py; llama.cpp, common/chat.cpp; Ollama, openai/openai.go"""
    known = ("text", "image_url", "video_url", "audio_url", "input_audio", "refusal", "thinking")
    for message in call.items("messages"):
        for part in parts_of(message):
            if part.get("type") not in known:
                words = {"vllm": "Unknown part type", "ollama": "invalid message format"}
                return Complaint(f"{words.get(call.vendor, 'unsupported content[].type')}: {part.get('type')}")
    return None


def _raised(words: str, call: Call) -> Complaint:
    # llama.cpp answers 500: https://github.com/ggml-org/llama.cpp/issues/20079
    return Complaint(words, status=500 if call.vendor == "llama-cpp" else 400)


def _empty_tools(call: Call) -> Complaint | None:
    """https://github.com/vllm-project/vllm/pull/39780"""
    return chat.some_tools(call) if call.vendor == "vllm" else None


def _tool_choice(call: Call) -> Complaint | None:
    """vLLM, `check_tool_usage`: https://docs.vllm.ai/en/latest/features/tool_calling"""
    choice = call.body.get("tool_choice")
    if call.vendor != "vllm" or choice in (None, "none"):
        return None
    if not call.body.get("tools"):
        return Complaint("When using `tool_choice`, `tools` must be set.")
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        if name not in [function.get("name") for _, function in chat.functions_of(call)]:
            return Complaint("The tool specified in `tool_choice` does not match any of the specified `tools`")
    elif choice not in ("auto", "required"):
        return Complaint(
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.'
        )
    return None


def _options(call: Call) -> Complaint | None:
    """vLLM, `validate_stream_options`."""
    if call.vendor == "vllm" and call.body.get("stream_options") is not None and not call.body.get("stream"):
        return Complaint("Stream options can only be defined when `stream=True`.")
    return None


RULES: tuple[Rule, ...] = (_template, _parts, _empty_tools, _tool_choice, _options)


def error_body(complaint: Complaint) -> dict[str, Any]:
    kind = "BadRequestError" if complaint.status == 400 else "server_error"
    return {"error": {"message": complaint.message, "type": kind, "param": complaint.param, "code": complaint.status}}
