"""What do we promise clients of OpenAI's chat completions?

``request.py`` reads the body; this file writes the answer. Shapes and order are those of recorded streams.
Source: https://platform.openai.com/docs/api-reference/chat/streaming
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
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
from common.canonical.reply import Choice, ReasoningBlock, Reply, TextBlock, ToolCall
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.openai_chat import request as openai_chat_request
from common.dialects.openai_chat.call_signatures import CallSignatures
from common.dialects.openai_chat.progress import read_sent_answer
from common.dialects.shared.custom_tools import custom_input
from common.dialects.shared.openai_citations import citation_fields
from common.dialects.shared.openai_errors import error_body
from common.dialects.shared.openai_words import DONE_EVENT, FINISH_WORD, REASONING_FIELDS, parse_finish_reason
from common.dialects.shared.sent_events import dict_in, objects_in
from common.sse import encode_event


class OpenAiChat:
    name = "openai-chat"
    lacks: Mapping[type[Event], str] = {RedactedReasoning: "redacted_reasoning"}

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return openai_chat_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> "ChunkEncoder":
        return ChunkEncoder(request, _head(info), openai_chat_request.custom_tools(info.body))

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        sent = read_sent_answer(blocks)
        finished = Finished(parse_finish_reason(sent.finish_reason)) if sent.finish_reason else None
        encoder: ChunkEncoder | EndedEncoder = ChunkEncoder(
            request, _head(info) | sent.head, openai_chat_request.custom_tools(info.body), is_resumed=True
        )
        if sent.is_done or (finished and (sent.has_usage or not request.include_usage)):
            encoder = EndedEncoder(b"" if sent.is_done else DONE_EVENT)
        return Progress(sent.text, sent.is_plain, encoder, finished=finished)

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        customs = openai_chat_request.custom_tools(info.body)
        return orjson.dumps(
            {
                "id": _reply_id(info),
                "object": "chat.completion",
                "created": info.created_s,
                "model": info.model,
                "choices": [_reply_choice(index, choice, customs) for index, choice in sorted(reply.choices.items())],
                "usage": _usage(reply.usage or Usage()),
                "system_fingerprint": None,
            }
        )

    def status(self, failed: Failed) -> int:
        return failed.http_status

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        return orjson.dumps(error_body(failed))

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        return encode_event(orjson.dumps(error_body(failed)))

    def event_text(self, event: dict[str, Any]) -> object:
        return dict_in(_first_choice(event), "delta").get("content")

    def reply_text(self, answer: dict[str, Any]) -> object:
        return dict_in(_first_choice(answer), "message").get("content")

    def is_final(self, last_block: bytes) -> bool:
        return last_block == DONE_EVENT


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    return next((choice for choice in objects_in(body.get("choices")) if choice.get("index", 0) == 0), {})


class ChunkEncoder:
    """Encodes events as ``chat.completion.chunk``s. The constant part of the chunks is encoded once per choice."""

    def __init__(
        self,
        request: GenerationRequest,
        head: Mapping[str, Any],
        customs: frozenset[str] = frozenset(),
        *,
        is_resumed: bool = False,
    ) -> None:
        self._customs = customs
        self._open_customs: dict[
            tuple[int, int], list[str]
        ] = {}  # By choice and index: the pieces of a custom call's arguments.
        self._include_usage = request.include_usage
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        # If usage was requested, OpenAI puts a null usage into every chunk except the last.
        self._tail = b'],"usage":null}\n\n' if request.include_usage else b"]}\n\n"
        self._delta_end = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._has_text = False
        self._signatures = CallSignatures()
        self._image_counts: dict[int, int] = {}  # By choice: the number of its last image.
        self._text_starts: dict[int, bytes] = {}  # By choice. A choice in here has had its first chunk.
        if is_resumed:
            self._mark_opened(0)

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token. TextDelta first, and no dict is built for it.
        if type(event) is TextDelta:
            self._has_text = True
            start = self._text_starts.get(event.choice)
            if start is not None:
                return start + orjson.dumps(event.text) + self._delta_end
            first_chunk = self._open_choice(event.choice)
            return first_chunk + self._text_starts[event.choice] + orjson.dumps(event.text) + self._delta_end
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        match event:
            case Started():
                return self._open_choice(0)
            case TextDelta():
                return self._delta(event.choice, {"content": event.text})
            case RefusalDelta():
                return self._delta(event.choice, {"refusal": event.text})
            case ReasoningDelta():
                if event.choice == 0:  # No other choice has signatures.
                    self._signatures.add_reasoning(event.text)
                return self._delta(event.choice, {REASONING_FIELDS[0]: event.text})
            case ToolCallStarted():
                call: dict[str, Any] = {"index": event.index, **_call(ToolCall(event.id, event.name), self._customs)}
                if event.name in self._customs:
                    self._open_customs[event.choice, event.index] = []
                if event.choice == 0:
                    call |= self._signatures.fields_of_call()
                return self._delta(event.choice, {"tool_calls": [call]})
            case ToolCallDelta() if (event.choice, event.index) in self._open_customs:
                self._open_customs[event.choice, event.index].append(event.arguments)
                return b""  # Its input is plain text, which is known once the JSON around it is whole.
            case ToolCallDelta():
                call = {"index": event.index, "function": {"arguments": event.arguments}}
                return self._delta(event.choice, {"tool_calls": [call]})
            case Citation():
                return self._delta(event.choice, {"annotations": [_annotation(event)]})
            case OutputImage():
                return self._delta(event.choice, {"images": [self._image(event)]})
            case Finished():
                return self._custom_inputs(event.choice) + self._finish(event)
            case Completed():
                return self._usage_chunk(event.usage) + DONE_EVENT
            case Failed():
                return encode_event(orjson.dumps(error_body(event)))
            case ReasoningSigned():
                self._signatures.add_signature(event.signature, has_text=self._has_text)
                return b""
            case _:
                return b""  # The format has no place for redacted reasoning.

    def _custom_inputs(self, choice: int) -> bytes:
        calls = [
            {"index": index, "custom": {"input": custom_input("".join(pieces))}}
            for (of_choice, index), pieces in self._open_customs.items()
            if of_choice == choice
        ]
        return self._delta(choice, {"tool_calls": calls}) if calls else b""

    def _image(self, image: OutputImage) -> dict[str, Any]:
        number = self._image_counts[image.choice] = self._image_counts.get(image.choice, -1) + 1
        return {"index": number, **_image(image)}

    def _delta(self, choice: int, delta: dict[str, Any]) -> bytes:
        start = self._open_choice(choice) + self._head
        # The prefix ends inside the delta, so that both paths share one suffix.
        return start + b'{"index":%d,"delta":' % choice + orjson.dumps(delta)[:-1] + self._delta_end

    def _open_choice(self, choice: int) -> bytes:
        """Return the first chunk of a choice; nothing if it was sent already."""
        if choice in self._text_starts:
            return b""
        self._mark_opened(choice)
        return self._delta(choice, {"role": "assistant", "content": "", "refusal": None})

    def _mark_opened(self, choice: int) -> None:
        self._text_starts[choice] = self._head + b'{"index":%d,"delta":{"content":' % choice

    def _finish(self, event: Finished) -> bytes:
        choice = {"index": event.choice, "delta": {}, "logprobs": None, "finish_reason": FINISH_WORD[event.reason]}
        return self._open_choice(event.choice) + self._head + orjson.dumps(choice) + self._tail

    def _usage_chunk(self, usage: Usage | None) -> bytes:
        if not self._include_usage or usage is None:
            return b""
        return self._head + b'],"usage":' + orjson.dumps(_usage(usage)) + b"}\n\n"


def _head(info: ReplyInfo) -> dict[str, Any]:
    return {
        "id": _reply_id(info),
        "object": "chat.completion.chunk",
        "created": info.created_s,
        "model": info.model,
        "system_fingerprint": None,
    }


def _reply_id(info: ReplyInfo) -> str:
    return "chatcmpl-" + info.generation_id.removeprefix("gen_")


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _annotation(citation: Citation) -> dict[str, Any]:
    return {"type": "url_citation", "url_citation": citation_fields(citation)}


def _image(image: OutputImage) -> dict[str, Any]:
    """Return an image as gateways agreed on it: OpenAI has no field for one.

    Source: https://openrouter.ai/docs/guides/overview/multimodal/image-generation
    """
    return {"type": "image_url", "image_url": {"url": image.address}}


def _reply_choice(index: int, choice: Choice, customs: frozenset[str]) -> dict[str, Any]:
    # OpenAI sends null content next to tool calls and refusals; an empty answer is an empty string.
    content = choice.text or (None if choice.tool_calls or choice.refusal else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": choice.refusal or None}
    reasoning = "".join(block.text for block in choice.reasoning)
    if reasoning:
        message[REASONING_FIELDS[0]] = reasoning
    if choice.citations:
        message["annotations"] = [_annotation(citation) for citation in choice.citations]
    if choice.images:
        message["images"] = [{"index": number, **_image(image)} for number, image in enumerate(choice.images)]
    if choice.tool_calls:
        message["tool_calls"] = list(_reply_calls(choice, customs))
    reason = FINISH_WORD[choice.finish_reason or FinishReason.STOP]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _reply_calls(choice: Choice, customs: frozenset[str]) -> Iterator[dict[str, Any]]:
    signatures, has_text = CallSignatures(), False
    for block in choice.blocks:
        match block:
            case TextBlock():
                has_text = True
            case ReasoningBlock():
                signatures.add_reasoning(block.text)
                if block.signature:
                    signatures.add_signature(block.signature, has_text=has_text)
            case ToolCall():
                call = ToolCall(block.id, block.name, block.arguments or "{}")
                yield {**_call(call, customs), **signatures.fields_of_call()}


def _call(call: ToolCall, customs: frozenset[str]) -> dict[str, Any]:
    if call.name in customs:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": custom_input(call.arguments)}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


OPENAI_CHAT = OpenAiChat()
