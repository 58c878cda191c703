"""How does a connection answer requests that uvicorn's parser stops at?

uvicorn drops the body of a request that offers an upgrade. It answers malformed requests in plain text, even in the middle of
another answer. It sends chunks to HTTP/1.0 clients, which do not support them. Here an upgrade is ignored, as a server may do
(RFC 9110, 7.8). A malformed request is treated as a request: it waits for those before it, and the application answers it with
ids, headers and the dialect of its path. Nothing here runs per token, and very little for a well-formed request.

uvicorn also has no cheap way to refuse a request. Here the ``gate`` is asked before the application is, and a request that is
not admitted gets prepared bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.server.corking import CorkedProtocol, CorkedTransport
from api.server.http_errors import refusal_in, refuse_in
from common.canonical.errors import ErrorKind, Failed

# For what the client still sends. Closing at once would reset the connection before the client reads its answer.
LINGER_S = 1.0


class Presence:
    """Whether a connection's client is still there. It holds no request: that would be a cycle.

    A task that waits for ASGI's disconnect message would cost each request more than its log line.
    """

    def __init__(self, read_on: Callable[[], object] = lambda: None) -> None:
        self.has_left = False
        self._read_on = read_on
        self._on_left: Callable[[], object] | None = None

    def watch(self, on_left: Callable[[], object]) -> None:
        """Call ``on_left`` when the client leaves, or now if it has left."""
        self._read_on()  # Nobody notices that a client leaves while nothing is read from its connection.
        self._on_left = on_left
        if self.has_left:
            on_left()

    def unwatch(self) -> None:
        self._on_left = None

    def leave(self) -> None:
        self.has_left = True
        if self._on_left:
            self._on_left()


def presence_of(scope: Scope) -> Presence:
    """Return the presence of a request's client. Without a connection of ours, nothing tells that it leaves."""
    return scope.get("state", {}).get(_PRESENCE) or Presence()


def has_left(scope: Scope) -> bool:
    """Whether the client of a request has closed its connection."""
    return presence_of(scope).has_left


class Gate(Protocol):
    def refusal(self, scope: Scope, *, is_last: bool, is_early: bool = False) -> bytes | None:
        """Return the response to a request that is not admitted; see ``api/overload/gate.py``."""
        ...


class Connection(CorkedProtocol):
    gate: Gate | None = None  # The gate of the process; None admits every request.
    # Both are about the first request, and set before the connection is made. ``admitted_state`` is its state if the gate has
    # admitted it. ``is_early``: it came before there was an overload.
    admitted_state: dict[str, Any] | None = None
    is_early = False
    _awaits_body = False  # Whether the head of the arriving request is complete, and its body is not.
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As uvicorn has it.
        super().connection_made(transport)
        self._presence = Presence(self.flow.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._presence.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as stopped:
                    rest = memoryview(rest)[stopped.args[0] :]
                    self._go_on_without_upgrade()
        except httptools.HttpParserError as error:
            self.refuse(_malformed(error))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._awaits_body = True

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # The parser skips the body of a request that offers an upgrade. The body is still to come.
        super().on_message_complete()
        self._awaits_body = False
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # The rest of a request that was answered early has ended the wait for the next request. That wait begins again.
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def refuse(self, failed: Failed) -> None:
        """Answer the arriving request with a failure, after those before it, and close. Nothing more is read."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if not self._awaits_body:
            self._begin_refused(failed)
        elif self.cycle.response_started:
            self.transport.close()  # A cut answer never ends cleanly. A complete answer does not need the rest of its request.
        else:
            refuse_in(self.cycle.scope["state"], failed)
            self.cycle.keep_alive = False
            self.cycle.transport = cast(asyncio.Transport, LingeringTransport(self.transport, self.loop))
            self.cycle.message_event.set()  # Its reader waits for more of the body: wake it.

    def _begin_refused(self, failed: Failed) -> None:
        """Have the application answer a request whose head is incomplete."""
        if self.scope is None or (self.cycle and self.cycle.scope is self.scope):  # No request line was readable.
            HttpToolsProtocol.on_message_begin(self)
        # A method without a target does not count: the parser still has the last request's method, or its own default.
        self.scope["method"] = self.parser.get_method().decode("ascii") if self.url else ""
        raw_path = self.url.partition(b"?")[0]
        self.scope["raw_path"], self.scope["path"], self.scope["query_string"] = raw_path, unquote(raw_path), b""
        refuse_in(self.scope["state"], failed)
        previous, self.cycle = self.cycle, self._refused_cycle()
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _refused_cycle(self) -> RequestResponseCycle:
        cycle = RequestResponseCycle(
            scope=self.scope,
            transport=cast(asyncio.Transport, LingeringTransport(self.transport, self.loop)),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        return cycle

    def _go_on_without_upgrade(self) -> None:
        """Replace the parser, which has stopped parsing HTTP, by a new one that has read the same head without the upgrade."""
        replay = _Replay(self)
        self.parser = httptools.HttpRequestParser(replay)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn's.
        framing = [(name, value) for name, value in self.headers if name in _FRAMING]
        self.parser.feed_data(_head(self.scope["http_version"], framing))
        replay.is_over = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cast(Scope, cycle.scope)
        is_early, self.is_early = self.is_early, False
        if self.admitted_state is not None:
            scope["state"].update(self.admitted_state)
            self.admitted_state = None
        elif self.gate and refusal_in(scope) is None:
            is_last = not cycle.keep_alive or cycle.waiting_for_100_continue or _is_large(scope["headers"])
            if answer := self.gate.refusal(scope, is_last=is_last, is_early=is_early):
                # Later, not now: an answered request starts the next one of a pipeline, which may be refused too, and so on.
                self.loop.call_soon(self._shed, cycle, answer, is_last)
                return
        scope["state"][_PRESENCE] = self._presence
        if scope["http_version"] in _WITHOUT_CHUNKS:
            cycle.keep_alive, cycle.waiting_for_100_continue = False, False  # HTTP/1.0 has neither.
            app = _without_chunks(app, cycle)
        elif cycle.waiting_for_100_continue:
            app = self._closing_unless_read(app, cycle)
        else:
            scope["state"][DIRECT_WRITE] = partial(_write_chunk, cycle)
        super()._start_asgi_task(cycle, app)

    def _shed(self, cycle: RequestResponseCycle, answer: bytes, is_last: bool) -> None:
        """Answer a request without the application. The rest of a small body is read and dropped. Otherwise nothing more is
        read.
        """
        if cycle.disconnected or self.transport.is_closing():
            return
        cycle.response_started = cycle.response_complete = True
        cycle.body.clear()
        cycle.transport.write(answer)
        if is_last or not cycle.keep_alive:
            self._is_refused = True
            closing = LingeringTransport(self.transport, self.loop) if cycle.more_body else cycle.transport
            closing.close()
        self.on_response_complete()

    def _closing_unless_read(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Return the application for a client that waits for ``100 Continue`` before it sends its body. If the body is never
        asked for, the client may still send it. What follows could be the body or the next request, so the connection is closed
        after the answer (RFC 9110, 10.1.1).
        """

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_close(message: Message) -> None:
                if cycle.waiting_for_100_continue:  # True until the answer begins.
                    cycle.keep_alive = False
                    cycle.transport = cast(asyncio.Transport, LingeringTransport(self.transport, self.loop))
                await send(message)

            await app(scope, receive, send_and_close)

        return answer


_PRESENCE = "presence"  # A key in a scope's state.
DIRECT_WRITE = "direct_write"  # Another: writes a chunk of the answer's body at once, see ``_write_chunk``.
_WITHOUT_CHUNKS = ("0.9", "1.0")
_FRAMING = (b"content-length", b"transfer-encoding", b"connection")


def _head(version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([f"POST / HTTP/{version}\r\n".encode(), *(b"%s: %s\r\n" % header for header in headers), b"\r\n"])


def _is_large(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body is too large to read and drop it: 100,000 bytes or more, or of unknown length."""
    return any((name == b"content-length" and len(value) > 5) or name == b"transfer-encoding" for name, value in headers)


class _Replay:
    """The callbacks of a parser that reads a head a second time. Only what follows the head is passed on."""

    def __init__(self, protocol: Connection) -> None:
        self.is_over = False
        self._protocol = protocol
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self.is_over:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.is_over:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_over:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_over:
            self._protocol.on_headers_complete()


class LingeringTransport:
    """Closes after the last byte is written, but reads on for a moment. Everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport | CorkedTransport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop

    def close(self) -> None:
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(LINGER_S, self._transport.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def chunk_of(piece: bytes) -> bytes:
    """Return a piece of a body as a chunk of HTTP/1.1."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _write_chunk(cycle: RequestResponseCycle, chunk: bytes) -> bool:
    """Write a chunk of a begun answer without waiting. Return False if it must be sent as usual: nothing was written.

    uvicorn's own ``send`` does the same with more steps, and is a coroutine: only a task that was woken can call it.
    """
    # Hot path: runs once per live frame and client.
    if not cycle.chunked_encoding or cycle.flow.write_paused or cycle.disconnected or cycle.response_complete:
        return False
    cycle.transport.write(chunk)
    return True


def _without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the application for HTTP/1.0: an answer of unknown length ends with its connection."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_unbounded = False

        async def send_as_it_is(message: Message) -> None:
            nonlocal is_unbounded
            if message["type"] == "http.response.start":
                is_unbounded = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if is_unbounded:
                    cycle.chunked_encoding = False
            elif is_unbounded:
                # uvicorn would complain that the body is shorter than its declared length.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_as_it_is)

    return answer


def _malformed(error: httptools.HttpParserError) -> Failed:
    # The parser's own texts are constants. It has none for an error in a callback, which means a target that is not a path.
    is_target = isinstance(error, httptools.HttpParserCallbackError)
    fault = "the target is not a path" if is_target else str(error).replace("`", "'")
    return Failed(
        ErrorKind.INVALID_REQUEST,
        f"The request is not valid HTTP/1.1: {fault}. Check the client, and any proxy between it and the gateway.",
        code="malformed_request",
    )
