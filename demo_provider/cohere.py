"""How does Cohere's chat API, version 2, send an answer?"""

import secrets
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

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

NAME = "cohere"
MISSING_KEY = "no api key supplied"
BAD_KEY = "invalid api token"
INVALID_JSON = "invalid request: the body is not valid JSON"

_FINISH_REASON = {
    Finish.STOP: "COMPLETE",
    Finish.STOP_SEQUENCE: "STOP_SEQUENCE",
    Finish.LENGTH: "MAX_TOKENS",
    Finish.TOOLS: "TOOL_CALL",
    Finish.REFUSAL: "COMPLETE",  # A refusal is ordinary text here.
    Finish.FILTER: "ERROR",  # It has no word for a filter.
}
_ERRORS = {
    400: "invalid request: the demo provider was asked to reject it",
    401: BAD_KEY,
    402: "payment is required: please add or update your payment method",
    403: "your API key is not allowed to use this resource",
    404: "model '{model}' not found, make sure the correct model ID was used and that you have access to the model.",
    429: "You are using a Trial key, which is limited to 20 API calls / minute.",
    500: "an internal error occurred",
}
_GENERATION_FAILED = "your request resulted in an invalid tool generation. Try updating the messages or tool definitions"
_OWN_PROMPT_TOKENS = 496  # Cohere's own prompt: counted, but not billed.


def read(body: dict[str, Any]) -> AnswerRequest:
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str) or not model:
        raise WireError(400, "invalid request: model is required")
    if not isinstance(messages, list) or not messages:
        raise WireError(400, "invalid request: list of messages must contain at least one message")
    results, prefills = trailing(messages, "role", "tool"), trailing(messages, "role", "assistant")
    return AnswerRequest(
        model=model,
        body=body,
        input_tokens=count_words(messages, body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=[] if body.get("tool_choice") == "NONE" else _tools(body.get("tools")),
        tool_result=", ".join(content_text(message.get("content")) for message in results) if results else None,
        prefill=content_text(prefills[-1].get("content")) if prefills else "",
        stops=texts_in(body.get("stop_sequences")),
        tokens_max=positive_or_none(body.get("max_tokens")),
        document_schema=_document_schema(body.get("response_format")),
    )


def _tools(tools: Any) -> list[Tool]:
    functions = [tool.get("function") for tool in dicts_in(tools)]
    return [Tool(str(item.get("name")), item.get("parameters")) for item in functions if isinstance(item, dict)]


def _document_schema(response_format: Any) -> dict[str, Any] | None:
    if not isinstance(response_format, dict) or response_format.get("type") != "json_object":
        return None
    schema = response_format.get("json_schema")
    return schema if isinstance(schema, dict) else {"type": "object", "properties": {"answer": {"type": "string"}}}


def error_body(error: WireError, request: AnswerRequest | None, request_id: str) -> dict[str, Any]:
    usual = _ERRORS.get(error.status) or _ERRORS[500 if error.status >= 500 else 400]
    return {"id": _id(), "message": error.message or usual.replace("{model}", request.model if request else "")}


def headers(request_id: str, error: WireError | None = None) -> dict[str, str]:
    return {"x-debug-trace-id": request_id.removeprefix("req_")}


def _id() -> str:
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def _usage(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    real: dict[str, int] = {"input_tokens": request.input_tokens + _OWN_PROMPT_TOKENS, "output_tokens": plan.tokens + 2}
    if plan.reasoning_tokens:
        real["reasoning_tokens"] = plan.reasoning_tokens
    billed = {"input_tokens": request.input_tokens, "output_tokens": plan.tokens}
    return {"billed_units": billed, "tokens": real, "cached_tokens": 448}


def _has_calls(plan: Plan) -> bool:
    return any(part.kind is PartKind.TOOL for part in plan.parts)


def _call(part: AnswerPart, arguments: str) -> dict[str, Any]:
    id_ = f"{part.name}_{part.id[:12]}"
    return {"id": id_, "type": "function", "function": {"name": part.name, "arguments": arguments}}


def build_reply(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant"}
    content = [_reply_block(part) for part in plan.parts if part.kind is not PartKind.TOOL]
    if _has_calls(plan):
        message["tool_plan"] = "".join(part.text for part in plan.parts if part.kind is PartKind.REASONING)
        message["tool_calls"] = [_call(part, part.text) for part in plan.parts if part.kind is PartKind.TOOL]
        content = [block for block in content if block["type"] != "thinking"]
    if content:
        message["content"] = content
    return {"id": _id(), "message": message, "finish_reason": _FINISH_REASON[plan.finish], "usage": _usage(request, plan)}


def _reply_block(part: AnswerPart) -> dict[str, Any]:
    kind = _block_kind(part)
    return {"type": kind, kind: part.text}


def _block_kind(part: AnswerPart) -> str:
    return "thinking" if part.kind is PartKind.REASONING else "text"


def open_stream(request: AnswerRequest, plan: Plan) -> "CohereStream":
    return CohereStream(request, plan)


class CohereStream:
    """One streamed answer: a content block for each part. Reasoning before tool calls is sent as the tool plan."""

    def __init__(self, request: AnswerRequest, plan: Plan) -> None:
        self._request = request
        self._plan = plan

    def opening(self) -> bytes:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        return _event("message-start", {"id": _id(), "type": "message-start", "delta": {"message": message}})

    def beats(self) -> Iterator[bytes]:
        before, blocks, calls = b"", 0, 0
        has_calls = _has_calls(self._plan)
        for part in self._plan.parts:
            if part.kind is PartKind.TOOL:
                start, delta, end = _around_call(part, calls)
                calls += 1
            elif part.kind is PartKind.REASONING and has_calls:
                start, delta, end = b"", _delta("tool-plan-delta", None, {"tool_plan": MARK}), b""
            else:
                start, delta, end = _around_block(part, blocks)
                blocks += 1
            before += start
            prefix, suffix = split_at_token(delta)
            last = len(part.tokens) - 1
            # Hot path: runs once per token.
            for i, token in enumerate(part.tokens):
                yield before + prefix + orjson.dumps(token) + suffix + (end if i == last else b"")
                before = b""

    def closing(self) -> bytes:
        delta = {"finish_reason": _FINISH_REASON[self._plan.finish], "usage": _usage(self._request, self._plan)}
        return _event("message-end", {"type": "message-end", "delta": delta}) + b"data: [DONE]\n\n"

    def failure(self) -> bytes:
        delta = {"finish_reason": "ERROR", "usage": {}, "error": _GENERATION_FAILED, "error_type": "INVALID_TOOL_GENERATION"}
        return _event("message-end", {"type": "message-end", "delta": delta}) + b"data: [DONE]\n\n"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(fields))


def _delta(kind: str, index: int | None, message: dict[str, Any]) -> bytes:
    numbered = {"type": kind} if index is None else {"type": kind, "index": index}
    return _event(kind, {**numbered, "delta": {"message": message}})


def _end(kind: str, index: int) -> bytes:
    return _event(kind, {"type": kind, "index": index})


def _around_block(part: AnswerPart, index: int) -> tuple[bytes, bytes, bytes]:
    kind = _block_kind(part)
    start = _delta("content-start", index, {"content": {"type": kind, kind: ""}})
    return start, _delta("content-delta", index, {"content": {kind: MARK}}), _end("content-end", index)


def _around_call(part: AnswerPart, index: int) -> tuple[bytes, bytes, bytes]:
    start = _delta("tool-call-start", index, {"tool_calls": _call(part, "")})
    delta = _delta("tool-call-delta", index, {"tool_calls": {"function": {"arguments": MARK}}})
    return start, delta, _end("tool-call-end", index)
