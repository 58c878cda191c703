"""How long may a request take to arrive, and how many bytes may it have?

uvicorn waits for ever for a head that never ends, or for a body that comes byte by byte, and it accepts headers of any size. So
a few thousand such connections would use up the process's files, and a single one its memory. Here each request has a time
limit, which grows with the body that has arrived, and a size limit for everything that is not body. When the process stops,
arriving requests get a short last time limit. There is one timer per connection. It is set at most once per
``request_read_timeout_s``. Nothing runs per token.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from api.server.connection import Connection
from api.server.http_errors import restarting
from common.canonical.errors import ErrorKind, Failed
from common.canonical.wording import counted
from common.config.groups.server import ServerSettings
from common.config.settings import KIB

# The time limit once the process stops. Nearly every request completes within it. The client of a slow upload learns it soon,
# and not after it has sent everything.
STOPPING_READ_TIMEOUT_S = 2.0
SILENCE_S_MAX = 75.0  # For a connection that has not sent any request yet.
BODY_RATE_MIN = 64 * KIB  # Bytes per second. A slower line could hardly carry the tokens of an answer.
# For the request line and line ends. Headers slightly over their limit get a better answer from Front.
HEAD_EXTRA_BYTES = 16 * KIB


@dataclass(frozen=True, slots=True)
class Bounds:
    read_timeout_s: float
    stopping_read_timeout_s: float
    head_bytes_max: int


def bounded_protocol(settings: ServerSettings) -> type[Connection]:
    """Return the protocol class for uvicorn, which makes one per connection without arguments of ours."""
    bounds = Bounds(
        settings.request_read_timeout_s,
        min(STOPPING_READ_TIMEOUT_S, settings.api_drain_s / 2),  # The other half is for the answer.
        settings.header_bytes_max + HEAD_EXTRA_BYTES,
    )

    class Bounded(BoundedProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.bounds = bounds

    return Bounded


class BoundedProtocol(Connection):
    bounds: Bounds
    _started_at: float | None = None  # When the arriving request began; None while no request is arriving.
    _body_bytes = 0  # The bytes of its body so far.
    _non_body_bytes = 0  # The bytes since its last body byte: of the head, of a trailer, or between two chunks.
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As uvicorn has it.
        super().connection_made(transport)
        # A connection that has never sent anything is closed like one that is idle after an answer, but sooner.
        silence_s = min(SILENCE_S_MAX, self.timeout_keep_alive)
        self.timeout_keep_alive_task = self.loop.call_later(silence_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        # After a reset, uvicorn leaves the timer set, and it keeps the connection in memory.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._started_at is None and (self.cycle is None or self.cycle.response_complete):
            self._begin()  # Even a single line end: it has ended the wait for the next request.
        self._non_body_bytes += len(data)
        super().data_received(data)
        if self._non_body_bytes > self.bounds.head_bytes_max and self._started_at is not None:
            self.refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._non_body_bytes = 0
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self._awaits_body:
            self._non_body_bytes = 0
            self._started_at = None

    def shutdown(self) -> None:
        """Stop the connection with the process: an idle one now, one that is answering after its answer."""
        if self._started_at is None or self._is_answered():
            super().shutdown()
        else:
            self.loop.call_later(self.bounds.stopping_read_timeout_s, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._started_at is not None:
            self.refuse(restarting())

    def _begin(self) -> None:
        self._started_at, self._body_bytes = self.loop.time(), 0
        if self._timer is None:
            self._timer = self.loop.call_later(self.bounds.read_timeout_s, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._started_at is None or self._is_refused or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._is_answering_another():
            self._started_at = now  # What is half sent is the next request, and we are not reading it yet.
        # After the answer, the rest of a request is of no use. So it gets no additional time.
        extra_s = 0 if self._is_answered() else self._body_bytes / BODY_RATE_MIN
        due_at = self._started_at + self.bounds.read_timeout_s + extra_s
        if now >= due_at:
            self.refuse(_too_slow(self.bounds.read_timeout_s))
        else:
            self._timer = self.loop.call_later(due_at - now, self._check)

    def _is_answered(self) -> bool:
        """Whether the arriving request already has its answer."""
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
    limit = f"{counted(within_s, 'seconds')} plus one second per {BODY_RATE_MIN} bytes"
    message = f"The request was not complete within {limit}. Send it again."
    return Failed(ErrorKind.INVALID_REQUEST, message, status=408, code="request_timeout")
