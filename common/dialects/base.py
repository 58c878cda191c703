"""What must every client dialect be able to do?

A dialect is pure: bytes and objects in, bytes and objects out; no I/O, no clock, no settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import Failed
from common.events import Event, Reply
from common.generation import GenerationRequest


@dataclass(slots=True)
class ReplyInfo:
    """What an answer says of itself: our id for it, the model name as the client wrote it, when it began (Unix seconds)."""

    generation_id: str
    model: str
    created_s: int


class Encoder(Protocol):
    """The events of one generation to the dialect's stream. Holds the stream's state: indices, open blocks, ids."""

    def encode(self, event: Event) -> bytes:
        """Return the whole SSE events (closing blank lines included) that say ``event``; empty where nothing is to be said.

        ``Failed`` becomes the dialect's error event, never a clean end.
        """
        ...


class Dialect(Protocol):
    name: str

    def parse(self, body: Mapping[str, Any]) -> GenerationRequest:
        """Return the canonical request.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``, and a message that names the field and says what it must be.
        """
        ...

    def encoder(self, request: GenerationRequest, info: ReplyInfo) -> Encoder: ...

    def encode_whole(self, reply: Reply, request: GenerationRequest, info: ReplyInfo) -> bytes:
        """Return the JSON body of a non-streaming answer. ``reply.failed`` is None."""
        ...

    def status(self, failed: Failed) -> int:
        """Return the HTTP status for a failure before the first byte."""
        ...

    def error_body(self, failed: Failed, request_id: str) -> bytes:
        """Return the JSON body for a failure before the first byte."""
        ...

    def error_event(self, failed: Failed) -> bytes:
        """Return the SSE event for a failure once the stream is open."""
        ...
