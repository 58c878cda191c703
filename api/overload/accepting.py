"""How are connections taken from the kernel, and those that ask for too much answered before anything is made for them?

uvloop takes one connection per listening socket and turn of the loop. Where turns are long, because there is much to do, the
others would wait in the kernel for seconds, and nothing here could see or refuse them. Here a turn takes all that have come,
and makes something of a few; a line of the others that grows is a sign of overload like the loop's lag. Who was taken before
there was one is served, as far as that is a burst: had it been refused, it would have waited for that.

A connection that is made costs several times what a refusal does: transport, protocol and a turn of the loop for each of
connecting, reading and writing. So while there is an overload, the gate is asked at once, if the whole of a small request is
there, as it mostly is: a refusal is written and the connection closed in the same turn. Everything else goes on as usual:
what is let in, what is not complete or not HTTP, and more than one request.
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

MADE_PER_TURN = 16  # Connections that something is made for: some twenty milliseconds of work for the turns that follow.
TAKEN_PER_TURN = 512  # To be refused costs less; with so many the others in the loop get their turn too.
BURST_MAX = 256  # So many may wait and be sure to be served: half a second of work.
SMALL_BYTES = 64 * KIB  # A whole request of up to this size is looked at.
PAUSE_S = 1.0  # While the process or the machine has no files or memory left for another connection.
STOPPING_S = 1.0  # For what a client has sent already to be read. Who has said nothing by then would hold up the process' end.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Takes connections of one listening socket, from now on until ``close``."""

    def __init__(self, listener: socket.socket, protocol: Callable[[], Connection], gate: Gate) -> None:
        self._listener = listener
        self._protocol = protocol
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[socket.socket, _Verdict]] = deque()
        self._next: asyncio.Handle | None = None
        self._making: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Take no more. Those that are taken have a moment for their first request, and are then told that the end is near."""
        self._is_closed = True
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        while self._waiting:
            self._make(*self._waiting.popleft())

    async def wait_closed(self) -> None:
        """Wait until nothing is being made any more, as uvicorn does with its own."""
        while self._making:
            await asyncio.wait(self._making)

    def _take(self) -> None:
        # Hot path: once per turn in which connections have come.
        is_looking = self._gate.is_refusing
        for _ in range(TAKEN_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._wait_for_room(error)
                    break
                continue  # Its client has left.
            verdict = self._ask(connection) if is_looking else _EARLY if len(self._waiting) < BURST_MAX else _UNKNOWN
            if isinstance(verdict, bytes):
                _refuse(connection, verdict)
            else:
                self._waiting.append((connection, verdict))
        if self._next is None:
            self._make_some()

    def _make_some(self) -> None:
        for _ in range(min(MADE_PER_TURN, len(self._waiting))):
            self._make(*self._waiting.popleft())
        self._next = self._loop.call_soon(self._make_some) if self._waiting else None
        self._gate.record_waiting(len(self._waiting))

    def _ask(self, connection: socket.socket) -> "_Verdict | bytes":
        """Return the gate's answer to a connection's first request, or what a request is refused with."""
        try:
            # It stays there for who reads it next.
            data = connection.recv(SMALL_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return _UNKNOWN
        scope = whole_request(data)
        if scope is None:
            return _UNKNOWN
        return self._gate.refusal(scope, is_last=True) or _Verdict(state=scope["state"])

    def _make(self, connection: socket.socket, verdict: "_Verdict") -> None:
        task = self._loop.create_task(self._loop.connect_accepted_socket(partial(self._protocol_of, verdict), connection))
        self._making.add(task)
        task.add_done_callback(partial(self._made, connection))

    def _protocol_of(self, verdict: "_Verdict") -> Connection:
        protocol = self._protocol()
        protocol.admitted_state, protocol.is_early = verdict
        return protocol

    def _made(self, connection: socket.socket, task: "asyncio.Task[Any]") -> None:
        self._making.discard(task)
        if task.cancelled() or task.exception():
            connection.close()  # Its client has left.
        elif self._is_closed:
            self._loop.call_later(STOPPING_S, task.result()[1].shutdown)

    def _wait_for_room(self, error: OSError) -> None:
        log.error("cannot_accept", error=str(error))
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._listener, self._take)


class _Verdict(NamedTuple):
    """What is known of a connection's first request: its state, if the gate has let it in, and whether it was there early."""

    state: dict[str, Any] | None = None
    is_early: bool = False


_UNKNOWN, _EARLY = _Verdict(), _Verdict(is_early=True)


def whole_request(data: bytes) -> dict[str, Any] | None:
    """Return what the gate asks for of a request, as a scope has it; None unless ``data`` is one whole request and no more."""
    request = _Request()
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


class _Request:
    """What a parser calls."""

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
        # What is unread when a connection is closed resets it, and its client may not read its answer.
        connection.recv(SMALL_BYTES, socket.MSG_DONTWAIT)
        connection.send(refusal, socket.MSG_DONTWAIT)  # A new connection has room for it.
    except OSError:
        pass  # Its client has left.
    finally:
        connection.close()
