"""How does Anthropic's messages API send an answer?"""

import base64
import secrets
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
)

NAME = "messages"
MISSING_KEY = "x-api-key header is required"
BAD_KEY = "invalid x-api-key"
INVALID_JSON = "The request body is not valid JSON."

_STOP_REASON = {
    Finish.STOP: "end_turn",
    Finish.STOP_SEQUENCE: "stop_sequence",
    Finish.LENGTH: "max_tokens",
    Finish.TOOLS: "tool_use",
    Finish.REFUSAL: "refusal",
    Finish.FILTER: "refusal",
}

# status -> (type, message)
_ERRORS = {
    400: ("invalid_request_error", "The demo provider was asked to reject this request."),
    401: ("authentication_error", BAD_KEY),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: {model}"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit of 200,000 tokens per minute."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_RETRIED = {408, 409, 429}


def read(body: dict[str, Any]) -> AnswerRequest:
    request = read_prompt(body)
    request.tokens_max = positive_or_none(body.get("max_tokens"))
    if request.tokens_max is None:
        raise WireError(400, "max_tokens: Field required")
    return request


def read_prompt(body: dict[str, Any]) -> AnswerRequest:
    """Read a request that only counts tokens: it needs no token limit."""
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str) or not model:
        raise WireError(400, "model: Field required")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise WireError(400, "messages: Field required")
    last = messages[-1]
    content = last.get("content")
    is_prefill = last.get("role") == "assistant"
    choice = body.get("tool_choice")
    is_toolless = isinstance(choice, dict) and choice.get("type") == "none"
    return AnswerRequest(
        model=model,
        body=body,
        input_tokens=count_words(messages, body.get("system"), body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=[] if is_toolless else _tools(body.get("tools")),
        tool_result=None if is_prefill else _tool_result(content),
        prefill=content_text(content) if is_prefill else "",
        stops=texts_in(body.get("stop_sequences")),
        document_schema=_document_schema(body),
    )


def _tools(tools: Any) -> list[Tool]:
    # Tools with any other type run at the vendor; clients do not run them.
    client_tools = [tool for tool in dicts_in(tools) if tool.get("type", "custom") == "custom"]
    return [Tool(str(tool.get("name")), tool.get("input_schema")) for tool in client_tools]


def _tool_result(content: Any) -> str | None:
    results = [block for block in dicts_in(content) if block.get("type") == "tool_result"]
    return ", ".join(content_text(block.get("content")) for block in results) if results else None


def _document_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    config = body.get("output_config")
    output_format = config.get("format") if isinstance(config, dict) else body.get("output_format")
    if not isinstance(output_format, dict) or output_format.get("type") != "json_schema":
        return None
    return output_format["schema"] if isinstance(output_format.get("schema"), dict) else {"type": "object"}


def error_body(error: WireError, request: AnswerRequest | None, request_id: str) -> dict[str, Any]:
    kind, message = _ERRORS.get(error.status) or _ERRORS[500 if error.status >= 500 else 400]
    message = error.message or message.replace("{model}", request.model if request else "")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def headers(request_id: str, error: WireError | None = None) -> dict[str, str]:
    fields = {"request-id": request_id, "anthropic-organization-id": "00000000-0000-4000-8000-000000000000"}
    if error is not None:
        is_retried = error.status >= 500 or error.status in _RETRIED
        fields["x-should-retry"] = "true" if is_retried else "false"
    return fields


def _usage(request: AnswerRequest, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": request.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _full_usage(request: AnswerRequest, output_tokens: int) -> dict[str, Any]:
    return {
        **_usage(request, output_tokens),
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "service_tier": "standard",
        "inference_geo": "not_available",
    }


def _message(request: AnswerRequest, usage: dict[str, Any]) -> dict[str, Any]:
    """Return the message as it begins: without content and stop reason."""
    return {
        "model": request.model,
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": usage,
    }


def _ending(plan: Plan) -> dict[str, Any]:
    is_refusal = plan.finish in (Finish.REFUSAL, Finish.FILTER)
    return {
        "stop_reason": _STOP_REASON[plan.finish],
        "stop_sequence": plan.stop_sequence,
        "stop_details": {"type": "refusal", "category": None, "explanation": None} if is_refusal else None,
    }


def _signature(part: AnswerPart) -> str:
    # Opaque to clients, which only send it back.
    return base64.b64encode(f"demo signature {part.id}".encode()).decode()


def build_reply(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    content = [_reply_block(part) for part in plan.parts]
    return {**_message(request, _full_usage(request, plan.tokens)), "content": content, **_ending(plan)}


def _reply_block(part: AnswerPart) -> dict[str, Any]:
    match part.kind:
        case PartKind.REASONING:
            return {"type": "thinking", "thinking": part.text, "signature": _signature(part)}
        case PartKind.TOOL:
            try:
                arguments = orjson.loads(part.text)
            except orjson.JSONDecodeError:
                arguments = {}  # The token limit cut them off.
            return {"type": "tool_use", "id": f"toolu_{part.id}", "name": part.name, "input": arguments}
    # A refusal is ordinary text here; only the stop reason differs.
    return {"type": "text", "text": part.text}


def open_stream(request: AnswerRequest, plan: Plan) -> "MessageStream":
    return MessageStream(request, plan)


class MessageStream:
    """One streamed answer: a content block for each part."""

    def __init__(self, request: AnswerRequest, plan: Plan) -> None:
        self._request = request
        self._plan = plan

    def opening(self) -> bytes:
        # The first output token count is only a placeholder; the one in message_delta replaces it.
        message = _message(self._request, _full_usage(self._request, 1))
        start = _event("message_start", {"message": message})
        if self._plan.parts:
            start += _block_start(0, self._plan.parts[0])
        return start + _event("ping", {})

    def beats(self) -> Iterator[bytes]:
        for index, part in enumerate(self._plan.parts):
            before = _block_end(index - 1, self._plan.parts[index - 1]) + _block_start(index, part) if index else b""
            if part.kind is PartKind.TOOL:
                before += _delta(index, "input_json_delta", "partial_json", "")
            prefix, suffix = split_at_token(_delta(index, *_DELTA_OF[part.kind], MARK))
            # Hot path: runs once per token.
            for token in part.tokens:
                yield before + prefix + orjson.dumps(token) + suffix
                before = b""

    def closing(self) -> bytes:
        parts = self._plan.parts
        end = _block_end(len(parts) - 1, parts[-1]) if parts else b""
        usage = _usage(self._request, self._plan.tokens)
        if self._plan.reasoning_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": self._plan.reasoning_tokens}
        return end + _event("message_delta", {"delta": _ending(self._plan), "usage": usage}) + _event("message_stop", {})

    def failure(self) -> bytes:
        return _event("error", {"error": {"details": None, "type": "overloaded_error", "message": "Overloaded"}})


_DELTA_OF = {
    PartKind.REASONING: ("thinking_delta", "thinking"),
    PartKind.TEXT: ("text_delta", "text"),
    PartKind.REFUSAL: ("text_delta", "text"),
    PartKind.TOOL: ("input_json_delta", "partial_json"),
}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _delta(index: int, kind: str, field: str, text: str) -> bytes:
    return _event("content_block_delta", {"index": index, "delta": {"type": kind, field: text}})


def _block_start(index: int, part: AnswerPart) -> bytes:
    block: dict[str, Any]
    match part.kind:
        case PartKind.REASONING:
            block = {"type": "thinking", "thinking": "", "signature": ""}
        case PartKind.TOOL:
            block = {"type": "tool_use", "id": f"toolu_{part.id}", "name": part.name, "input": {}}
        case _:
            block = {"type": "text", "text": ""}
    return _event("content_block_start", {"index": index, "content_block": block})


def _block_end(index: int, part: AnswerPart) -> bytes:
    stop = _event("content_block_stop", {"index": index})
    if part.kind is PartKind.REASONING:
        return _delta(index, "signature_delta", "signature", _signature(part)) + stop
    return stop
