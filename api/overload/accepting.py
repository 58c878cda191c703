"""How are connections accepted from the kernel, and how are cheap refusals sent before anything is created for a connection?

uvloop accepts one connection per listening socket and turn of the loop. When the loop is busy and its turns are long, the other
connections would wait in the kernel for seconds, and nothing here could see or refuse them. Here each turn accepts all
connections that have arrived, but creates transports for only a few of them. If the queue of the others grows, that is a sign
of overload, like the loop's lag. Connections that were accepted before the overload are served, up to the size of a burst: a
refused client would have waited in vain.

To create a connection costs several times what a refusal costs: a transport, a protocol, and a turn of the loop each for
connecting, reading and writing. So during an overload the gate is asked at once, if a small request has arrived in full, as
most have. The refusal is written and the connection closed in the same turn. Everything else takes the usual path: admitted
requests, incomplete ones, data that is not HTTP, and more than one request.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools
import structlog

from api.overload.gate import Gate
from api.server.connection import Connection
from common.config.settings import KIB

log = structlog.get_logger()

MADE_PER_TURN = 16  # Connections to create per turn: about twenty milliseconds of work for the following turns.
ACCEPTED_PER_TURN = 512  # A refusal costs less. With this many, the other tasks of the loop still get their turn.
BURST_MAX = 256  # This many waiting connections are served for certain: half a second of work.
SMALL_BYTES = 64 * KIB  # A complete request of up to this size is checked at once.
PAUSE_S = 1.0  # While the process or the machine has no files or memory left for another connection.
# To read what a client has already sent. A client that has sent nothing by then would delay the process's end.
STOPPING_S = 1.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts the connections of one listening socket until ``close``."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], Connection], gate: Gate) -> None:
        self._listener = listener
        self._protocol = protocol
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[socket.socket, _FirstRequest]] = deque()
        self._next: asyncio.Handle | None = None
        self._creating: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept_pending)

    def close(self) -> None:
        """Accept what has arrived, and no more. These connections have a moment for their first request, then they shut down.

        The kernel would reset the connections that wait in the socket, also after a load balancer has sent their requests.
        """
        self._is_closed = True
        if self._pause:
            self._pause.cancel()
        self._accept_pending()
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        while self._waiting:
            self._create(*self._waiting.popleft())

    async def wait_closed(self) -> None:
        """Wait until no connection is being created, as uvicorn does for its own servers."""
        while self._creating:
            await asyncio.wait(self._creating)

    def _accept_pending(self) -> None:
        # Hot path: once per turn in which connections have arrived.
        must_check = self._gate.is_refusing
        for _ in range(ACCEPTED_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._wait_for_room(error)
                    break
                continue  # The client has left.
            is_burst = len(self._waiting) < BURST_MAX
            result = self._check_first_request(connection) if must_check else _EARLY if is_burst else _UNKNOWN
            if isinstance(result, bytes):
                _refuse(connection, result)
            else:
                self._waiting.append((connection, result))
        if self._next is None:
            self._create_some()

    def _create_some(self) -> None:
        for _ in range(min(MADE_PER_TURN, len(self._waiting))):
            self._create(*self._waiting.popleft())
        self._next = self._loop.call_soon(self._create_some) if self._waiting else None
        self._gate.record_waiting(len(self._waiting))

    def _check_first_request(self, connection: socket.socket) -> "_FirstRequest | bytes":
        """Ask the gate about a connection's first request. Return what is known of the request, or the bytes of its refusal."""
        try:
            # MSG_PEEK leaves the data in the socket for the next reader.
            data = connection.recv(SMALL_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return _UNKNOWN
        scope = parse_complete_request(data)
        if scope is None:
            return _UNKNOWN
        return self._gate.refusal(scope, is_last=True) or _FirstRequest(state=scope["state"])

    def _create(self, connection: socket.socket, first_request: "_FirstRequest") -> None:
        protocol = partial(self._protocol_for, first_request)
        task = self._loop.create_task(self._loop.connect_accepted_socket(protocol, connection))
        self._creating.add(task)
        task.add_done_callback(partial(self._on_created, connection))

    def _protocol_for(self, first_request: "_FirstRequest") -> Connection:
        protocol = self._protocol()
        protocol.admitted_state, protocol.is_early = first_request
        return protocol

    def _on_created(self, connection: socket.socket, task: "asyncio.Task[Any]") -> None:
        self._creating.discard(task)
        if task.cancelled() or task.exception():
            connection.close()  # The client has left.
        elif self._is_closed:
            self._loop.call_later(STOPPING_S, task.result()[1].shutdown)

    def _wait_for_room(self, error: OSError) -> None:
        log.error("cannot_accept", error=str(error))
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._listener, self._accept_pending)


class _FirstRequest(NamedTuple):
    """What is known of a connection's first request: its state if the gate has admitted it, and whether it came before the
    overload.
    """

    state: dict[str, Any] | None = None
    is_early: bool = False


_UNKNOWN, _EARLY = _FirstRequest(), _FirstRequest(is_early=True)


def parse_complete_request(data: bytes) -> dict[str, Any] | None:
    """Return the parts of a scope that the gate needs; None unless ``data`` is exactly one complete request."""
    request = _ParsedRequest()
    parser = httptools.HttpRequestParser(request)
    try:
        parser.feed_data(data)
        if request.begun != 1 or not request.is_complete:
            return None
        path = httptools.parse_url(request.url).path.decode("ascii")
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError, AttributeError):
        return None
    method = parser.get_method().decode("ascii")
    return {"method": method, "path": unquote(path), "headers": request.headers, "state": {}}


class _ParsedRequest:
    """The callbacks of the parser."""

    __slots__ = ("begun", "headers", "is_complete", "url")

    def __init__(self) -> None:
        self.begun, self.is_complete = 0, False
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.is_complete = True


def _refuse(connection: socket.socket, refusal: bytes) -> None:
    try:
        # Unread data at the close would reset the connection, and the client might not get its answer.
        connection.recv(SMALL_BYTES, socket.MSG_DONTWAIT)
        connection.send(refusal, socket.MSG_DONTWAIT)  # A new connection has room for it in its buffer.
    except OSError:
        pass  # The client has left.
    finally:
        connection.close()
