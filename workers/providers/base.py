"""What must every wire format that we speak to upstreams be able to do?

Building requests and decoding answers is pure; the I/O around it is the same for all and lives in
``workers/upstream/http_client.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from common.canonical.errors import Failed
from common.canonical.events import Event, Usage
from common.canonical.generation import GenerationRequest
from common.dialects.base import ReplyInfo
from common.process.redaction import secrets_in


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place that can serve a route: whose address and key, and the model's name there.

    ``base_url`` is what the vendor's own SDK calls so, without a closing slash.
    """

    provider: str
    base_url: str
    api_key: str = field(repr=False)
    model: str
    wire: str = ""  # A key of ``workers.providers.WIRES``.
    query: str = ""  # Of every URL, such as Azure's api-version.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # Of every request, such as a gateway's token.
    in_background: bool = False  # Streams outlive their connection there; of a ``BackgroundWire`` only.
    key_id: str = ""  # Provider and key in a form that does not tell the key; see ``workers.quota``.
    quota_id: str = ""  # The same of the key whose quota the call takes, where that is not this key's.
    client_pays: bool = False  # With a key that the request brought: the provider's limits and budget are not ours.

    @property
    def secrets(self) -> list[str]:
        """What nobody may be told of how it is called."""
        sent = (value.removeprefix("Bearer ") for value in self.headers.values())
        return [self.api_key, *sent, *secrets_in(self.base_url)]

    @property
    def key_label(self) -> str:
        """What a log calls the key: enough to tell an operator's own keys apart, nothing of the key."""
        return self.key_id[-4:]

    def url(self, path: str) -> str:
        return f"{self.base_url}{path}?{self.query}" if self.query else self.base_url + path

    def request_headers(self, key_header: str = "authorization", scheme: str = "Bearer ") -> dict[str, str]:
        """Return what every request with a JSON body says; the key only where there is one."""
        headers = {
            **self.headers,
            "content-type": "application/json",
            "accept-encoding": "identity",  # Compressed events would wait in the compressor.
        }
        if self.api_key:
            headers[key_header] = scheme + self.api_key
        return headers


@dataclass(slots=True)
class UpstreamRequest:
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    dropped: list[str] = field(default_factory=list)  # Harmless fields that this wire has no word for; the client is told.
    method: Literal["POST", "GET"] = "POST"
    is_sent: bool = False  # A connection was there to send it on: from then on the provider may have worked for it.


class Decoder(Protocol):
    """One answer's bytes to events. Holds the answer's state; never raises on anything an upstream may send."""

    @property
    def usage(self) -> Usage | None:
        """What the upstream has reported so far: all there is to bill where an answer breaks off.

        None where it has reported nothing, or no figures that can be believed: see ``workers.providers.shared.figures``.
        """
        ...

    @property
    def has_absurd_usage(self) -> bool:
        """Whether the report has figures that cannot be believed."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether the upstream has said that every choice is finished. Only usage and a mark may follow, and may be missing."""
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
        """Return the terminal event at the end of the byte stream, however it ended: ``Completed`` if the answer was whole.

        Empty where ``decode`` has already returned one.
        """
        ...

    def is_plain(self, block: bytes) -> bool:
        """Whether a block surely holds nothing but a piece of output, so that passing its bytes on is all there is to do."""
        ...

    def plain_head(self, run: bytes) -> tuple[int, int]:
        """Return with how many such blocks whole events in a row begin, as they came, and how many bytes these are."""
        ...


class Wire(Protocol):
    """One wire format."""

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of another family; it always streams.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``: the wire cannot express something the client asked for.
        """
        ...

    def decoder(self, choices: int = 1) -> Decoder:
        """Return a decoder for one answer; ``choices`` is how many it was asked for."""
        ...

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        """Return the failure that an answer with an error status means. ``body`` may be anything, or empty."""
        ...


@runtime_checkable
class FamilyWire(Wire, Protocol):
    """A wire that is also a client dialect: between the two, bytes pass through unchanged."""

    @property
    def dialect(self) -> str: ...

    @property
    def end_mark(self) -> bytes:
        """What a client of the same family waits for at the end, should the upstream not send it."""
        ...

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of the same family: the body as it came, but for what must change.

        ``headers`` are the client's headers that this family passes on, names in lower case.
        """
        ...

    def for_client(self, data: bytes, info: ReplyInfo) -> bytes:
        """Return what a client of the same family gets of a block, or of a whole body: nearly always the data as it came.

        Nothing where a block came only because ``pass_request`` changed the body.
        """
        ...


@runtime_checkable
class BackgroundWire(Wire, Protocol):
    """A wire whose providers can store a stream and let it run on when its connection is lost (``Deployment.in_background``).

    ``answer_id`` is the provider's own, that of ``Started``.
    """

    def reread_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest:
        """Return the request for the same stream once more, from its start."""
        ...

    def cancel_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest: ...


@runtime_checkable
class TokenCounter(Protocol):
    """What a wire has besides if its provider counts a prompt's tokens without answering it."""

    def count_request(
        self, request: GenerationRequest, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment
    ) -> UpstreamRequest:
        """Return the upstream request that counts; ``body`` and ``headers`` are the client's, which is one of Anthropic's.

        Raises:
            GatewayError: as for ``Wire.build_request``.
        """
        ...

    def read_count(self, body: bytes) -> int | None:
        """Return the input tokens that an answer names, None where it names none."""
        ...
