"""What do we promise clients of the unified chat?

``request.py`` reads the body; this file writes the answer: pieces of text, then one event with usage, cost and latency.
Money is text with six decimals, null if the price is not known. Tool calls come complete, in one chunk. Reasoning is not
sent: the format has no place for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
    OutputImage,
    ReasoningDelta,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.canonical.reply import Choice, RefusalBlock, Reply, ReplyBuilder, TextBlock, ToolCall
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.shared.openai_words import FINISH_WORD, parse_finish_reason
from common.dialects.shared.sent_events import count_in, dict_in, parse_events, text_in
from common.dialects.unified import request as unified_request
from common.sse import encode_event


class Unified:
    name = "unified"
    lacks: Mapping[type[Event], str] = {ReasoningDelta: "reasoning", RedactedReasoning: "reasoning", OutputImage: "images"}

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return unified_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> "UnifiedEncoder":
        return UnifiedEncoder(info)

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        """All bytes were written by us: no vendor uses this format."""
        events = [event for event in parse_events(blocks) if event is not None]
        text = "".join(text_in(event, "content") for event in events)
        is_plain = not any("tool_calls" in event for event in events)
        progress = Progress(text, is_plain, UnifiedEncoder(info))
        if events and "finish_reason" in events[-1]:
            usage = dict_in(events[-1], "usage")
            progress.encoder = EndedEncoder()
            progress.finished = Finished(parse_finish_reason(text_in(events[-1], "finish_reason")))
            progress.usage = Usage(count_in(usage, "prompt_tokens"), count_in(usage, "completion_tokens"))
        return progress

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        choice = reply.choices.get(0) or Choice()
        message: dict[str, Any] = {"role": "assistant", "content": _text(choice)}
        if choice.tool_calls:
            message["tool_calls"] = _calls(choice.tool_calls)
        reason = choice.finish_reason or FinishReason.STOP
        answer = {"provider": info.provider, "message": message, **_account(reply.usage, reason, info)}
        return orjson.dumps(answer | _sources(choice.citations))

    def status(self, failed: Failed) -> int:
        return failed.http_status

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        if failed.kind is not ErrorKind.INVALID_REQUEST or failed.http_status != 400:
            return orjson.dumps(_error(failed))
        faults = failed.faults or {failed.param or "": _fault(failed)}
        details = _details(faults)
        return orjson.dumps({"error": "Invalid request", "details": details, "expectedSchema": unified_request.SCHEMA})

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        return _error_event(failed)

    def event_text(self, event: dict[str, Any]) -> object:
        return event.get("content")

    def reply_text(self, answer: dict[str, Any]) -> object:
        return dict_in(answer, "message").get("content")

    def is_final(self, last_block: bytes) -> bool:
        return last_block.startswith((b"event: done", b"event: error"))


class UnifiedEncoder:
    """Encodes events as ``chunk`` events, and one ``done`` event."""

    def __init__(self, info: ReplyInfo) -> None:
        self._info = info
        self._calls = ReplyBuilder()
        self._citations: list[Citation] = []
        self._finish_reason = FinishReason.STOP

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token, and builds no dict.
        if type(event) is TextDelta and event.text and event.choice == 0:
            return b'event: chunk\ndata: {"content":%b,"role":"assistant"}\n\n' % orjson.dumps(event.text)
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if getattr(event, "choice", 0) != 0:
            return b""  # An answer is one choice; this dialect refuses requests for more.
        match event:
            case RefusalDelta(text) if text:
                return _chunk(text)
            case ToolCallStarted() | ToolCallDelta():
                self._calls.add(event)
            case Citation():
                self._citations.append(event)
            case Finished():
                self._finish_reason = event.reason
                calls = [call for choice in self._calls.reply().choices.values() for call in _calls(choice.tool_calls)]
                return _chunk("", tool_calls=calls) if calls else b""
            case Completed():
                account = _account(event.usage, self._finish_reason, self._info)
                return encode_event(orjson.dumps(account | _sources(self._citations)), "done")
            case Failed():
                return _error_event(event)
            case _:
                pass  # Reasoning, signatures, empty text and the start are not sent.
        return b""


def _text(choice: Choice) -> str:
    """Return the model's text, including a refusal: the format has no other place for one."""
    return "".join(block.text for block in choice.blocks if isinstance(block, TextBlock | RefusalBlock))


def _sources(citations: Iterable[Citation]) -> dict[str, Any]:
    sources = [{"url": citation.url, "title": citation.title} for citation in citations]
    return {"citations": sources} if sources else {}


def _chunk(content: str, **fields: Any) -> bytes:
    return encode_event(orjson.dumps({"content": content, "role": "assistant", **fields}), "chunk")


def _calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """Return tool calls in the shape of OpenAI's chat. Requests send them back in the same shape."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
        for call in calls
    ]


def _account(reported: Usage | None, reason: FinishReason, info: ReplyInfo) -> dict[str, Any]:
    """Return usage, cost and latency. If the provider reports no tokens, they are 0 and the cost is null, never 0."""
    usage = reported or Usage()
    total = usage.input_tokens + usage.output_tokens
    cost = info.price(reported) if reported else None
    return {
        "usage": _tokens(usage),
        "cost": {
            "total_tokens": total,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "estimated_cost_usd": _money(cost.total_usd) if cost else None,
            "input_cost_usd": _money(cost.input_usd) if cost else None,
            "output_cost_usd": _money(cost.output_usd) if cost else None,
        },
        "latency_ms": info.elapsed_ms(),
        "finish_reason": FINISH_WORD[reason],
    }


def _tokens(usage: Usage) -> dict[str, Any]:
    """Return the counts of tokens, and of those that were read from a cache or written to one, if there were any."""
    prompt, completion = usage.input_tokens, usage.output_tokens
    fields: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if usage.cache_read_tokens or usage.cache_write_tokens:
        cached = {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens}
        fields["prompt_tokens_details"] = cached
    return fields


def _money(usd: Decimal) -> str:
    return f"{usd:.6f}"


def _fault(failed: Failed) -> str:
    """Return the message without the field name (the details' structure shows the field), in zod's wording if it has one."""
    fault = failed.message.removeprefix(f"{failed.param} ")
    return "Required" if fault == "is required." else fault


def _details(faults: Mapping[str, str]) -> dict[str, Any]:
    """Return the faults nested like the body, in the shape of zod's ``format()``.

    Source: https://v3.zod.dev/ERROR_HANDLING?id=formatting-errors
    """
    details: dict[str, Any] = {}
    for path, fault in faults.items():
        node = details
        for step in path.split(".") if path else []:
            node = node.setdefault(step, {"_errors": []})
        node.setdefault("_errors", []).append(fault)
    return details


def _error(failed: Failed) -> dict[str, Any]:
    error = {
        "error": failed.message,
        "type": failed.type or failed.kind.value,
        "code": failed.code or failed.kind.value,
    }
    return error | ({"param": failed.param} if failed.param else {})


def _error_event(failed: Failed) -> bytes:
    return encode_event(orjson.dumps(_error(failed)), "error")


UNIFIED = Unified()
