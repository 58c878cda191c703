"""How is the rest of an answer encoded so that it continues what its client already has?"""

from common.canonical.errors import Failed
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    Started,
    TextDelta,
    Usage,
    add_usage,
)
from common.canonical.generation import GenerationRequest
from common.dialects.base import Progress
from common.metering.token_estimate import tokens_in_bytes
from workers.providers.shared import errors
from workers.transcode.pump import Decoding
from workers.transcode.pumps import EventPumpBase
from workers.transcode.splice import Splice


class Continuing(EventPumpBase):
    """Encodes the events of a call that continues an answer, after what the client already has.

    The client's usage covers all attempts: ``spent`` by earlier ones, plus this one's, which is estimated if not reported.
    """

    def __init__(self, wire: Decoding, progress: Progress, splice: Splice, spent: Usage, input_tokens: int) -> None:
        super().__init__(wire, None, choices=1, lacks={}, continues_text=bool(progress.text))
        self._progress, self._splice, self._spent = progress, splice, spent
        self._prefix = progress.missing_events
        self.prompt_tokens, self._text_bytes = input_tokens, 0

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read.
        return self.encode(self.read(blocks))

    def feed_whole(self, body: bytes) -> bytes:
        return self.encode(self.read_whole(body))

    def end(self) -> bytes:
        return self.encode(self.read_end())

    def read(self, blocks: list[bytes]) -> list[Event]:
        return self._new_events(super().read(blocks))

    def read_whole(self, body: bytes) -> list[Event]:
        return self._new_events(super().read_whole(body))

    def read_end(self) -> list[Event]:
        return self._new_events(super().read_end())

    def estimate_cut_usage(self, text_bytes: int) -> Usage | None:
        self._own, self.is_estimated = self._estimate(), True
        return add_usage(self._spent, self._own)

    def encode(self, events: list[Event]) -> bytes:
        self._record(events)
        encode = self._progress.encoder.encode
        data = b"".join([encode(event) for event in events if not isinstance(event, Failed)])
        if data and self._prefix:
            data, self._prefix = self._prefix + data, b""
        return data

    def encode_last(self, events: list[Event]) -> bytes:
        return self.encode(events)

    def _estimate(self) -> Usage:
        return Usage(self.prompt_tokens, tokens_in_bytes(self._text_bytes))

    def _new_events(self, events: list[Event]) -> list[Event]:
        """Return the parts of the events that the client does not have yet."""
        try:
            return [part for event in events for part in self._new_parts(event)]
        except ValueError as error:
            return [errors.unreadable_answer(str(error))]

    def _new_parts(self, event: Event) -> list[Event]:
        """Return the parts of one event that the client does not have yet."""
        match event:
            case TextDelta():
                text = self._splice.feed(event.text)
                self._text_bytes += len(event.text.encode())
                return [TextDelta(text)] if text else []
            case Started() if self._progress.text:
                self._record([event])
                return []
            case ReasoningDelta() | ReasoningSigned() | RedactedReasoning() if self._progress.text:
                return []  # Reasoning cannot stand in the middle of a text.
            case Finished():
                held_text = self._splice.end()
                return [TextDelta(held_text), event] if held_text else [event]
            case Completed():
                self._own, self.is_estimated = event.usage or self._estimate(), event.usage is None
                return [Completed(add_usage(self._spent, self._own))]
        return [event]


class Rereading(Continuing):
    """The same if the whole answer comes again, with the usage of the whole answer.

    A guardrail between the two halves must see the answer from its start. So the part that the client has is removed only in
    ``encode``, after the guardrail.
    """

    def __init__(self, wire: Decoding, progress: Progress, splice: Splice, request: GenerationRequest) -> None:
        super().__init__(wire, progress, splice, Usage(), 0)
        self._request = request

    read = EventPumpBase.read
    read_whole = EventPumpBase.read_whole
    read_end = EventPumpBase.read_end
    estimate_cut_usage = EventPumpBase.estimate_cut_usage

    def encode(self, events: list[Event]) -> bytes:
        return super().encode(self._new_events(events))
