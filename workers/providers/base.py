"""What must every wire format that we speak to upstreams be able to do?

Building requests and decoding answers is pure; the I/O around it is the same for all and lives in ``workers/upstream.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.errors import Failed
from common.events import Event, Usage
from common.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place that can serve a route: whose address and key, and the model's name there.

    ``base_url`` is what the vendor's own SDK calls so, without a closing slash.
    """

    provider: str
    base_url: str
    api_key: str = field(repr=False)
    model: str


@dataclass(slots=True)
class UpstreamRequest:
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Decoder(Protocol):
    """One answer's bytes to events. Holds the answer's state; never raises on anything an upstream may send."""

    @property
    def usage(self) -> Usage | None:
        """What the upstream has reported so far: all there is to bill where an answer breaks off."""
        ...

    def decode(self, block: bytes) -> list[Event]:
        """Return what one SSE block (see ``common.sse``) says.

        Nonsense becomes ``Failed(UPSTREAM_PROTOCOL)``, the vendor's own error event ``Failed`` of its kind.
        After a terminal event: an empty list.
        """
        ...

    def decode_whole(self, body: bytes) -> list[Event]:
        """Return what a whole non-streaming answer says, terminal event included."""
        ...

    def end(self) -> list[Event]:
        """Return the terminal event at the end of the byte stream: ``Completed`` only if the answer was whole.

        Empty where ``decode`` has already returned one.
        """
        ...

    def is_plain(self, block: bytes) -> bool:
        """Whether a block surely holds nothing but a piece of output, so that passing its bytes on is all there is to do."""
        ...


class Wire(Protocol):
    """One wire format. ``dialect`` names the client dialect of the same family, whose bytes pass through unchanged."""

    dialect: str

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of another family; it always streams.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``: the wire cannot express something the client asked for.
        """
        ...

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of the same family: the body as it came, but for what must change.

        ``headers`` are the client's headers that this family passes on, names in lower case.
        """
        ...

    def decoder(self) -> Decoder: ...

    def is_foreign_block(self, block: bytes, body: Mapping[str, Any]) -> bool:
        """Whether a block came only because ``pass_request`` changed the body, and must not reach the client."""
        ...

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        """Return the failure that an answer with an error status means. ``body`` may be anything, or empty."""
        ...
