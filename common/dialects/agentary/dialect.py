"""What do we promise clients of agentary-js' cloud provider?

``request.py`` reads the body; this file writes the answer: chunks of one token each, with ids counted from 0. The stream
ends with a separate last chunk without text, because that client ignores the last chunk's text when it joins the tokens.
Tool calls come complete, in one chunk without a token. Reasoning is not sent: everything in ``token`` is the answer.
Source: https://github.com/agentary-ai/agentary-js/blob/main/examples/cloud-proxy/README.md, and what
``src/providers/cloud.ts`` in that repository reads.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from common.dialects.agentary import request as agentary_request
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.shared.openai_words import DONE_EVENT, FINISH_WORD, parse_finish_reason
from common.dialects.shared.sent_events import count_in, dict_in, is_done, parse_events, text_in
from common.sse import encode_event

_INVALID_MODEL = "Invalid model"
_PHRASE_OF_STATUS = {401: "Unauthorized", 429: "Rate limit exceeded"}


class Agentary:
    name = "agentary"
    lacks: Mapping[type[Event], str] = {ReasoningDelta: "reasoning", RedactedReasoning: "reasoning", OutputImage: "images"}

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return agentary_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> "TokenEncoder":
        return TokenEncoder(info)

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        """All bytes were written by us: no vendor uses this format."""
        chunks = [event for event in parse_events(blocks) if event is not None]
        text = "".join(text_in(chunk, "token") for chunk in chunks)
        is_plain = not any("toolCalls" in chunk for chunk in chunks)
        progress = Progress(text, is_plain, TokenEncoder(info, len(chunks)))
        if chunks and chunks[-1].get("isLast"):
            progress.encoder = EndedEncoder(b"" if is_done(blocks[-1]) else DONE_EVENT)
            progress.finished = Finished(parse_finish_reason(text_in(chunks[-1], "finishReason")))
            usage = dict_in(chunks[-1], "usage")
            progress.usage = Usage(count_in(usage, "promptTokens"), count_in(usage, "completionTokens")) if usage else None
        return progress

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        choice = reply.choices.get(0) or Choice()
        text = _text(choice)
        body = {
            "token": text,
            "tokenId": 0,
            "content": text,
            "finish_reason": FINISH_WORD[choice.finish_reason or FinishReason.STOP],
            "usage": _usage(reply.usage or Usage()),
        }
        if choice.tool_calls:
            body["tool_calls"] = _calls(choice.tool_calls)
        return orjson.dumps(body | _sources(choice.citations))

    def status(self, failed: Failed) -> int:
        return 400 if _is_about_the_model(failed) else failed.http_status

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        phrase = _INVALID_MODEL if _is_about_the_model(failed) else _PHRASE_OF_STATUS.get(failed.http_status, failed.message)
        error = {
            "error": phrase,
            "type": failed.type or failed.kind.value,
            "message": failed.message,
            "code": failed.code or failed.kind.value,
        }
        return orjson.dumps(error | ({"param": failed.param} if failed.param else {}))

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        return _error_event(failed)

    def event_text(self, event: dict[str, Any]) -> object:
        return event.get("token")

    def reply_text(self, answer: dict[str, Any]) -> object:
        return answer.get("token")

    def is_final(self, last_block: bytes) -> bool:
        return last_block == DONE_EVENT or last_block.startswith(b"error:")


class TokenEncoder:
    """Encodes events as token chunks."""

    def __init__(self, info: ReplyInfo, next_id: int = 0) -> None:
        self._elapsed_ms = info.elapsed_ms
        self._next_id = next_id
        self._calls = ReplyBuilder()
        self._citations: list[Citation] = []
        self._finish_reason = FinishReason.STOP

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token. Builds a dict only for the first token.
        if type(event) is TextDelta and self._next_id and event.text and event.choice == 0:
            self._next_id += 1
            return b'data: {"token":%b,"tokenId":%d}\n\n' % (orjson.dumps(event.text), self._next_id - 1)
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if getattr(event, "choice", 0) != 0:
            return b""  # An answer is one choice; this dialect never asks for more.
        match event:
            case TextDelta() | RefusalDelta():
                # Skip empty text: it would count as the first token, or look like the end.
                return self._chunk(event.text) if event.text else b""
            case ToolCallStarted() | ToolCallDelta():
                self._calls.add(event)
            case Citation():
                self._citations.append(event)
            case Finished():
                self._finish_reason = event.reason
                calls = [call for choice in self._calls.reply().choices.values() for call in _calls(choice.tool_calls)]
                return self._chunk("", toolCalls=calls) if calls else b""
            case Completed():
                end = {"finishReason": FINISH_WORD[self._finish_reason]}
                usage = {"usage": _usage(event.usage)} if event.usage else {}
                return self._chunk("", isLast=True, **end, **usage, **_sources(self._citations)) + DONE_EVENT
            case Failed():
                return _error_event(event)
            case _:
                pass  # Reasoning and signatures are not sent. The first token marks the start.
        return b""

    def _chunk(self, token: str, **fields: Any) -> bytes:
        chunk: dict[str, Any] = {"token": token, "tokenId": self._next_id}
        if self._next_id == 0:
            chunk |= {"isFirst": True, "ttfbMs": self._elapsed_ms()}
        self._next_id += 1
        return encode_event(orjson.dumps(chunk | fields))


def _text(choice: Choice) -> str:
    """Return the model's text, including a refusal: the format has no other place for one."""
    return "".join(block.text for block in choice.blocks if isinstance(block, TextBlock | RefusalBlock))


def _calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """Return tool calls in the shape that the client uses; the arguments are JSON text."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
        for call in calls
    ]


def _sources(citations: Iterable[Citation]) -> dict[str, Any]:
    """Return the answer's sources. That client ignores fields that it does not know."""
    sources = [{"url": citation.url, "title": citation.title} for citation in citations]
    return {"citations": sources} if sources else {}


def _usage(usage: Usage) -> dict[str, int]:
    fields = {
        "promptTokens": usage.input_tokens,
        "completionTokens": usage.output_tokens,
        "totalTokens": usage.input_tokens + usage.output_tokens,
    }
    if usage.cache_read_tokens or usage.cache_write_tokens:
        fields |= {"cacheReadTokens": usage.cache_read_tokens, "cacheWriteTokens": usage.cache_write_tokens}
    return fields


def _is_about_the_model(failed: Failed) -> bool:
    """Whether the model is unknown or forbidden, here or at the provider. A provider's 404 can only mean the model."""
    if failed.param == "provider":
        return False  # The path names an unknown provider.
    return (
        failed.kind in (ErrorKind.MODEL_NOT_FOUND, ErrorKind.UPSTREAM_MODEL_NOT_FOUND)
        or failed.code == "model_not_found"
        or (failed.kind is ErrorKind.PERMISSION_DENIED and failed.param == "model")
        or (failed.kind is ErrorKind.UPSTREAM_REJECTED and failed.status == 404)
    )


def _error_event(failed: Failed) -> bytes:
    """Return an ``error:`` field: SSE readers ignore unknown fields, and this dialect's clients look for it."""
    error = {"message": failed.message, "statusCode": AGENTARY.status(failed), "code": failed.code or failed.kind.value}
    return b"error: " + orjson.dumps(error) + b"\n\n"


AGENTARY = Agentary()
