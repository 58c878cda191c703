"""How is an answer streamed as typed events of the responses API?

Every block of the answer is an output item: announced, filled by deltas, and sent once more in full when it is done.
Calls may overlap with each other and with text: ``output_index`` says which item a delta belongs to. A call is done once its
arguments are complete and another item begins. The last event repeats the complete output.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from common.canonical.errors import Failed
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
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
from common.canonical.reply import ToolCall
from common.dialects.base import ReplyInfo
from common.dialects.openai_responses.progress import SentAnswer
from common.dialects.openai_responses.response_object import (
    Items,
    ResponseInfo,
    annotation,
    failed_response,
    final_response,
    incomplete_reason,
    output_text,
    refusal,
    summary_text,
    unfinished_response,
)
from common.dialects.openai_responses.tools import custom_tools, namespaces
from common.dialects.openai_responses.wrapped_reasoning import wrap
from common.sse import encode_event

Kind = Literal["text", "refusal", "reasoning"]


@dataclass(slots=True)
class _OpenCall:
    call: ToolCall
    output_index: int
    pieces: list[str] = field(default_factory=list)


class ItemEncoder:
    """Encodes events as typed events, numbered from 0."""

    def __init__(self, info: ReplyInfo) -> None:
        self._info = info
        self._response = ResponseInfo(info.generation_id, info.model, info.created_s, info.body)
        self._items = Items(info.generation_id, namespaces(info.body), custom_tools(info.body))
        self._sequence = 0
        self._started = False
        self._output: list[dict[str, Any]] = []
        self._open: Kind | None = None  # Kind of the open item; calls are tracked separately.
        self._index = 0  # Index of the open item in the output.
        self._pieces: list[str] = []
        self._citations: list[Citation] = []  # Of the open text.
        self._calls: dict[int, _OpenCall] = {}  # By the index of the call.
        self._finished: Finished | None = None
        self._text_start = self._text_end = b""

    def resume(self, sent: SentAnswer) -> bytes:
        """Continue where another call stopped. Return the events that the client needs before any other."""
        self._started = bool(sent.response)
        self._response.announced = sent.response
        self._sequence, self._output = sent.next_sequence, sent.output
        if not sent.step:
            return b""
        self._index = len(sent.output) - 1
        self._items.announced[self._index] = str(sent.output[-1].get("id"))
        self._open, self._pieces = "text", sent.open_pieces
        self._prepare_text()
        match sent.step:
            case "item":
                return self._part("added", "")
            case "text":
                return self._close(is_text_sent=True)
            case "end":
                return self._close(is_text_sent=True, is_part_sent=True)
        return b""

    def encode(self, event: Event) -> bytes:
        # Hot path: runs once per token. TextDelta first, and no dict is built for it.
        if type(event) is TextDelta and self._open == "text" and event.choice == 0:
            self._pieces.append(event.text)
            self._sequence += 1
            return self._text_start + orjson.dumps(event.text) + self._text_end % (self._sequence - 1)
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if getattr(event, "choice", 0) != 0:
            return b""  # A response is one choice; this dialect never asks for more.
        match event:
            case Started():
                return self._start()
            case TextDelta():
                return self._ensure("text") + self.encode(event)
            case RefusalDelta():
                return self._ensure("refusal") + self._delta("refusal", event.text, content_index=0)
            case ReasoningDelta():
                return self._ensure("reasoning") + self._delta("reasoning_summary_text", event.text, summary_index=0)
            case OutputImage():
                return self._image(event)
            case Citation():
                return self._cite(event)
            case ReasoningSigned():
                return self._wrapped(wrap(signature=event.signature))
            case RedactedReasoning():
                return self._close() + self._wrapped(wrap(redacted=event.data))
            case ToolCallStarted():
                return self._start_call(event)
            case ToolCallDelta():
                return self._call_delta(event)
            case Finished():
                self._finished = event
                return self._start() + self._close_all()
            case Completed():
                return self._start() + self._close_all() + self._complete(event.usage)
            case Failed():
                return failed_event(self._response, event, self._sequence)
            case LeftOut():
                return b""

    def _event(self, type_: str, **fields: Any) -> bytes:
        data = {"type": f"response.{type_}", **fields, "sequence_number": self._sequence}
        self._sequence += 1
        return encode_event(orjson.dumps(data), f"response.{type_}")

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        response = unfinished_response(self._response)
        return self._event("created", response=response) + self._event("in_progress", response=response)

    # Items that fill one after the other

    def _ensure(self, kind: Kind) -> bytes:
        """Return the events that open an item of this kind; nothing if one is open."""
        if self._open == kind:
            return b""
        before = self._begin_item()
        self._open, self._pieces = kind, []
        if kind == "reasoning":
            return before + self._add_item(self._items.reasoning(self._index, [])) + self._part("added", "")
        if kind == "text":
            self._prepare_text()
        return before + self._add_item(self._items.message(self._index, [], "in_progress")) + self._part("added", "")

    def _prepare_text(self) -> None:
        delta = b'{"type":"response.output_text.delta","content_index":0,"delta":'
        self._text_start = b"event: response.output_text.delta\ndata: " + delta
        item = b',"item_id":"%s","logprobs":[],"output_index":%d' % (self._items.id("msg", self._index).encode(), self._index)
        self._text_end = item.replace(b"%", b"%%") + b',"sequence_number":%d}\n\n'

    def _begin_item(self) -> bytes:
        """Return the ends of items that are complete once a new item begins, and move to the next index."""
        before = self._start() + self._close() + self._close_complete_calls()
        self._index = len(self._output)
        return before

    def _add_item(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._event("output_item.added", item=item, output_index=self._index)

    def _end_item(self, item: dict[str, Any], index: int) -> bytes:
        self._output[index] = item
        return self._event("output_item.done", item=item, output_index=index)

    def _delta(self, type_: str, piece: str, **place: int) -> bytes:
        self._pieces.append(piece)
        return self._event(f"{type_}.delta", delta=piece, item_id=self._item_id(), output_index=self._index, **place)

    def _cite(self, citation: Citation) -> bytes:
        if self._open != "text":
            return b""
        self._citations.append(citation)
        place: dict[str, Any] = {"item_id": self._item_id(), "output_index": self._index, "content_index": 0}
        number = len(self._citations) - 1
        return self._event("output_text.annotation.added", annotation=annotation(citation), annotation_index=number, **place)

    def _item_id(self) -> str:
        return self._items.id("rs" if self._open == "reasoning" else "msg", self._index)

    def _part(self, change: Literal["added", "done"], text: str) -> bytes:
        """Return the event for an item's only part."""
        place: dict[str, Any] = {"item_id": self._item_id(), "output_index": self._index}
        if self._open == "reasoning":
            return self._event(f"reasoning_summary_part.{change}", part=summary_text(text), summary_index=0, **place)
        part = output_text(text, self._citations) if self._open == "text" else refusal(text)
        return self._event(f"content_part.{change}", content_index=0, part=part, **place)

    def _close(
        self,
        status: str = "completed",
        wrapped: str | None = None,
        *,
        is_text_sent: bool = False,
        is_part_sent: bool = False,
    ) -> bytes:
        """Return the end of the open item (not of calls). Events that end its text are left out if they were already sent."""
        if self._open is None:
            return b""
        text = "".join(self._pieces)
        place: dict[str, Any] = {"item_id": self._item_id(), "output_index": self._index}
        match self._open:
            case "text":
                done = (
                    b"" if is_text_sent else self._event("output_text.done", content_index=0, logprobs=[], text=text, **place)
                )
                item = self._items.message(self._index, [output_text(text, self._citations)], status)
            case "refusal":
                done = self._event("refusal.done", content_index=0, refusal=text, **place)
                item = self._items.message(self._index, [refusal(text)], status)
            case "reasoning":
                done = self._event("reasoning_summary_text.done", summary_index=0, text=text, **place)
                item = self._items.reasoning(self._index, [summary_text(text)], wrapped)
        done += b"" if is_part_sent else self._part("done", text)
        done += self._end_item(item, self._index)
        self._open, self._citations = None, []
        return done

    def _wrapped(self, wrapped: str | None) -> bytes:
        """Return the end of the signed reasoning, or an item for a signature or an encrypted block without text."""
        if self._open == "reasoning":
            return self._close(wrapped=wrapped)
        before = self._begin_item()
        item = self._items.reasoning(self._index, [], wrapped)
        return before + self._add_item(item) + self._end_item(item, self._index)

    def _image(self, image: OutputImage) -> bytes:
        """Return a complete item: an image comes in one piece."""
        if image.url:
            return self.encode(TextDelta(f"![image]({image.url})"))
        before = self._begin_item()
        item = self._items.image(self._index, image)
        added = self._add_item({**item, "status": "in_progress", "result": None})
        place: dict[str, Any] = {"item_id": item["id"], "output_index": self._index}
        return before + added + self._event("image_generation_call.completed", **place) + self._end_item(item, self._index)

    # Calls

    def _start_call(self, event: ToolCallStarted) -> bytes:
        before = self._begin_item()
        opened = self._calls[event.index] = _OpenCall(ToolCall(event.id, event.name), self._index)
        return before + self._add_item(self._items.call(self._index, opened.call, "in_progress"))

    def _call_delta(self, event: ToolCallDelta) -> bytes:
        opened = self._calls.get(event.index)
        if opened is None or not event.arguments:
            return b""  # After a complete call only white space can follow.
        opened.pieces.append(event.arguments)
        if self._items.is_custom(opened.call):
            return b""  # Its input is plain text, which is known once the JSON around it is whole.
        place: dict[str, Any] = {"item_id": self._items.id("fc", opened.output_index), "output_index": opened.output_index}
        return self._event("function_call_arguments.delta", delta=event.arguments, **place)

    def _close_complete_calls(self) -> bytes:
        """Return the end of the calls whose arguments are complete. Most streams send one call after the other."""
        indices = [index for index, opened in self._calls.items() if _is_object("".join(opened.pieces))]
        return b"".join([self._close_call(self._calls.pop(index), "completed") for index in indices])

    def _close_call(self, opened: _OpenCall, status: str) -> bytes:
        index, arguments = opened.output_index, "".join(opened.pieces) or "{}"
        opened.call.arguments = arguments
        item = self._items.call(index, opened.call, status)
        place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if self._items.is_custom(opened.call):
            text = item["input"]
            before = self._event("custom_tool_call_input.delta", delta=text, **place) if text else b""
            return before + self._event("custom_tool_call_input.done", input=text, **place) + self._end_item(item, index)
        return self._event("function_call_arguments.done", arguments=arguments, **place) + self._end_item(item, index)

    # The end

    def _close_all(self) -> bytes:
        status = "incomplete" if incomplete_reason(self._finished) else "completed"
        calls, self._calls = self._calls, {}
        return self._close(status) + b"".join([self._close_call(opened, status) for opened in calls.values()])

    def _complete(self, usage: Usage | None) -> bytes:
        completed_s = self._info.created_s + self._info.elapsed_ms() // 1000
        response = final_response(self._response, self._output, self._finished, usage, completed_s)
        return self._event(response["status"], response=response)


def failed_event(response: ResponseInfo, failed: Failed, sequence: int) -> bytes:
    # Also for a cancelled response: openai-node throws on "response.cancelled".
    data = {"type": "response.failed", "response": failed_response(response, failed), "sequence_number": sequence}
    return encode_event(orjson.dumps(data), "response.failed")


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False
