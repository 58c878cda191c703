"""How do an upstream's bytes become the client's?

``Passing`` is the one place where a provider's bytes reach a client as they came: same family on both sides. ``Translating``
decodes to events and encodes them anew. Both are pure, and both say the same three things about what they have seen:
whether there was output (the commit point), how it ended, and the usage.

Pumps that go through events (``EventPump``) offer their two halves as well, ``read`` and ``encode``, for a pump around them
that has something to do in between: see ``guarded_pump.py``. None of them knows of it.
"""

import math
from typing import Protocol

from common.canonical.errors import Failed
from common.canonical.events import (
    OUTPUT,
    Completed,
    Event,
    Finished,
    FinishReason,
    ReplyBuilder,
    Started,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.dialects.base import Dialect, ReplyInfo
from common.metering.token_estimate import estimate_event_tokens, estimate_tokens, fill_usage, output_bytes, tokens_in_bytes
from workers.providers.base import Decoder, FamilyWire
from workers.providers.shared import errors
from workers.providers.shared.loose_json import is_nested_too_deeply


class Pump(Protocol):
    """``is_stream``: the upstream is asked for a stream. ``gives_stream``: the client gets one, not one JSON body."""

    is_stream: bool
    gives_stream: bool
    has_output: bool  # Whether the client's bytes so far hold output.
    finish_reason: FinishReason | None
    output_events: int
    upstream_id: str  # What the upstream calls the answer; empty until it has said so.
    started: Started  # What it said of itself when it began.
    prompt_tokens: int  # By estimate, where the prompt is not the request's own; else 0.
    is_estimated: bool  # Whether ``usage`` is an estimate, of an upstream that reports none.
    held_bytes: int  # Output that is gathered here, for a client that gets it as a whole.
    loop_bytes_max: float  # A whole answer of more takes so long that it is fed in a thread.

    @property
    def terminal(self) -> Completed | Failed | None:
        """How the answer has ended, None until it has. Before ``release_held`` its client's bytes need not all be there."""
        ...

    @property
    def has_activity(self) -> bool:
        """Whether the upstream has said anything, passed on or not."""
        ...

    @property
    def awaits_verdict(self) -> bool:
        """Whether the answer is over and ``release_held`` is to say what its client gets."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether the answer was ended here, before its upstream did."""
        ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def is_whole(self) -> bool:
        """Whether the upstream has finished the answer; see ``Decoder.is_whole``."""
        ...

    @property
    def has_absurd_usage(self) -> bool: ...

    @property
    def seen_tokens(self) -> int:
        """About how many tokens have come: of a body by its text, of a stream one for each event with output."""
        ...

    def pass_head(self, run: bytes) -> int:
        """Return how many bytes of whole events go to the client as they are; they are noted. The rest is to be fed."""
        ...

    def feed(self, blocks: list[bytes]) -> bytes:
        """Return the client's bytes for SSE blocks of the upstream. Blocks after a terminal event are ignored."""
        ...

    def feed_whole(self, body: bytes) -> bytes:
        """Return the client's bytes for an upstream's answer that is one body; ``terminal`` is set."""
        ...

    def end(self) -> bytes:
        """Return what is left for the client at the end of the upstream's bytes, however they ended; ``terminal`` is set."""
        ...

    async def release_held(self) -> bytes:
        """Return the client's bytes that were held to the end; called where the pump ``awaits_verdict``.

        Raises:
            GatewayError: the client is not to have them.
        """
        ...

    async def after_written(self) -> None:
        """What is left to be done once all of an answer has been written."""
        ...

    def close(self) -> None:
        """Called once, when nothing more comes, however the answer ended."""
        ...


class EventPump(Pump, Protocol):
    """A pump in two halves: ``read…`` from the upstream's bytes to events, ``say…`` from events to the client's bytes."""

    def read(self, blocks: list[bytes]) -> list[Event]: ...

    def read_whole(self, body: bytes) -> list[Event]: ...

    def read_end(self) -> list[Event]: ...

    def encode(self, events: list[Event]) -> bytes: ...

    def encode_last(self, events: list[Event]) -> bytes:
        """The same for the last events of an answer."""
        ...

    def estimate_cut_usage(self, text_bytes: int) -> Usage | None:
        """Return the client's usage of an answer that ends here, after so much of its text, though its upstream goes on.

        ``usage`` is ours from now on: what the upstream has told, and for the rest an estimate.
        """
        ...


class Decoding(Protocol):
    """All that a pump needs of a wire where bytes do not pass."""

    def decoder(self, choices: int = 1) -> Decoder: ...


class _PumpBase:
    """What all pumps note of the events that go by."""

    is_stream = True
    gives_stream = True
    prompt_tokens = 0
    is_estimated = False
    held_bytes = 0
    loop_bytes_max = math.inf
    awaits_verdict = False
    is_cut = False

    def __init__(self, wire: Decoding, choices: int = 1) -> None:
        self._decoder = wire.decoder(choices)
        self.has_output = False
        self.terminal: Completed | Failed | None = None
        self.finish_reason: FinishReason | None = None
        self.output_events = 0
        self.upstream_id = ""
        self.started = Started()
        self._body_tokens = 0

    def _record(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, OUTPUT):
                self.has_output = self.gives_stream
                self.output_events += 1
            elif isinstance(event, Completed | Failed):
                self.terminal = event
            elif isinstance(event, Finished):
                self.finish_reason = event.reason
            elif isinstance(event, Started):
                self.upstream_id, self.started = event.id or "", event

    @property
    def usage(self) -> Usage | None:
        return self._decoder.usage

    @property
    def is_whole(self) -> bool:
        return self._decoder.is_whole

    @property
    def has_absurd_usage(self) -> bool:
        return self._decoder.has_absurd_usage

    @property
    def seen_tokens(self) -> int:
        return self._body_tokens or self.output_events

    @property
    def has_activity(self) -> bool:
        return self.output_events > 0

    async def release_held(self) -> bytes:
        return b""

    async def after_written(self) -> None: ...

    def close(self) -> None: ...

    def _decode_whole(self, body: bytes) -> list[Event]:
        events = self._decoder.decode_whole(body)
        self._body_tokens = estimate_event_tokens(events)
        return events

    def pass_head(self, run: bytes) -> int:
        return 0


class Passing(_PumpBase):
    """A stream's bytes as they came."""

    def __init__(self, wire: FamilyWire, dialect: Dialect, info: ReplyInfo) -> None:
        super().__init__(wire, info.body.get("n") or 1)
        self._wire, self._dialect, self._info = wire, dialect, info
        self._is_plain = self._decoder.is_plain

    def pass_head(self, run: bytes) -> int:
        # Hot path: once per upstream read. Nearly always it is pieces of output, and needs no decoding.
        count, size = self._decoder.plain_head(run) if self.has_output else (0, 0)
        self.output_events += count
        return size

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read that has anything else, or padding.
        is_plain, passed = self._is_plain, []
        for block in blocks:
            if self.has_output and is_plain(block):
                self.output_events += 1
                passed.append(block)
            elif not self.terminal:
                was_whole = self.is_whole
                self._record(self._decoder.decode(block))
                passed.append(self._passed(block, was_whole=was_whole))
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _passed(self, block: bytes, *, was_whole: bool) -> bytes:
        if isinstance(self.terminal, Failed):
            return b""  # The upstream's error event becomes our end, which says it in the dialect's own shape.
        if was_whole and self.terminal and not self._dialect.is_final(block):
            return self._wire.end_mark  # An error behind the finish.
        return self._wire.for_client(block, self._info)

    def end(self) -> bytes:
        self._record(last_events := self._decoder.end())
        # Some vendors just stop after the last chunk, and their clients' readers know; others' wait for the mark.
        return self._wire.end_mark if any(isinstance(event, Completed) for event in last_events) else b""

    def feed_whole(self, body: bytes) -> bytes:
        self._record(events := self._decode_whole(body))
        encode = self._dialect.encoder(self._dialect.parse(self._info.body), self._info).encode
        return b"".join([encode(event) for event in events if not isinstance(event, Failed)])


class EventPumpBase(_PumpBase):
    """What pumps have in common that go through events."""

    def __init__(self, wire: Decoding, request: GenerationRequest | None, choices: int) -> None:
        super().__init__(wire, choices)
        self._request = request
        self._own: Usage | None = None  # The usage, where it is not only what the upstream reported.

    @property
    def usage(self) -> Usage | None:
        return self._own or self._decoder.usage

    def read(self, blocks: list[bytes]) -> list[Event]:
        decode = self._decoder.decode
        return [event for block in blocks for event in decode(block)]

    def read_whole(self, body: bytes) -> list[Event]:
        return self._decode_whole(body)

    def read_end(self) -> list[Event]:
        return self._decoder.end()

    def estimate_cut_usage(self, text_bytes: int) -> Usage | None:
        request = self._request
        self._own = fill_usage(
            self._decoder.usage, lambda: estimate_tokens(request) if request else 0, tokens_in_bytes(text_bytes)
        )
        return self._own


class Translating(EventPumpBase):
    """Events, encoded for a client of another family."""

    def __init__(self, wire: Decoding, dialect: Dialect, request: GenerationRequest, info: ReplyInfo) -> None:
        super().__init__(wire, request, request.choices)
        self._encode = dialect.encoder(request, info).encode

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read.
        decode = self._decoder.decode
        return self.encode([event for block in blocks for event in decode(block)])

    def feed_whole(self, body: bytes) -> bytes:
        return self.encode(self._decode_whole(body))

    def end(self) -> bytes:
        return self.encode(self._decoder.end())

    def encode(self, events: list[Event]) -> bytes:
        self._record(events)
        # A failure is said by the log's end, whose event the API writes.
        return b"".join([self._encode(event) for event in events if not isinstance(event, Failed)])

    encode_last = encode


class Folding(EventPumpBase):
    """The same for a client that did not ask for a stream: the upstream's stream, folded into one JSON body."""

    gives_stream = False

    def __init__(self, wire: Decoding, dialect: Dialect, request: GenerationRequest | None, info: ReplyInfo) -> None:
        super().__init__(wire, request, request.choices if request else info.body.get("n") or 1)
        self._dialect, self._info = dialect, info
        self._folded = ReplyBuilder()

    def feed(self, blocks: list[bytes]) -> bytes:
        for block in blocks:
            self.encode(self._decoder.decode(block))
        return b""

    def feed_whole(self, body: bytes) -> bytes:
        return self.encode_last(self.read_whole(body))

    def end(self) -> bytes:
        return self.encode_last(self.read_end())

    def read_whole(self, body: bytes) -> list[Event]:
        return self._decoder.decode_whole(body)

    def encode(self, events: list[Event]) -> bytes:
        self._record(events)
        for event in events:
            self._folded.add(event)
            self.held_bytes += output_bytes(event)
        return b""

    def encode_last(self, events: list[Event]) -> bytes:
        self.encode(events)
        if not isinstance(self.terminal, Completed):
            return b""
        reply = self._folded.reply()
        # In pieces arguments are text. A whole answer may hold them as objects, which can only be nested so deeply.
        if any(is_nested_too_deeply(call.arguments) for choice in reply.choices.values() for call in choice.tool_calls):
            self.terminal = errors.unreadable_answer("the arguments of a call are nested too deeply")
            return b""
        self._body_tokens, self._folded, self.held_bytes = self.seen_tokens, ReplyBuilder(), 0
        return self._dialect.encode_reply(reply, self._request or self._dialect.parse(self._info.body), self._info)

    @property
    def seen_tokens(self) -> int:
        return self._body_tokens or tokens_in_bytes(self.held_bytes)


class FoldingWhole(Folding):
    """The same where the upstream is not asked for a stream either: one JSON body decoded, and encoded anew."""

    is_stream = False


class PassingWhole(Folding):
    """A body as it came, for a client of the same family. Only a stream that comes instead is folded."""

    is_stream = False

    def __init__(self, wire: FamilyWire, dialect: Dialect, info: ReplyInfo) -> None:
        super().__init__(wire, dialect, None, info)  # What is passed on need not be parsed.
        self._wire = wire

    def feed_whole(self, body: bytes) -> bytes:
        self._record(self._decode_whole(body))  # They are not kept: what they say is in the body.
        return self._wire.for_client(body, self._info)
