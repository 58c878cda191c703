"""What do we promise clients of OpenAI's responses?

``request.py`` reads the body, ``response_object.py`` builds the response object, and ``encoder.py`` its stream.
``common/responses.py`` stores responses and serves them from the store.
Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import Event, Finished, FinishReason
from common.canonical.generation import GenerationRequest
from common.canonical.reply import Choice, Reply, TextBlock
from common.dialects.base import EndedEncoder, OpenStream, Progress, ReplyInfo
from common.dialects.openai_responses import request as openai_responses_request
from common.dialects.openai_responses.compaction import CompactionEncoder, asks_for_compaction, compaction_item
from common.dialects.openai_responses.encoder import ItemEncoder, failed_event
from common.dialects.openai_responses.progress import read_sent_answer
from common.dialects.openai_responses.response_object import Items, ResponseInfo, final_response, incomplete_reason
from common.dialects.openai_responses.tools import custom_tools, namespaces
from common.dialects.shared import openai_errors
from common.dialects.shared.sent_events import objects_in
from common.sse import read_block, split_blocks


class OpenAiResponses:
    name = "openai-responses"
    lacks: Mapping[type[Event], str] = {}

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        return openai_responses_request.parse(body)

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> ItemEncoder:
        return _encoder(info)

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        sent = read_sent_answer(blocks)
        if sent.final_response:
            reason = FinishReason.LENGTH if sent.final_response.get("status") == "incomplete" else FinishReason.STOP
            return Progress(sent.text, sent.is_plain, EndedEncoder(), finished=Finished(reason))
        encoder = _encoder(info)
        missing_events = encoder.resume(sent) if sent.is_plain else b""
        return Progress(sent.text, sent.is_plain, encoder, missing_events)

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        choice = reply.choices.get(0) or Choice()
        finished = Finished(choice.finish_reason or FinishReason.STOP)
        items = Items(
            info.generation_id,
            namespaces(info.body),
            custom_tools(info.body),
        )
        # As in a stream: only the item that was open when the answer was cut is incomplete.
        last_status = "incomplete" if incomplete_reason(finished) else "completed"
        last_index = len(choice.blocks) - 1
        last_text = max((index for index, block in enumerate(choice.blocks) if isinstance(block, TextBlock)), default=-1)
        output = [
            items.from_block(
                index,
                block,
                last_status if index == last_index else "completed",
                choice.citations if index == last_text else (),
            )
            for index, block in enumerate(choice.blocks)
        ]
        if asks_for_compaction(info.body):
            output = [compaction_item(items, choice.text)] if choice.text.strip() else []
        response = ResponseInfo(info.generation_id, info.model, info.created_s, info.body)
        completed_s = info.created_s + info.elapsed_ms() // 1000
        return orjson.dumps(final_response(response, output, finished, reply.usage, completed_s))

    def status(self, failed: Failed) -> int:
        return failed.http_status

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        return orjson.dumps(openai_errors.error_body(failed))

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        response = ResponseInfo(stream.generation_id, stream.model, stream.created_s)
        return failed_event(response, failed, _next_sequence(stream.last_frame))

    def event_text(self, event: dict[str, Any]) -> object:
        return event.get("delta") if event.get("type") == "response.output_text.delta" else None

    def reply_text(self, answer: dict[str, Any]) -> object:
        messages = [item for item in objects_in(answer.get("output")) if item.get("type") == "message"]
        contents = [message.get("content") for message in messages]
        # Some servers send a message's text as a string, not as a list.
        lists = [[{"type": "text", "text": item}] if isinstance(item, str) else objects_in(item) for item in contents]
        return [part for parts in lists for part in parts]

    def is_final(self, last_block: bytes) -> bool:
        return parse_event(last_block).get("type") in ("response.completed", "response.incomplete", "response.failed", "error")


def _encoder(info: ReplyInfo) -> ItemEncoder:
    return CompactionEncoder(info) if asks_for_compaction(info.body) else ItemEncoder(info)


def _next_sequence(data: bytes) -> int:
    """Return the sequence number after the last event of ``data``; 0 if that event has none, as a vendor's may."""
    blocks = split_blocks(data)
    sequence = sequence_number(blocks[-1]) if blocks else None
    return 0 if sequence is None else sequence + 1


def sequence_number(block: bytes) -> int | None:
    """Return an event's sequence number, if it has one."""
    sequence = parse_event(block).get("sequence_number")
    return sequence if isinstance(sequence, int) else None


def parse_event(block: bytes) -> dict[str, Any]:
    """Return the JSON object of an event; empty if it has none."""
    try:
        event = orjson.loads(read_block(block)[1])
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


OPENAI_RESPONSES = OpenAiResponses()
