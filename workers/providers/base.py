"""What must every wire format be able to do that we speak to upstreams?

Building requests and decoding answers is pure. The I/O around it is the same for all wires, and is in
``workers/upstream/http_client.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from common.access.principal import NO_LIMITS, Limits
from common.canonical.errors import Failed
from common.canonical.events import Event, ToolCallStarted, Usage
from common.canonical.generation import GenerationRequest
from common.dialects.base import ReplyInfo
from common.process.redaction import secrets_in
from common.vendors.models import UNKNOWN, ModelFacts


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place that can serve a route: a provider's address, a key, and the model's name there.

    ``base_url`` means the same as in the vendor's own SDK, without a slash at its end.
    """

    provider: str
    base_url: str
    api_key: str = field(repr=False)
    model: str
    wire: str = ""  # A key of ``workers.providers.WIRES``.
    query: str = ""  # Added to every URL, such as Azure's api-version.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # Added to every request, such as a gateway's token.
    in_background: bool = False  # Streams outlive their connection there. Only with a ``BackgroundWire``.
    key_id: str = ""  # Provider and key in a form that does not reveal the key; see ``workers.quota``.
    quota_id: str = ""  # The same for the key whose quota the call uses, if that is not this key.
    client_pays: bool = False  # The client sent its own key, so the provider's limits and budget in our settings do not apply.
    route_quota: str = ""  # The name under which all workers count the calls that its route makes to this target.
    route_limits: Limits = field(default=NO_LIMITS, repr=False)  # Of these calls.
    facts: ModelFacts = field(default=UNKNOWN, repr=False)  # What the model can do there.
    refuses_summaries: bool = False  # Whether the key's account may not ask for summaries of reasoning.
    refuses_thoughts: bool = False  # Whether it refused the reasoning in the history of this generation's conversation.
    refuses_compactions: bool = False  # The same for compactions of it, which another vendor made.

    @property
    def secrets(self) -> list[str]:
        """The values that no client and no log may see."""
        sent = (value.removeprefix("Bearer ") for value in self.headers.values())
        return [self.api_key, *sent, *secrets_in(self.base_url)]

    @property
    def key_label(self) -> str:
        """The key's name in logs: enough to distinguish an operator's keys, but no part of the key itself."""
        return self.key_id[-4:]

    def url(self, path: str) -> str:
        return f"{self.base_url}{path}?{self.query}" if self.query else self.base_url + path

    def request_headers(self, key_header: str = "authorization", scheme: str = "Bearer ") -> dict[str, str]:
        """Return the headers of every request with a JSON body. The key is there only if there is one."""
        headers = {
            **self.headers,
            "content-type": "application/json",
            "accept-encoding": "identity",  # Compressed events would be delayed by the compressor.
        }
        if self.api_key:
            headers[key_header] = scheme + self.api_key
        return headers


@dataclass(slots=True)
class UpstreamRequest:
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    dropped: list[str] = field(default_factory=list)  # Harmless fields that this wire lacks; the client is told.
    method: Literal["POST", "GET"] = "POST"
    is_sent: bool = False  # Whether a connection was available to send it: then the provider may have worked on it.


class Decoder(Protocol):
    """Decodes one answer's bytes to events. It has the answer's state. It never raises, whatever an upstream sends.

    ``start_call`` makes the event of each new call. It is ``ToolCallStarted`` itself, unless the client knows the tool by
    another name; see ``workers.providers.shared.shape``.
    """

    start_call: Callable[[int, str, str, int], ToolCallStarted]

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream has reported so far. If an answer breaks off, this is all that can be billed.

        None: it has reported nothing, or no believable figures; see ``workers.providers.shared.figures``.
        """
        ...

    @property
    def has_absurd_usage(self) -> bool:
        """Whether the report has figures that are not believable."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether the upstream has finished every choice. Only usage and an end mark may follow, and they may be missing."""
        ...

    def decode(self, block: bytes) -> list[Event]:
        """Return the events of one SSE block (see ``common.sse``).

        An unreadable block becomes ``Failed(UPSTREAM_PROTOCOL)``, the vendor's own error event ``Failed`` of its kind.
        After a terminal event: an empty list.
        """
        ...

    def decode_whole(self, body: bytes) -> list[Event]:
        """Return the events of a whole non-streaming answer, including the terminal event."""
        ...

    def end(self) -> list[Event]:
        """Return the terminal event at the end of the byte stream, however it ended: ``Completed`` if the answer was whole.

        Empty if ``decode`` has already returned one.
        """
        ...

    def is_plain(self, block: bytes) -> bool:
        """Whether a block surely contains only a piece of output, so that its bytes can just be passed on."""
        ...

    def plain_head(self, run: bytes) -> tuple[int, int]:
        """Return how many such blocks are at the start of a run of complete events, and how many bytes they have."""
        ...


class Wire(Protocol):
    """One wire format."""

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of another family. It always streams.

        Raises:
            GatewayError: INVALID_REQUEST with ``param``: the wire cannot express something that the client asked for.
        """
        ...

    def decoder(self, choices: int = 1) -> Decoder:
        """Return a decoder for one answer. ``choices``: the number of choices that the request asks for."""
        ...

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        """Return the failure for an answer with an error status. ``body`` may be anything, or empty."""
        ...


@runtime_checkable
class FamilyWire(Wire, Protocol):
    """A wire that is also a client dialect: between the two, bytes pass unchanged."""

    @property
    def dialect(self) -> str: ...

    @property
    def end_mark(self) -> bytes:
        """The end mark that a client of the same family waits for, in case the upstream does not send it."""
        ...

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        """Return the upstream request for a client of the same family: its body, with only the necessary changes.

        ``headers``: the client's headers that this family passes on, names in lower case.
        """
        ...

    def for_client(self, data: bytes, info: ReplyInfo) -> bytes:
        """Return the client's version of a block or of a whole body, for a client of the same family. Mostly it is unchanged.

        Empty if a block came only because ``pass_request`` changed the body.
        """
        ...


@runtime_checkable
class BackgroundWire(Wire, Protocol):
    """A wire whose providers can store a stream, and continue it if its connection is lost (``Deployment.in_background``).

    ``answer_id``: the provider's own id, from ``Started``.
    """

    def reread_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest:
        """Return the request that reads the same stream again, from its start."""
        ...

    def cancel_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest: ...


@runtime_checkable
class TokenCounter(Protocol):
    """What a wire also has if its provider can count a prompt's tokens without answering it."""

    def count_request(
        self, request: GenerationRequest, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment
    ) -> UpstreamRequest:
        """Return the upstream request that counts tokens. ``body`` and ``headers`` come from a client of Anthropic's dialect.

        Raises:
            GatewayError: as for ``Wire.build_request``.
        """
        ...

    def read_count(self, body: bytes) -> int | None:
        """Return the input tokens in an answer; None: it has none."""
        ...
