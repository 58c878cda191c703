"""What do we promise clients of Anthropic's messages?

``request.py`` reads the body; this file writes the answer. Shapes and order are those of recorded streams.
Source: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    OutputImage,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.canonical.reply import Choice, ImageBlock, ReasoningBlock, RefusalBlock, Reply, TextBlock, ToolCall
from common.dialects.anthropic_messages import request as anthropic_messages_request
from common.dialects.anthropic_messages.progress import SentAnswer, read_sent_answer
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.shared.anthropic_words import (
    ERROR_TYPES,
    MESSAGE_STOP,
    OVERLOADED_STATUS,
    REASON_OF_WORD,
    STOP_REASON,
    TYPE_OF_STATUS,
)
from common.dialects.shared.sent_events import dict_in
from common.sse import encode_event

# An upstream's error type is kept if it is one of Anthropic's. Other families use "invalid_request_error" for nearly
# everything, so for that one the type follows from the status.
_KEPT_TYPES = ERROR_TYPES - {"invalid_request_error"}

# Output that cannot stand inside a call's block.
_NOT_CALLS = (TextDelta, RefusalDelta, ReasoningDelta, ReasoningSigned, RedactedReasoning)

_PING = encode_event(b'{"type": "ping"}', "ping")

Kind = Literal["text", "thinking", "tool"]


class AnthropicMessages:
    name = "anthropic-messages"
    lacks: Mapping[type[Event], str] = {OutputImage: "images"}

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return anthropic_messages_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> "BlockEncoder":
        return BlockEncoder(info)

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        sent = read_sent_answer(blocks)
        progress = Progress(sent.text, sent.is_plain, BlockEncoder(info, sent))
        if sent.stop_reason:
            progress.finished = Finished(REASON_OF_WORD.get(sent.stop_reason, FinishReason.STOP))
            progress.encoder = EndedEncoder(b"" if sent.is_stopped else MESSAGE_STOP)
        return progress

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        choice = reply.choices.get(0) or Choice()
        reason = FinishReason.REFUSAL if choice.refusal else choice.finish_reason or FinishReason.STOP
        message = _message(info)
        message["content"] = _content(choice)
        message["stop_reason"] = STOP_REASON[reason]
        message["stop_sequence"] = choice.stop_sequence
        message["usage"] |= _usage(reply.usage or Usage())
        return orjson.dumps(message)

    def status(self, failed: Failed) -> int:
        return _STATUS_OF_KIND.get(failed.kind) or failed.http_status

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        return orjson.dumps({**_error(failed), "request_id": request_id})

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        return _error_event(failed)

    def event_text(self, event: dict[str, Any]) -> object:
        return dict_in(event, "delta").get("text") if event.get("type") == "content_block_delta" else None

    def reply_text(self, answer: dict[str, Any]) -> object:
        return answer.get("content")

    def is_final(self, last_block: bytes) -> bool:
        return last_block.startswith((b"event: message_stop", b"event: error")) or b'"type":"message_stop"' in last_block


class BlockEncoder:
    """Encodes events as messages events: one content block open at a time, numbered from 0.

    In streams of other families calls may overlap, and text may come between their pieces. Then one call is the open block;
    the other calls, and after them the text, wait until it has ended.
    """

    def __init__(self, info: ReplyInfo, sent: SentAnswer | None = None) -> None:
        self._info = info
        self._started = False
        self._open: Kind | None = None
        self._next_index = 0
        self._signed = False  # The open thinking block has its signature: no more text can follow.
        self._refused = False
        self._finished: Finished | None = None
        self._open_call = -1  # Index of the call that is the open block.
        self._open_arguments: list[str] = []
        self._waiting: dict[int, tuple[ToolCallStarted, list[str]]] = {}
        self._after_calls: list[Event] = []
        self._text_start = b""
        self._text_end = b"}}\n\n"
        if sent:
            self._started, self._next_index = sent.has_started, sent.next_index
            if sent.has_open_text:
                self._open_text()

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token. TextDelta first, and no dict is built for it.
        if type(event) is TextDelta and self._open == "text" and event.choice == 0:
            return self._text_start + orjson.dumps(event.text) + self._text_end
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if getattr(event, "choice", 0) != 0:
            return b""  # A message is one choice; this dialect never asks for more.
        if self._open == "tool" and isinstance(event, _NOT_CALLS) and not self._calls_are_complete():
            self._after_calls.append(event)
            return b""
        match event:
            case Started():
                return self._start()
            case TextDelta():
                return self._ensure("text") + self._text_start + orjson.dumps(event.text) + self._text_end
            case RefusalDelta():
                self._refused = True
                return self._ensure("text") + self._delta({"type": "text_delta", "text": event.text})
            case ReasoningDelta():
                return self._ensure_thinking() + self._delta({"type": "thinking_delta", "thinking": event.text})
            case ReasoningSigned():
                opened = self._ensure_thinking()
                self._signed = True
                return opened + self._delta({"type": "signature_delta", "signature": event.signature})
            case RedactedReasoning():
                opened = self._close() + self._start_block({"type": "redacted_thinking", "data": event.data})
                return opened + self._stop_block()
            case Citation():
                delta = {"type": "citations_delta", "citation": _citation(event)}
                return self._delta(delta) if self._open == "text" else b""
            case ToolCallStarted():
                return self._call_started(event)
            case ToolCallDelta():
                return self._call_delta(event)
            case Finished():
                self._finished = event
                return self._start() + self._close_all()
            case Completed():
                return self._start() + self._close_all() + self._message_delta(event.usage) + MESSAGE_STOP
            case Failed():
                return _error_event(event)
            case OutputImage() | LeftOut():
                return b""

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return _event("message_start", {"message": _message(self._info)})

    def _ensure(self, kind: Kind) -> bytes:
        """Return the events that open a block of this kind; nothing if one is open."""
        if self._open == kind:
            return b""
        ended = self._close()
        if kind == "text":
            opened = self._start_block({"type": "text", "text": ""})
            self._open_text()
        else:
            opened = self._start_block({"type": "thinking", "thinking": "", "signature": ""})
            self._open, self._signed = kind, False
        return ended + opened

    def _open_text(self) -> None:
        self._open = "text"
        delta = b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":' % self._next_index
        self._text_start = b"event: content_block_delta\ndata: " + delta

    def _ensure_thinking(self) -> bytes:
        ended = self._close() if self._open == "thinking" and self._signed else b""
        return ended + self._ensure("thinking")

    def _start_block(self, block: dict[str, Any]) -> bytes:
        ping = _PING if self._next_index == 0 else b""  # Anthropic nearly always sends its first ping here.
        fields = {"index": self._next_index, "content_block": block}
        return self._start() + _event("content_block_start", fields) + ping

    def _stop_block(self) -> bytes:
        self._next_index += 1
        return _event("content_block_stop", {"index": self._next_index - 1})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._next_index, "delta": delta})

    def _close(self) -> bytes:
        """Return the end of the open block, and the complete blocks of calls that waited for it."""
        if self._open is None:
            return b""
        self._open = None
        pieces = [self._stop_block()]
        waiting, self._waiting = self._waiting, {}
        for call, arguments in waiting.values():
            pieces += [self._start_call(call), self._arguments("".join(arguments)), self._stop_block()]
        self._open_call = -1
        return b"".join(pieces)

    def _close_all(self) -> bytes:
        """Return the end of the open block, and everything that waited for the calls."""
        pieces = [self._close()]
        events, self._after_calls = self._after_calls, []
        pieces += [self.encode(event) for event in events]
        pieces.append(self._close())
        return b"".join(pieces)

    def _start_call(self, call: ToolCallStarted) -> bytes:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        # An empty piece first, as Anthropic always does.
        return self._start_block(block) + self._arguments("")

    def _arguments(self, piece: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": piece})

    def _call_started(self, call: ToolCallStarted) -> bytes:
        if self._open == "tool" and not self._calls_are_complete():
            self._waiting[call.index] = (call, [])
            return b""
        ended = self._close()
        started = self._start_call(call)
        self._open, self._open_call, self._open_arguments = "tool", call.index, []
        return ended + started

    def _calls_are_complete(self) -> bool:
        """Whether the open call can be closed. Most streams send one call after the other; then none has to wait."""
        return not self._waiting and not self._after_calls and _input("".join(self._open_arguments)) is not None

    def _call_delta(self, event: ToolCallDelta) -> bytes:
        if event.index == self._open_call:
            self._open_arguments.append(event.arguments)
            return self._arguments(event.arguments)
        if event.index in self._waiting:
            self._waiting[event.index][1].append(event.arguments)
        return b""  # After a complete call only white space can follow.

    def _message_delta(self, usage: Usage | None) -> bytes:
        finished = self._finished or Finished(FinishReason.STOP)
        reason = FinishReason.REFUSAL if self._refused else finished.reason
        delta = {"stop_reason": STOP_REASON[reason], "stop_sequence": finished.stop_sequence}
        return _event("message_delta", {"delta": delta, "usage": _usage(usage or Usage())})


def _event(type_: str, fields: dict[str, Any]) -> bytes:
    return encode_event(orjson.dumps({"type": type_, **fields}), type_)


def _message(info: ReplyInfo) -> dict[str, Any]:
    """Return the message as it begins: all fields, no content."""
    return {
        "model": info.model,
        "id": "msg_" + info.generation_id.removeprefix("gen_"),
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
            "service_tier": "standard",
        },
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the usage object. Anthropic's ``input_tokens`` excludes the tokens that its cache fields count."""
    fields: dict[str, Any] = {
        "input_tokens": max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


def _content(choice: Choice) -> list[dict[str, Any]]:
    content = [_content_block(block) for block in choice.blocks if not isinstance(block, ImageBlock)]
    text = next((block for block in reversed(content) if block["type"] == "text"), None)
    if choice.citations and text is not None:
        text["citations"] = [_citation(citation) for citation in choice.citations]
    return content


def _citation(citation: Citation) -> dict[str, Any]:
    """Return a citation in Anthropic's shape for pages. The empty index shows that another vendor made it.

    Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool#citations
    """
    return {
        "type": "web_search_result_location",
        "url": citation.url,
        "title": citation.title or None,
        "encrypted_index": "",
        "cited_text": "",
    }


def _content_block(block: TextBlock | RefusalBlock | ReasoningBlock | ToolCall) -> dict[str, Any]:
    match block:
        case ReasoningBlock(redacted=str() as data):
            return {"type": "redacted_thinking", "data": data}
        case ReasoningBlock():
            return {"type": "thinking", "thinking": block.text, "signature": block.signature or ""}
        case ToolCall():
            # An input must be an object. Arguments that are not one (cut off, or never written) become an empty object.
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.arguments) or {}}
        case TextBlock() | RefusalBlock():
            return {"type": "text", "text": block.text}


def _input(arguments: str) -> dict[str, Any] | None:
    """Return a call's arguments as an object; None if they are not (or not yet) a complete JSON object."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


# Clients act on these, and Anthropic's types cannot express them. `code` is not Anthropic's field; its SDKs ignore it.
_CODES = ("cancelled", "gateway_restarting", "worker_lost")
_STATUS_OF_KIND = {ErrorKind.OVERLOADED: OVERLOADED_STATUS, ErrorKind.UPSTREAM_QUOTA_SPENT: 402}
# Agents for this API compact their conversation when they read one of these; there is no code for it.
_OVERFLOW = "prompt is too long"
_OVERFLOW_WORDS = (_OVERFLOW, "exceed context limit")


def _error_message(failed: Failed) -> str:
    is_overflow = failed.kind is ErrorKind.CONTEXT_LENGTH_EXCEEDED
    if not is_overflow or any(words in failed.message.lower() for words in _OVERFLOW_WORDS):
        return failed.message
    return f"{_OVERFLOW}: {failed.message}"


def _error(failed: Failed) -> dict[str, Any]:
    status = ANTHROPIC_MESSAGES.status(failed)
    type_ = failed.type if failed.type in _KEPT_TYPES else None
    fallback = "api_error" if status >= 500 else "invalid_request_error"
    error: dict[str, Any] = {"type": type_ or TYPE_OF_STATUS.get(status, fallback), "message": _error_message(failed)}
    code = failed.kind.value if failed.kind in (ErrorKind.CANCELLED, ErrorKind.WORKER_LOST) else failed.code
    if code in _CODES:
        error["code"] = code
    if failed.kind is ErrorKind.INVALID_REQUEST and failed.param == "thread":
        # Tells the SDKs' tool runners to send the complete conversation: only Anthropic stores threads.
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": error}


def _error_event(failed: Failed) -> bytes:
    return encode_event(orjson.dumps(_error(failed)), "error")


ANTHROPIC_MESSAGES = AnthropicMessages()
