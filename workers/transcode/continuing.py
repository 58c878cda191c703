"""How does the rest of an answer get behind what its client has?"""

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
from workers.transcode.pumps import Decoding, EventPumpBase
from workers.transcode.splice import Splice


class Continuing(EventPumpBase):
    """Events of a call that goes on with an answer, encoded behind what the client has of it.

    The client's usage is that of all tries: ``spent`` by those before, and this one's, estimated where it reports none.
    """

    def __init__(self, wire: Decoding, progress: Progress, splice: Splice, spent: Usage, input_tokens: int) -> None:
        super().__init__(wire, None, choices=1)
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
        """Return what of events goes on with what was said."""
        try:
            return [part for event in events for part in self._new_parts(event)]
        except ValueError as error:
            return [errors.unreadable_answer(str(error))]

    def _new_parts(self, event: Event) -> list[Event]:
        """Return what of an event goes on with what was said."""
        match event:
            case TextDelta():
                text = self._splice.feed(event.text)
                self._text_bytes += len(event.text.encode())
                return [TextDelta(text)] if text else []
            case Started() if self._progress.text:
                self._record([event])
                return []
            case ReasoningDelta() | ReasoningSigned() | RedactedReasoning() if self._progress.text:
                return []  # In the middle of a text there is no place for it.
            case Finished():
                held_text = self._splice.end()
                return [TextDelta(held_text), event] if held_text else [event]
            case Completed():
                self._own, self.is_estimated = event.usage or self._estimate(), event.usage is None
                return [Completed(add_usage(self._spent, self._own))]
        return [event]


class Rereading(Continuing):
    """The same where all of an answer comes again, with the usage of all of it.

    What stands between the two halves must see it from its start, so what the client has is left out only behind that.
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
