"""How do an upstream's bytes become the client's bytes?

``Passing`` is the only place where a provider's bytes reach a client unchanged: both sides speak the same family.
``Translating`` decodes them to events and encodes the events again. Both are pure. Both report the same three things: whether
there was output (the commit point), how the answer ended, and the usage.

Pumps that work on events (``EventPump``) also offer their two halves, ``read`` and ``encode``. A pump around them can work on
the events in between: see ``guarded_pump.py``. They do not know about it.
"""

import math
from collections.abc import Mapping
from typing import Any

from common.canonical.errors import Failed
from common.canonical.events import (
    OUTPUT,
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    OutputImage,
    RefusalDelta,
    Started,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.canonical.reply import ReplyBuilder
from common.dialects.base import Dialect, ReplyInfo
from common.metering.token_estimate import (
    estimate_event_tokens,
    estimate_tokens,
    fill_usage,
    output_bytes,
    token_bytes,
    tokens_in_bytes,
)
from workers.providers.base import Decoder, FamilyWire
from workers.providers.shared import errors
from workers.providers.shared.loose_json import is_nested_too_deeply
from workers.transcode.empty_answers import NonEmptyDecoder
from workers.transcode.pump import Decoding

LEFT_OUT_MAX = 20  # Names of one answer. A vendor may send any number of words.


class _PumpBase:
    """The state that all pumps record from the events."""

    is_stream = True
    gives_stream = True
    prompt_tokens = 0
    is_estimated = False
    held_bytes = 0
    loop_bytes_max = math.inf
    awaits_verdict = False
    is_cut = False

    def __init__(
        self,
        wire: Decoding,
        choices: int,
        lacks: Mapping[type[Event], str] | None = None,
        *,
        has_stops: bool = False,
        continues_text: bool = False,
    ) -> None:
        decoder = wire.decoder(choices)
        unseen = () if lacks is None else (LeftOut, *lacks)
        self._decoder: Decoder = decoder if continues_text else NonEmptyDecoder(decoder, unseen, has_stops=has_stops)
        self._lacks = lacks or {}
        self.left_out: dict[str, None] = {}
        self.has_output = False
        self.terminal: Completed | Failed | None = None
        self.finish_reason: FinishReason | None = None
        self._has_refusal = False
        self.output_events = 0
        self.upstream_id = ""
        self.started = Started()
        self._body_tokens = 0

    def _record(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, OUTPUT):
                self.has_output = self.gives_stream
                self.output_events += 1
                if (name := self._lacks.get(type(event))) is not None:
                    self._leave_out(name)
                if type(event) is RefusalDelta:
                    self._has_refusal = True
            elif isinstance(event, Completed | Failed):
                self.terminal = event
            elif isinstance(event, LeftOut):
                self._leave_out(event.name)
            elif isinstance(event, Finished):
                # OpenAI ends a refusal like any answer, and not all dialects can say in their bytes that it is one.
                is_refusal = self._has_refusal and event.reason is FinishReason.STOP
                self.finish_reason = FinishReason.REFUSAL if is_refusal else event.reason
            elif isinstance(event, Started):
                self.upstream_id, self.started = event.id or "", event

    def _leave_out(self, name: str) -> None:
        if len(self.left_out) < LEFT_OUT_MAX:
            self.left_out[name] = None

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
    """Passes a stream's bytes unchanged."""

    def __init__(self, wire: FamilyWire, dialect: Dialect, info: ReplyInfo) -> None:
        super().__init__(wire, info.body.get("n") or 1, has_stops=_has_stops(info.body))
        self._wire, self._dialect, self._info = wire, dialect, info
        self._is_plain = self._decoder.is_plain

    def _leave_out(self, name: str) -> None:
        pass  # The bytes have everything.

    def pass_head(self, run: bytes) -> int:
        # Hot path: once per upstream read. Almost always these are pieces of output that need no decoding.
        count, size = self._decoder.plain_head(run) if self.has_output else (0, 0)
        self.output_events += count
        return size

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read that contains anything else, or padding.
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
            return b""  # The upstream's error becomes the log's end. The API writes it in the dialect's own shape.
        if was_whole and self.terminal and not self._dialect.is_final(block):
            return self._wire.end_mark  # This block is an error after the finish.
        return self._wire.for_client(block, self._info)

    def end(self) -> bytes:
        self._record(last_events := self._decoder.end())
        # Some vendors just stop after the last chunk, and their own clients accept that. Other clients wait for the end mark.
        return self._wire.end_mark if any(isinstance(event, Completed) for event in last_events) else b""

    def feed_whole(self, body: bytes) -> bytes:
        self._record(events := self._decode_whole(body))
        encode = self._dialect.encoder(self._dialect.parse(self._info.body), self._info).encode
        return b"".join([encode(event) for event in events if not isinstance(event, Failed)])


class EventPumpBase(_PumpBase):
    """What all pumps that work on events have in common."""

    def __init__(
        self,
        wire: Decoding,
        request: GenerationRequest | None,
        choices: int,
        lacks: Mapping[type[Event], str] | None,
        **known: bool,
    ) -> None:
        super().__init__(wire, choices, lacks, **known)
        self._request = request
        self._own: Usage | None = None  # The usage, if it is not only what the upstream reported.

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
    """Encodes the events for a client of another family."""

    def __init__(self, wire: Decoding, dialect: Dialect, request: GenerationRequest, info: ReplyInfo) -> None:
        super().__init__(wire, request, request.choices, dialect.lacks, has_stops=bool(request.stop))
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
        # A failure goes into the log's end. The API writes its event.
        return b"".join([self._encode(event) for event in events if not isinstance(event, Failed)])

    encode_last = encode


class Folding(EventPumpBase):
    """The same for a client that does not stream: the upstream's stream is folded into one JSON body."""

    gives_stream = False

    def __init__(self, wire: Decoding, dialect: Dialect, request: GenerationRequest | None, info: ReplyInfo) -> None:
        choices = request.choices if request else info.body.get("n") or 1
        super().__init__(wire, request, choices, dialect.lacks if request else None, has_stops=_has_stops(info.body))
        self._dialect, self._info = dialect, info
        self._folded = ReplyBuilder()
        self._textless_bytes = 0  # Of the held bytes: those of images, as far as no token stands for them.

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
            if isinstance(event, OutputImage):
                self._textless_bytes += output_bytes(event) - token_bytes(event)
        return b""

    def encode_last(self, events: list[Event]) -> bytes:
        self.encode(events)
        if not isinstance(self.terminal, Completed):
            return b""
        reply = self._folded.reply()
        # In pieces, arguments are text. A complete answer may hold them as objects, and their nesting depth is limited.
        if any(is_nested_too_deeply(call.arguments) for choice in reply.choices.values() for call in choice.tool_calls):
            self.terminal = errors.unreadable_answer("the arguments of a call are nested too deeply")
            return b""
        self._body_tokens, self._folded, self.held_bytes = self.seen_tokens, ReplyBuilder(), 0
        return self._dialect.encode_reply(reply, self._request or self._dialect.parse(self._info.body), self._info)

    @property
    def seen_tokens(self) -> int:
        return self._body_tokens or tokens_in_bytes(self.held_bytes - self._textless_bytes)


class FoldingWhole(Folding):
    """The same if the upstream does not stream either: one JSON body is decoded and encoded again."""

    is_stream = False


class PassingWhole(Folding):
    """Passes a body unchanged to a client of the same family. Only if a stream comes instead, it is folded."""

    is_stream = False

    def __init__(self, wire: FamilyWire, dialect: Dialect, info: ReplyInfo) -> None:
        super().__init__(wire, dialect, None, info)  # A request that is passed on need not be parsed.
        self._wire = wire

    def feed_whole(self, body: bytes) -> bytes:
        self._record(self._decode_whole(body))  # The events are not kept: their content is in the body.
        self.left_out.clear()
        return self._wire.for_client(body, self._info)


def _has_stops(body: Mapping[str, Any]) -> bool:
    return bool(body.get("stop") or body.get("stop_sequences"))
