"""How does OpenAI's chat completions API say an answer?"""

import secrets
import time
from collections.abc import Iterator
from typing import Any

import orjson

from demo_provider import openai_common
from demo_provider.wire import (
    MARK,
    Ask,
    Finish,
    Part,
    PartKind,
    Plan,
    Tool,
    WireError,
    around_token,
    count_words,
    dicts_in,
    positive_or_none,
    text_of,
    texts_in,
    trailing,
)

NAME = "chat"
MISSING_KEY = openai_common.MISSING_KEY
BAD_KEY = openai_common.BAD_KEY
INVALID_JSON = openai_common.INVALID_JSON
error_body = openai_common.error_body
headers = openai_common.headers

_FINISH_REASON = {
    Finish.STOP: "stop",
    Finish.STOP_SEQUENCE: "stop",
    Finish.LENGTH: "length",
    Finish.TOOLS: "tool_calls",
    Finish.REFUSAL: "stop",
}
_CHOICES_MAX = 128  # The vendor's own limit.


def read(body: dict[str, Any]) -> Ask:
    model = openai_common.require_model(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise WireError(400, "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    results = trailing(messages, "role", "tool")
    own = trailing(messages, "role", "assistant")
    return Ask(
        model=model,
        body=body,
        input_tokens=count_words(messages, body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=[] if body.get("tool_choice") == "none" else _tools(body.get("tools")),
        tool_result=", ".join(text_of(message.get("content")) for message in results) if results else None,
        prefill=text_of(own[-1].get("content")) if own else "",
        stops=texts_in(body.get("stop")),
        tokens_max=positive_or_none(body.get("max_completion_tokens")) or positive_or_none(body.get("max_tokens")),
        document_schema=openai_common.document_schema(body.get("response_format")),
        choices=min(positive_or_none(body.get("n")) or 1, _CHOICES_MAX),
    )


def _tools(tools: Any) -> list[Tool]:
    functions = [tool.get("function") for tool in dicts_in(tools)]
    return [Tool(str(each.get("name")), each.get("parameters")) for each in functions if isinstance(each, dict)]


def _usage(ask: Ask, plan: Plan) -> dict[str, Any]:
    output = plan.tokens * ask.choices
    return {
        "prompt_tokens": ask.input_tokens,
        "completion_tokens": output,
        "total_tokens": ask.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": plan.thinking_tokens * ask.choices,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _frame_fields(ask: Ask, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(14)}",
        "object": kind,
        "created": int(time.time()),
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
    }


def _call_id(part: Part, choice: int) -> str:
    return f"call_{part.id}" if choice == 0 else f"call_{part.id}{choice}"


def _text_of_kind(plan: Plan, kind: PartKind) -> str | None:
    return "".join(part.text for part in plan.parts if part.kind is kind) or None


def whole(ask: Ask, plan: Plan) -> dict[str, Any]:
    """Return the answer that is not streamed."""
    choices = [
        {
            "index": choice,
            "message": _message(plan, choice),
            "logprobs": None,
            "finish_reason": _FINISH_REASON[plan.finish],
        }
        for choice in range(ask.choices)
    ]
    return {**_frame_fields(ask, "chat.completion"), "choices": choices, "usage": _usage(ask, plan)}


def _message(plan: Plan, choice: int) -> dict[str, Any]:
    calls = [
        {"id": _call_id(part, choice), "type": "function", "function": {"name": part.name, "arguments": part.text}}
        for part in plan.parts
        if part.kind is PartKind.TOOL
    ]
    refusal, thinking = _text_of_kind(plan, PartKind.REFUSAL), _text_of_kind(plan, PartKind.THINKING)
    content = _text_of_kind(plan, PartKind.TEXT)
    if content is None and not calls and refusal is None:
        content = ""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
    if thinking is not None:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def open_stream(ask: Ask, plan: Plan) -> "ChatStream":
    return ChatStream(ask, plan)


class ChatStream:
    """One streamed answer. Choices say the same text, a token each in turn."""

    def __init__(self, ask: Ask, plan: Plan) -> None:
        self._ask = ask
        self._plan = plan
        options = ask.body.get("stream_options")
        self._has_usage = isinstance(options, dict) and options.get("include_usage") is True
        fields = orjson.dumps(_frame_fields(ask, "chat.completion.chunk"))
        self._head = b"data: " + fields[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if self._has_usage else b"}\n\n"

    def opening(self) -> bytes:
        kinds = {part.kind for part in self._plan.parts}
        has_text = not kinds or PartKind.TEXT in kinds
        refusal = "" if PartKind.REFUSAL in kinds else None
        delta = {"role": "assistant", "content": "" if has_text else None, "refusal": refusal}
        return b"".join(self._chunk(choice, delta) for choice in range(self._ask.choices))

    def beats(self) -> Iterator[bytes]:
        calls = 0
        for part in self._plan.parts:
            before = b""
            if part.kind is PartKind.TOOL:
                before = b"".join(self._call_start(part, calls, choice) for choice in range(self._ask.choices))
                calls += 1
            frames = [self._around_token(part, calls - 1, choice) for choice in range(self._ask.choices)]
            # Hot path: once per token.
            for token in part.tokens:
                text = orjson.dumps(token)
                yield before + b"".join([prefix + text + suffix for prefix, suffix in frames])
                before = b""

    def closing(self) -> bytes:
        reason = _FINISH_REASON[self._plan.finish]
        end = b"".join(self._chunk(choice, {}, reason) for choice in range(self._ask.choices))
        if self._has_usage:
            end += self._head + b'[],"usage":' + orjson.dumps(_usage(self._ask, self._plan)) + b"}\n\n"
        return end + b"data: [DONE]\n\n"

    def failure(self) -> bytes:
        error = openai_common.error_object(WireError(500), self._ask)
        return b"data: " + orjson.dumps({"error": error}) + b"\n\n"

    def _chunk(self, choice: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        return self._head + orjson.dumps(choices) + self._tail

    def _call_start(self, part: Part, index: int, choice: int) -> bytes:
        function = {"name": part.name, "arguments": ""}
        call = {"index": index, "id": _call_id(part, choice), "type": "function", "function": function}
        return self._chunk(choice, {"tool_calls": [call]})

    def _around_token(self, part: Part, call: int, choice: int) -> tuple[bytes, bytes]:
        delta: dict[str, Any]
        match part.kind:
            case PartKind.THINKING:
                delta = {"content": None, "reasoning_content": MARK}
            case PartKind.TEXT:
                delta = {"content": MARK}
            case PartKind.REFUSAL:
                delta = {"refusal": MARK}
            case PartKind.TOOL:
                delta = {"tool_calls": [{"index": call, "function": {"arguments": MARK}}]}
        return around_token(self._chunk(choice, delta))
