"""What must every client dialect be able to do?

A dialect is pure: bytes and objects in, bytes and objects out; no I/O, no clock, no settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.canonical.errors import Failed
from common.canonical.events import Completed, Event, Finished, Reply, Usage
from common.canonical.generation import GenerationRequest
from common.metering.pricing import Cost


@dataclass(slots=True)
class ReplyInfo:
    """What an answer says of itself: our id for it, the model name as the client wrote it, when it began (Unix seconds).

    ``body`` is the client's own, for dialects that echo it. ``elapsed_ms`` tells the time since the request came;
    ``price`` what usage costs at the deployment that answers, None where its price is not known.
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
    """What a stream that now fails has said: ``last`` is the data of its last frame, whole SSE events, or nothing.

    ``model`` and ``created_s`` are as in its ``ReplyInfo``.
    """

    generation_id: str
    last: bytes = b""
    model: str = ""
    created_s: int = 0


class Encoder(Protocol):
    """The events of one generation to the dialect's stream. Holds the stream's state: indices, open blocks, ids."""

    def encode(self, event: Event) -> bytes:
        """Return the whole SSE events (closing blank lines included) that say ``event``; empty where nothing is to be said.

        ``Failed`` becomes the dialect's error event, never a clean end.
        """
        ...


@dataclass(slots=True)
class EndedEncoder:
    """The encoder of a stream that is over but for ``rest``, the events that close it."""

    rest: bytes = b""

    def encode(self, event: Event) -> bytes:
        return self.rest if isinstance(event, Completed) else b""


@dataclass(slots=True)
class Progress:
    """What a client has of an answer that broke off, read back from its own bytes.

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
    name: str

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        """Return the canonical request.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``, and a message that names the field and says what it must be.
        """
        ...

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> Encoder: ...

    def resume(self, request: GenerationRequest, info: ReplyInfo, blocks: Sequence[bytes]) -> Progress:
        """Return what a stream has said that broke off: ``blocks`` are its SSE blocks, of ours or as a vendor of the family
        sent them, and never none.

        What it does not know to be text is not plain: it must never raise, and never guess.
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
        """Return what one event of a stream says of the answer's text, as it came; anything else that is no text: None."""
        ...

    def reply_text(self, answer: dict[str, Any]) -> object:
        """The same of a whole answer."""
        ...

    def is_final(self, last: bytes) -> bool:
        """Whether the last event of a stream is the one after which its clients expect nothing; ``last`` is its whole block."""
        ...
