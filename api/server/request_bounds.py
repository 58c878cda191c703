"""How long, and in how many bytes, may a request arrive?

uvicorn waits for ever for a head that never ends, or a body that comes byte by byte, and holds headers of any size: so a
few thousand such connections would take every file of the process, and one could take its memory. Here each request has a
time to arrive in, longer the more body it brings, and a bound on what is not body. When the process stops, what is still
arriving has a last moment. One timer per connection, set at most once per ``request_read_timeout_s`` and looked at only when
it rings; nothing runs per token.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from api.server.connection import Connection
from api.server.http_errors import restarting
from common.canonical.errors import ErrorKind, Failed
from common.config.groups.server import ServerSettings
from common.config.settings import KIB

# Once the process stops. Nearly every request is complete within it; of a slow upload the client is told soon, and not after
# it has sent all of it.
STOPPING_READ_TIMEOUT_S = 2.0
SILENCE_S_MAX = 75.0  # Of a connection on which nothing was ever asked.
BODY_RATE_MIN = 64 * KIB  # Bytes per second: a slower line than any that could carry an answer's tokens for long.
# For the request line and line ends. Headers slightly over their limit get a better answer from RequestObserver.
HEAD_EXTRA_BYTES = 16 * KIB


@dataclass(frozen=True, slots=True)
class Bounds:
    read_timeout_s: float
    stopping_read_timeout_s: float
    head_bytes_max: int


def bounded_protocol(settings: ServerSettings) -> type[Connection]:
    """Return the protocol for uvicorn, which makes one per connection and hands over no arguments of ours."""
    bounds = Bounds(
        settings.request_read_timeout_s,
        min(STOPPING_READ_TIMEOUT_S, settings.api_drain_s / 2),  # The rest is for its answer.
        settings.header_bytes_max + HEAD_EXTRA_BYTES,
    )

    class Bounded(BoundedProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.bounds = bounds

    return Bounded


class BoundedProtocol(Connection):
    bounds: Bounds
    _began_at: float | None = None  # When the request that is arriving began to; None while none is.
    _body_bytes = 0  # Of that request, so far.
    _in_a_row = 0  # Bytes since its last of a body: the head's, a trailer's or those between two chunks.
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As uvicorn has it.
        super().connection_made(transport)
        # Who connects and says nothing is let go as one who has been answered and says no more, and sooner.
        silence_s = min(SILENCE_S_MAX, self.timeout_keep_alive)
        self.timeout_keep_alive_task = self.loop.call_later(silence_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._unset_keepalive_if_required()  # uvicorn leaves it to ring after a reset, and with it all of the connection.
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._began_at is None and (self.cycle is None or self.cycle.response_complete):
            self._begin()  # Be it a line end only: it has ended the wait for a next request.
        self._in_a_row += len(data)
        super().data_received(data)
        if self._in_a_row > self.bounds.head_bytes_max and self._began_at is not None:
            self.refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._in_a_row = 0
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self._awaits_body:
            self._in_a_row = 0
            self._began_at = None

    def shutdown(self) -> None:
        """The process stops: a connection that is idle is closed, one that is answering when it has answered."""
        if self._began_at is None or self._is_answered():
            super().shutdown()
        else:
            self.loop.call_later(self.bounds.stopping_read_timeout_s, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._began_at is not None:
            self.refuse(restarting())

    def _begin(self) -> None:
        self._began_at, self._body_bytes = self.loop.time(), 0
        if self._timer is None:
            self._timer = self.loop.call_later(self.bounds.read_timeout_s, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._began_at is None or self._is_refused or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._is_answering_another():
            self._began_at = now  # What is half sent is the next request, and we are not reading it yet.
        # Once it has been answered, a request's rest is of no use, however fast it comes.
        due_at = self._began_at + self.bounds.read_timeout_s + (0 if self._is_answered() else self._body_bytes / BODY_RATE_MIN)
        if now >= due_at:
            self.refuse(_too_slow(self.bounds.read_timeout_s))
        else:
            self._timer = self.loop.call_later(due_at - now, self._check)

    def _is_answered(self) -> bool:
        """Whether the request that is arriving has its answer already."""
        return self._awaits_body and bool(self.cycle.response_complete)

    def _is_answering_another(self) -> bool:
        is_running = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (is_running and not self.cycle.more_body)


_TOO_LARGE = Failed(
    ErrorKind.INVALID_REQUEST,
    "The request's headers are too large. Send fewer or shorter ones.",
    status=431,
    code="headers_too_large",
)


def _too_slow(within_s: float) -> Failed:
    message = f"The request was not complete within {within_s:g} seconds and a second per {BODY_RATE_MIN} bytes. Send it again."
    return Failed(ErrorKind.INVALID_REQUEST, message, status=408, code="request_timeout")
