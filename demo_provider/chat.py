"""How does OpenAI's chat completions API send an answer?"""

import secrets
import time
from collections.abc import Iterator
from typing import Any

import orjson

from demo_provider import openai_common
from demo_provider.wire import (
    MARK,
    AnswerPart,
    AnswerRequest,
    Finish,
    PartKind,
    Plan,
    Tool,
    WireError,
    content_text,
    count_words,
    dicts_in,
    positive_or_none,
    split_at_token,
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
    Finish.FILTER: "content_filter",
}
_CHOICES_MAX = 128  # The vendor's own limit.


def read(body: dict[str, Any]) -> AnswerRequest:
    model = openai_common.require_model(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise WireError(400, "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    results = trailing(messages, "role", "tool")
    prefills = trailing(messages, "role", "assistant")
    return AnswerRequest(
        model=model,
        body=body,
        input_tokens=count_words(messages, body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=[] if body.get("tool_choice") == "none" else _tools(body.get("tools")),
        tool_result=", ".join(content_text(message.get("content")) for message in results) if results else None,
        prefill=content_text(prefills[-1].get("content")) if prefills else "",
        stops=texts_in(body.get("stop")),
        tokens_max=positive_or_none(body.get("max_completion_tokens")) or positive_or_none(body.get("max_tokens")),
        document_schema=openai_common.document_schema(body.get("response_format")),
        choices=min(positive_or_none(body.get("n")) or 1, _CHOICES_MAX),
    )


def _tools(tools: Any) -> list[Tool]:
    functions = [tool.get("function") for tool in dicts_in(tools)]
    return [Tool(str(item.get("name")), item.get("parameters")) for item in functions if isinstance(item, dict)]


def _usage(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    output = plan.tokens * request.choices
    return {
        "prompt_tokens": request.input_tokens,
        "completion_tokens": output,
        "total_tokens": request.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": plan.reasoning_tokens * request.choices,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _frame_fields(request: AnswerRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(14)}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
    }


def _call_id(part: AnswerPart, choice: int) -> str:
    return f"call_{part.id}" if choice == 0 else f"call_{part.id}{choice}"


def _text_of_kind(plan: Plan, kind: PartKind) -> str | None:
    return "".join(part.text for part in plan.parts if part.kind is kind) or None


def build_reply(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    choices = [
        {
            "index": choice,
            "message": _message(plan, choice),
            "logprobs": None,
            "finish_reason": _FINISH_REASON[plan.finish],
        }
        for choice in range(request.choices)
    ]
    return {**_frame_fields(request, "chat.completion"), "choices": choices, "usage": _usage(request, plan)}


def _message(plan: Plan, choice: int) -> dict[str, Any]:
    calls = [
        {"id": _call_id(part, choice), "type": "function", "function": {"name": part.name, "arguments": part.text}}
        for part in plan.parts
        if part.kind is PartKind.TOOL
    ]
    refusal, reasoning = _text_of_kind(plan, PartKind.REFUSAL), _text_of_kind(plan, PartKind.REASONING)
    content = _text_of_kind(plan, PartKind.TEXT)
    if content is None and not calls and refusal is None:
        content = ""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def open_stream(request: AnswerRequest, plan: Plan) -> "ChatStream":
    return ChatStream(request, plan)


class ChatStream:
    """One streamed answer. All choices have the same text; they take turns, one token each."""

    def __init__(self, request: AnswerRequest, plan: Plan) -> None:
        self._request = request
        self._plan = plan
        options = request.body.get("stream_options")
        self._sends_usage = isinstance(options, dict) and options.get("include_usage") is True
        fields = orjson.dumps(_frame_fields(request, "chat.completion.chunk"))
        self._head = b"data: " + fields[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if self._sends_usage else b"}\n\n"

    def opening(self) -> bytes:
        kinds = {part.kind for part in self._plan.parts}
        has_text = not kinds or PartKind.TEXT in kinds
        refusal = "" if PartKind.REFUSAL in kinds else None
        delta = {"role": "assistant", "content": "" if has_text else None, "refusal": refusal}
        return b"".join(self._chunk(choice, delta) for choice in range(self._request.choices))

    def beats(self) -> Iterator[bytes]:
        calls = 0
        for part in self._plan.parts:
            before = b""
            if part.kind is PartKind.TOOL:
                before = b"".join(self._call_start(part, calls, choice) for choice in range(self._request.choices))
                calls += 1
            frames = [self._around_token(part, calls - 1, choice) for choice in range(self._request.choices)]
            # Hot path: runs once per token.
            for token in part.tokens:
                text = orjson.dumps(token)
                yield before + b"".join([prefix + text + suffix for prefix, suffix in frames])
                before = b""

    def closing(self) -> bytes:
        reason = _FINISH_REASON[self._plan.finish]
        end = b"".join(self._chunk(choice, {}, reason) for choice in range(self._request.choices))
        if self._sends_usage:
            end += self._head + b'[],"usage":' + orjson.dumps(_usage(self._request, self._plan)) + b"}\n\n"
        return end + b"data: [DONE]\n\n"

    def failure(self) -> bytes:
        error = openai_common.error_object(WireError(500), self._request)
        return b"data: " + orjson.dumps({"error": error}) + b"\n\n"

    def _chunk(self, choice: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        return self._head + orjson.dumps(choices) + self._tail

    def _call_start(self, part: AnswerPart, index: int, choice: int) -> bytes:
        function = {"name": part.name, "arguments": ""}
        call = {"index": index, "id": _call_id(part, choice), "type": "function", "function": function}
        return self._chunk(choice, {"tool_calls": [call]})

    def _around_token(self, part: AnswerPart, call: int, choice: int) -> tuple[bytes, bytes]:
        delta: dict[str, Any]
        match part.kind:
            case PartKind.REASONING:
                delta = {"content": None, "reasoning_content": MARK}
            case PartKind.TEXT:
                delta = {"content": MARK}
            case PartKind.REFUSAL:
                delta = {"refusal": MARK}
            case PartKind.TOOL:
                delta = {"tool_calls": [{"index": call, "function": {"arguments": MARK}}]}
        return split_at_token(self._chunk(choice, delta))
