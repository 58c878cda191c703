"""What do we promise clients of agentary-js' cloud provider?

Reading the body is ``agentary_request.py``; here is what goes back: chunks of one token each, their ids counted from 0.
The stream ends with a chunk of its own, because that client drops the text of the last one when it adds them up. Tool
calls come whole, in one chunk without a token. Thinking is not shown: whatever is in ``token`` is the answer.
Source: https://github.com/agentary-ai/agentary-js/blob/main/examples/cloud-proxy/README.md, and what
``src/providers/cloud.ts`` there reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import (
    Choice,
    Completed,
    Event,
    Finished,
    FinishReason,
    RefusalBlock,
    RefusalDelta,
    Reply,
    ReplyBuilder,
    TextBlock,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.dialects.agentary import request as agentary_request
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.shared.openai_words import DONE_EVENT, FINISH_WORD, parse_finish_reason
from common.dialects.shared.sent_events import count_in, dict_in, is_done, parse_events, text_in
from common.sse import encode_event

_INVALID_MODEL = "Invalid model"
_PHRASE_OF_STATUS = {401: "Unauthorized", 429: "Rate limit exceeded"}


class Agentary:
    name = "agentary"

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return agentary_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> "TokenEncoder":
        return TokenEncoder(info)

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        """All bytes are ours: no vendor speaks this."""
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
        whole = {
            "token": text,
            "tokenId": 0,
            "content": text,
            "finish_reason": FINISH_WORD[choice.finish_reason or FinishReason.STOP],
            "usage": _usage(reply.usage or Usage()),
        }
        if choice.tool_calls:
            whole["tool_calls"] = _calls(choice.tool_calls)
        return orjson.dumps(whole)

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

    def is_final(self, last: bytes) -> bool:
        return last == DONE_EVENT or last.startswith(b"error:")


class TokenEncoder:
    """Events to token chunks."""

    def __init__(self, info: ReplyInfo, next_id: int = 0) -> None:
        self._elapsed_ms = info.elapsed_ms
        self._next_id = next_id
        self._calls = ReplyBuilder()
        self._finish_reason = FinishReason.STOP

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token. No dict is built but for the first one.
        if type(event) is TextDelta and self._next_id and event.text and event.choice == 0:
            self._next_id += 1
            return b'data: {"token":%b,"tokenId":%d}\n\n' % (orjson.dumps(event.text), self._next_id - 1)
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if getattr(event, "choice", 0) != 0:
            return b""  # An answer is one choice; this dialect never asks for more.
        match event:
            case TextDelta() | RefusalDelta():
                # Not an empty one, which would be the first token, or look like the end.
                return self._chunk(event.text) if event.text else b""
            case ToolCallStarted() | ToolCallDelta():
                self._calls.add(event)
            case Finished():
                self._finish_reason = event.reason
                calls = [call for choice in self._calls.reply().choices.values() for call in _calls(choice.tool_calls)]
                return self._chunk("", toolCalls=calls) if calls else b""
            case Completed():
                end = {"finishReason": FINISH_WORD[self._finish_reason]}
                usage = {"usage": _usage(event.usage)} if event.usage else {}
                return self._chunk("", isLast=True, **end, **usage) + DONE_EVENT
            case Failed():
                return _error_event(event)
            case _:
                pass  # Thinking, its signatures, and the beginning, which the first token tells.
        return b""

    def _chunk(self, token: str, **fields: Any) -> bytes:
        chunk: dict[str, Any] = {"token": token, "tokenId": self._next_id}
        if self._next_id == 0:
            chunk |= {"isFirst": True, "ttfbMs": self._elapsed_ms()}
        self._next_id += 1
        return encode_event(orjson.dumps(chunk | fields))


def _text(choice: Choice) -> str:
    """What the model said, a refusal included: there is no other place for one."""
    return "".join(block.text for block in choice.blocks if isinstance(block, TextBlock | RefusalBlock))


def _calls(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    """The shape in which the client's own answers hold tool calls; the arguments are JSON text."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
        for call in calls
    ]


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "promptTokens": usage.input_tokens,
        "completionTokens": usage.output_tokens,
        "totalTokens": usage.input_tokens + usage.output_tokens,
    }


def _is_about_the_model(failed: Failed) -> bool:
    """Whether the model is unknown or forbidden, here or at the provider, where nothing else can be missing."""
    if failed.param == "provider":
        return False  # No such path, so to speak.
    return (
        failed.kind is ErrorKind.MODEL_NOT_FOUND
        or failed.code == "model_not_found"
        or (failed.kind is ErrorKind.PERMISSION_DENIED and failed.param == "model")
        or (failed.kind is ErrorKind.UPSTREAM_REJECTED and failed.status == 404)
    )


def _error_event(failed: Failed) -> bytes:
    """A field of its own, which readers of server-sent events pass over and this dialect's clients look for."""
    error = {"message": failed.message, "statusCode": AGENTARY.status(failed), "code": failed.code or failed.kind.value}
    return b"error: " + orjson.dumps(error) + b"\n\n"


AGENTARY = Agentary()
