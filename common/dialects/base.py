"""What must every client dialect be able to do?

The API parses requests and encodes errors with a dialect; a worker encodes answers. A dialect is pure: bytes and objects in,
bytes and objects out; no I/O, no clock, no settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.canonical.errors import Failed
from common.canonical.events import Completed, Event, Finished, Usage
from common.canonical.generation import GenerationRequest
from common.canonical.reply import Reply
from common.metering.pricing import Cost


@dataclass(slots=True)
class ReplyInfo:
    """Facts about an answer: our id for it, the model name as the client wrote it, when it began (Unix seconds).

    ``body`` is the client's body, for dialects that echo it. ``elapsed_ms`` returns the time since the request arrived;
    ``price`` returns what usage costs at the deployment that answers, None if its price is not known.
    """

    generation_id: str
    model: str
    created_s: int
    provider: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    elapsed_ms: Callable[[], int] = lambda: 0
    price: Callable[[Usage], Cost | None] = lambda usage: None


@dataclass(slots=True)
class OpenStream:
    """An open stream that now fails. ``last_frame`` is the data of its last frame: complete SSE events, or nothing.

    ``model`` and ``created_s`` are those of its ``ReplyInfo``.
    """

    generation_id: str
    last_frame: bytes = b""
    model: str = ""
    created_s: int = 0


class Encoder(Protocol):
    """Encodes the events of one generation as the dialect's stream. Holds the stream's state: indices, open blocks, ids."""

    def encode(self, event: Event) -> bytes:
        """Return complete SSE events (closing blank lines included) for ``event``; empty if the dialect sends nothing for it.

        ``Failed`` becomes the dialect's error event, never a clean end.
        """
        ...


@dataclass(slots=True)
class EndedEncoder:
    """The encoder of a stream whose answer is complete. It only sends the events that close the stream."""

    closing_events: bytes = b""

    def encode(self, event: Event) -> bytes:
        return self.closing_events if isinstance(event, Completed) else b""


@dataclass(slots=True)
class Progress:
    """What a client has received of an answer that broke off, read back from the bytes that were sent.

    ``is_plain``: the answer is text, perhaps after reasoning that has ended, and nothing else, so another call can continue
    it. ``missing_events`` are SSE events that the client needs before any other. ``encoder`` continues after them: no second
    start, the same ids and indices. ``finished`` is set if the client already knows that the answer is over.
    """

    text: str
    is_plain: bool
    encoder: Encoder
    missing_events: bytes = b""
    finished: Finished | None = None
    usage: Usage | None = None


class Dialect(Protocol):
    """``lacks``: the kinds of output that the format has no place for, each with its name for the client."""

    name: str
    lacks: Mapping[type[Event], str]

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        """Return the canonical request.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``, and a message that names the field and says what it must be.
        """
        ...

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> Encoder: ...

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        """Return the progress of a stream that broke off. ``blocks`` are its SSE blocks, at least one: written by us, or
        passed through from a vendor of the family.

        Must never raise and never guess: an answer with anything that is not known to be text is not plain.
        """
        ...

    def encode_reply(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        """Return the JSON body of a non-streaming answer. ``reply.failed`` is None."""
        ...

    def status(self, failed: Failed) -> int:
        """Return the HTTP status for a failure before the first byte."""
        ...

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        """Return the JSON body for a failure before the first byte."""
        ...

    def error_event(self, failed: Failed, stream: OpenStream) -> bytes:
        """Return the SSE event for a failure once the stream is open."""
        ...

    def event_text(self, event: dict[str, Any]) -> object:
        """Return the answer text in one event of a stream, unchanged; None, or a value that is not text, if it has none."""
        ...

    def reply_text(self, answer: dict[str, Any]) -> object:
        """Return the answer text in a complete answer; see ``event_text``."""
        ...

    def is_final(self, last_block: bytes) -> bool:
        """Whether clients expect nothing more after this SSE block, the last one of a stream."""
        ...
