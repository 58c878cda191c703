"""How do an upstream's bytes become the client's?

``Passing`` is the one place where a provider's bytes reach a client as they came: same family on both sides. ``Translating``
decodes to events and encodes them anew. Both are pure, and both say the same three things about what they have seen:
whether there was output (the commit point), how it ended, and the usage.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from common.dialects.base import Dialect, ReplyInfo
from common.errors import Failed
from common.events import OUTPUT, Completed, Event, Finished, FinishReason, Usage, fold
from common.generation import GenerationRequest
from workers.providers.base import Wire


class Pump(Protocol):
    """``is_stream``: the upstream is asked for a stream. ``gives_stream``: the client gets one, not one JSON body."""

    is_stream: bool
    gives_stream: bool
    has_output: bool  # Whether the client's bytes so far hold output.
    terminal: Completed | Failed | None  # None until the answer has ended.
    finish_reason: FinishReason | None
    output_events: int

    @property
    def usage(self) -> Usage | None: ...

    def feed(self, blocks: list[bytes]) -> bytes:
        """Return the client's bytes for SSE blocks of the upstream, or (not ``is_stream``) for its whole body.

        Blocks after a terminal event are ignored.
        """
        ...

    def end(self) -> bytes:
        """Return what is left for the client at the end of the upstream's bytes; ``terminal`` is set afterwards."""
        ...


class _Watching:
    """What all pumps note of the events that go by."""

    is_stream = True
    gives_stream = True

    def __init__(self, wire: Wire) -> None:
        self._decoder = wire.decoder()
        self.has_output = False
        self.terminal: Completed | Failed | None = None
        self.finish_reason: FinishReason | None = None
        self.output_events = 0

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, OUTPUT):
                self.has_output = self.gives_stream
                self.output_events += 1
            elif isinstance(event, Completed | Failed):
                self.terminal = event
            elif isinstance(event, Finished):
                self.finish_reason = event.reason

    @property
    def usage(self) -> Usage | None:
        return self._decoder.usage


class Passing(_Watching):
    """A stream's bytes as they came; ``body`` is the client's own request."""

    def __init__(self, wire: Wire, body: Mapping[str, Any]) -> None:
        super().__init__(wire)
        self._wire = wire
        self._body = body
        self._is_plain = self._decoder.is_plain

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read. Nearly every block is a piece of output, and needs no decoding.
        is_plain, passed = self._is_plain, []
        for block in blocks:
            if self.has_output and is_plain(block):
                self.output_events += 1
                passed.append(block)
            elif not self.terminal:
                self._note(self._decoder.decode(block))
                # The upstream's error event becomes our end, which says it in the dialect's own shape.
                if not isinstance(self.terminal, Failed) and not self._wire.is_foreign_block(block, self._body):
                    passed.append(block)
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def end(self) -> bytes:
        self._note(self._decoder.end())
        return b""


class PassingWhole(_Watching):
    """The same for a client that did not ask for a stream: the upstream is not asked for one either."""

    is_stream = False
    gives_stream = False

    def feed(self, blocks: list[bytes]) -> bytes:
        (body,) = blocks
        self._note(self._decoder.decode_whole(body))
        return body

    def end(self) -> bytes:
        return b""


class Translating(_Watching):
    """Events, encoded for a client of another family."""

    def __init__(self, wire: Wire, dialect: Dialect, request: GenerationRequest, info: ReplyInfo) -> None:
        super().__init__(wire)
        self._encode = dialect.encoder(request, info).encode

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read.
        decode = self._decoder.decode
        return self._say([event for block in blocks for event in decode(block)])

    def end(self) -> bytes:
        return self._say(self._decoder.end())

    def _say(self, events: list[Event]) -> bytes:
        self._note(events)
        # A failure is said by the log's end, whose event the API writes.
        return b"".join([self._encode(event) for event in events if not isinstance(event, Failed)])


class Folding(_Watching):
    """The same for a client that did not ask for a stream: the upstream's stream, folded into one JSON body."""

    gives_stream = False

    def __init__(self, wire: Wire, dialect: Dialect, request: GenerationRequest, info: ReplyInfo) -> None:
        super().__init__(wire)
        self._dialect, self._request, self._info = dialect, request, info
        self._events: list[Event] = []

    def feed(self, blocks: list[bytes]) -> bytes:
        for block in blocks:
            self._keep(self._decoder.decode(block))
        return b""

    def end(self) -> bytes:
        self._keep(self._decoder.end())
        if not isinstance(self.terminal, Completed):
            return b""
        return self._dialect.encode_whole(fold(self._events), self._request, self._info)

    def _keep(self, events: list[Event]) -> None:
        self._note(events)
        self._events += events
