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
from workers.transcode.pumps import Decoding, Events
from workers.transcode.splice import Splice


class Continuing(Events):
    """Events of a call that goes on with an answer, encoded behind what the client has of it.

    The client's usage is that of all tries: ``spent`` by those before, and this one's, estimated where it reports none.
    """

    def __init__(self, wire: Decoding, progress: Progress, splice: Splice, spent: Usage, input_tokens: int) -> None:
        super().__init__(wire, None, choices=1)
        self._progress, self._splice, self._spent = progress, splice, spent
        self._owed = progress.missing_events
        self.prompt_tokens, self._text_bytes = input_tokens, 0

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read.
        return self.say(self.read(blocks))

    def feed_whole(self, body: bytes) -> bytes:
        return self.say(self.read_whole(body))

    def end(self) -> bytes:
        return self.say(self.read_end())

    def read(self, blocks: list[bytes]) -> list[Event]:
        return self._rest(super().read(blocks))

    def read_whole(self, body: bytes) -> list[Event]:
        return self._rest(super().read_whole(body))

    def read_end(self) -> list[Event]:
        return self._rest(super().read_end())

    def cut(self, text_bytes: int) -> Usage | None:
        self._own, self.is_estimated = self._estimate(), True
        return add_usage(self._spent, self._own)

    def say(self, events: list[Event]) -> bytes:
        self._note(events)
        encode = self._progress.encoder.encode
        said = b"".join([encode(event) for event in events if not isinstance(event, Failed)])
        if said and self._owed:
            said, self._owed = self._owed + said, b""
        return said

    def say_last(self, events: list[Event]) -> bytes:
        return self.say(events)

    def _estimate(self) -> Usage:
        return Usage(self.prompt_tokens, tokens_in_bytes(self._text_bytes))

    def _rest(self, events: list[Event]) -> list[Event]:
        """Return what of events goes on with what was said."""
        try:
            return [rest for event in events for rest in self._spliced(event)]
        except ValueError as error:
            return [errors.nonsense(str(error))]

    def _spliced(self, event: Event) -> list[Event]:
        """Return what of an event goes on with what was said."""
        match event:
            case TextDelta():
                text = self._splice.feed(event.text)
                self._text_bytes += len(event.text.encode())
                return [TextDelta(text)] if text else []
            case Started() if self._progress.text:
                self._note([event])
                return []
            case ReasoningDelta() | ReasoningSigned() | RedactedReasoning() if self._progress.text:
                return []  # In the middle of a text there is no place for it.
            case Finished():
                held = self._splice.end()
                return [TextDelta(held), event] if held else [event]
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

    read = Events.read
    read_whole = Events.read_whole
    read_end = Events.read_end
    cut = Events.cut

    def say(self, events: list[Event]) -> bytes:
        return super().say(self._rest(events))
