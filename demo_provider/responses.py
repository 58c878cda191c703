"""How does OpenAI's responses API send an answer?"""

import base64
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

NAME = "responses"
MISSING_KEY = openai_common.MISSING_KEY
BAD_KEY = openai_common.BAD_KEY
INVALID_JSON = openai_common.INVALID_JSON
error_body = openai_common.error_body
headers = openai_common.headers

# Request fields that a response repeats, with the vendor's defaults.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def read(body: dict[str, Any]) -> AnswerRequest:
    model = openai_common.require_model(body)
    items = body.get("input")
    if not isinstance(items, str | list) or not items:
        raise WireError(
            400,
            "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation_id' must be provided.",
            param="input",
            code="missing_required_parameter",
        )
    results = trailing(items, "type", "function_call_output") if isinstance(items, list) else []
    text = body.get("text")
    return AnswerRequest(
        model=model,
        body=body,
        input_tokens=count_words(items, body.get("instructions"), body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=[] if body.get("tool_choice") == "none" else _tools(body.get("tools")),
        tool_result=", ".join(content_text(item.get("output")) for item in results) if results else None,
        tokens_max=positive_or_none(body.get("max_output_tokens")),
        document_schema=openai_common.document_schema(text.get("format")) if isinstance(text, dict) else None,
    )


def _tools(tools: Any) -> list[Tool]:
    functions = [tool for tool in dicts_in(tools) if tool.get("type") == "function"]
    return [Tool(str(item.get("name")), item.get("parameters")) for item in functions]


def _usage(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    return {
        "input_tokens": request.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": plan.tokens,
        "output_tokens_details": {"reasoning_tokens": plan.reasoning_tokens},
        "total_tokens": request.input_tokens + plan.tokens,
    }


def _response(request: AnswerRequest) -> dict[str, Any]:
    """Return the response object of an answer that has just begun."""
    echoed = {key: default if request.body.get(key) is None else request.body[key] for key, default in _ECHOED.items()}
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": request.body.get("background") is True,
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "output": [],
        "service_tier": "default",
        "usage": None,
        **echoed,
    }


_INCOMPLETE = {Finish.LENGTH: "max_output_tokens", Finish.FILTER: "content_filter"}


def _finished_response(response: dict[str, Any], request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    reason = _INCOMPLETE.get(plan.finish)
    return {
        **response,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": [_item(request, plan, part, is_done=True) for part in plan.parts],
        "usage": _usage(request, plan),
    }


def _item(request: AnswerRequest, plan: Plan, part: AnswerPart, *, is_done: bool) -> dict[str, Any]:
    """Return a part as an output item: as announced, or as completed."""
    is_cut = plan.finish is Finish.LENGTH and part is plan.parts[-1]
    status = ("incomplete" if is_cut else "completed") if is_done else "in_progress"
    match part.kind:
        case PartKind.REASONING:
            summary = [{"type": "summary_text", "text": part.text}] if is_done else []
            item = {"id": f"rs_{part.id}", "type": "reasoning", "summary": summary}
            if "reasoning.encrypted_content" in texts_in(request.body.get("include")):
                # Opaque to clients, which only send it back.
                item["encrypted_content"] = base64.b64encode(part.id.encode()).decode()
            return item
        case PartKind.TOOL:
            return {
                "id": f"fc_{part.id}",
                "type": "function_call",
                "status": status,
                "arguments": part.text if is_done else "",
                "call_id": f"call_{part.id}",
                "name": part.name,
            }
    content = [_content(part, part.text)] if is_done else []
    return {"id": f"msg_{part.id}", "type": "message", "status": status, "content": content, "role": "assistant"}


def _content(part: AnswerPart, text: str) -> dict[str, Any]:
    if part.kind is PartKind.REFUSAL:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def build_reply(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    return _finished_response(_response(request), request, plan)


def open_stream(request: AnswerRequest, plan: Plan) -> "ResponseStream":
    return ResponseStream(request, plan)


class ResponseStream:
    """One streamed answer: an output item for each part, and a sequence number on every event."""

    def __init__(self, request: AnswerRequest, plan: Plan) -> None:
        self._request = request
        self._plan = plan
        self.response = _response(request)
        self._sequence = 0

    def opening(self) -> bytes:
        return b"".join(self._event(f"response.{name}", response=self.response) for name in ("created", "in_progress"))

    def beats(self) -> Iterator[bytes]:
        for index, part in enumerate(self._plan.parts):
            before = self._end_part(index - 1) if index else b""
            before += self._start_part(index, part)
            prefix, suffix = split_at_token(_until_sequence(*_part_delta(index, part, MARK)))
            # Hot path: runs once per token.
            for token in part.tokens:
                beat = before + prefix + orjson.dumps(token) + suffix + b"%d}\n\n" % self._sequence
                # Before the yield: a failure stops this generator, and its events continue the numbering.
                self._sequence += 1
                yield beat
                before = b""

    def closing(self) -> bytes:
        end = self._end_part(len(self._plan.parts) - 1) if self._plan.parts else b""
        finished = _finished_response(self.response, self._request, self._plan)
        return end + self._event(f"response.{finished['status']}", response=finished)

    def failure(self) -> bytes:
        error = openai_common.error_object(WireError(500), self._request)
        error["code"] = "server_error"
        brief = {"code": error["code"], "message": error["message"]}
        failed = {**self.response, "status": "failed", "error": brief}
        return self._event("error", error=error) + self._event("response.failed", response=failed)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = _until_sequence(kind, fields) + b"%d}\n\n" % self._sequence
        self._sequence += 1
        return event

    def _start_part(self, index: int, part: AnswerPart) -> bytes:
        item = _item(self._request, self._plan, part, is_done=False)
        start = self._event("response.output_item.added", item=item, output_index=index)
        place = {"item_id": item["id"], "output_index": index}
        match part.kind:
            case PartKind.REASONING:
                empty = {"type": "summary_text", "text": ""}
                start += self._event("response.reasoning_summary_part.added", part=empty, summary_index=0, **place)
            case PartKind.TEXT | PartKind.REFUSAL:
                start += self._event("response.content_part.added", part=_content(part, ""), content_index=0, **place)
        return start

    def _end_part(self, index: int) -> bytes:
        part = self._plan.parts[index]
        item = _item(self._request, self._plan, part, is_done=True)
        place = {"item_id": item["id"], "output_index": index}
        match part.kind:
            case PartKind.REASONING:
                place["summary_index"] = 0
                summary = {"type": "summary_text", "text": part.text}
                end = self._event("response.reasoning_summary_text.done", text=part.text, **place)
                end += self._event("response.reasoning_summary_part.done", part=summary, **place)
            case PartKind.TOOL:
                end = self._event("response.function_call_arguments.done", arguments=part.text, name=part.name, **place)
            case PartKind.REFUSAL:
                place["content_index"] = 0
                end = self._event("response.refusal.done", refusal=part.text, **place)
                end += self._event("response.content_part.done", part=_content(part, part.text), **place)
            case PartKind.TEXT:
                place["content_index"] = 0
                end = self._event("response.output_text.done", text=part.text, logprobs=[], **place)
                end += self._event("response.content_part.done", part=_content(part, part.text), **place)
        return end + self._event("response.output_item.done", item=item, output_index=index)


def _until_sequence(kind: str, fields: dict[str, Any]) -> bytes:
    """Return an event up to its sequence number, which is the last field."""
    data = orjson.dumps({"type": kind, **fields})
    return b'event: %b\ndata: %b,"sequence_number":' % (kind.encode(), data[:-1])


def _part_delta(index: int, part: AnswerPart, delta: str) -> tuple[str, dict[str, Any]]:
    """Return the type and the fields of a part's delta event."""
    match part.kind:
        case PartKind.REASONING:
            place = {"item_id": f"rs_{part.id}", "output_index": index, "summary_index": 0}
            return "response.reasoning_summary_text.delta", {"delta": delta, **place}
        case PartKind.TOOL:
            place = {"item_id": f"fc_{part.id}", "output_index": index}
            return "response.function_call_arguments.delta", {"delta": delta, **place}
        case PartKind.REFUSAL:
            place = {"item_id": f"msg_{part.id}", "output_index": index, "content_index": 0}
            return "response.refusal.delta", {"delta": delta, **place}
        case PartKind.TEXT:
            place = {"item_id": f"msg_{part.id}", "output_index": index, "content_index": 0}
            return "response.output_text.delta", {"delta": delta, "logprobs": [], **place}
