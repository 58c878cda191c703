"""How is an upstream called, and how is its answer read within its time limits?

``connecting.py`` makes the connections. ``errors.py`` says what failures mean.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO

import aiohttp

from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import Settings
from common.sse import BYTE_ORDER_MARK
from workers.providers.base import UpstreamRequest
from workers.publish.linger import Linger, Tap
from workers.upstream.connecting import Connections
from workers.upstream.errors import TRANSPORT, timed_out, unreadable, within_answer

ERROR_BODY_BYTES_MAX = 64 * 1024
BLANK_BYTES_MAX = 4096  # White space allowed before an answer: some servers send it so that no proxy closes the connection.


class _SilenceLimit:
    """Cancels a task's read when nothing has come for too long. An ``asyncio.timeout`` per read costs as much as a token."""

    def __init__(self, first_s: float) -> None:
        """``first_s``: the seconds from now in which the first token must come."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._between_s: float | None = None
        self._due_at = due_at = self._loop.time() + first_s
        self.reading_since: float | None = None
        self._has_fired = False
        self._handle = self._loop.call_at(due_at, self._check)

    def narrow(self, between_s: float) -> None:
        """From now on each read may take ``between_s`` seconds, if it could take longer before. Repeated calls are cheap."""
        if self._between_s is not None and self._between_s <= between_s:
            return
        self._between_s = between_s
        self._handle.cancel()
        self._handle = self._loop.call_later(between_s, self._check)

    def _check(self) -> None:
        """Fire if the current read has waited too long, otherwise set the timer again. A read itself never sets it."""
        now = self._loop.time()
        due_at = self._due_at if self._between_s is None else (self.reading_since or now) + self._between_s
        if self.reading_since is not None and now >= due_at:
            self._has_fired = True
            if self._task:
                self._task.cancel()
        else:
            self._handle = self._loop.call_at(max(due_at, now + 0.1), self._check)

    @property
    def silence_s(self) -> float | None:
        """How many seconds the upstream may be silent now; None before the first token."""
        return self._between_s

    def is_cause(self) -> bool:
        """Whether only this limit caused the cancellation that just arrived."""
        return self._has_fired and self._task is not None and self._task.uncancel() == 0

    def end(self) -> None:
        self._handle.cancel()


class UpstreamAnswer:
    """An answer whose status and headers have come; header names are in lower case."""

    def __init__(
        self, provider: str, response: aiohttp.ClientResponse, limit: _SilenceLimit, between_s: float, linger: Linger
    ) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self._provider = provider
        self._response = response
        self._between_s = between_s
        self._limit = limit
        self._tap = Tap(linger, response.connection.transport if response.connection else None)
        self._read = response.content.readany
        self._beginning = b""
        self._time = asyncio.get_running_loop().time

    def mark_begun(self) -> None:
        """The first token has come: from now on the time between tokens is limited."""
        self._limit.narrow(self._between_s)

    def mark_finished(self, tail_s: float) -> None:
        """All that is needed has come: each further read may take ``tail_s`` seconds."""
        self._limit.narrow(tail_s)

    async def read_beginning(self) -> bytes:
        """Return the first bytes of the body without leading white space. ``read`` returns them again. Empty: the body is
        empty.

        Raises:
            UpstreamFailure: as for ``read``.
        """
        beginning = b""
        while not (text := beginning.removeprefix(BYTE_ORDER_MARK).lstrip()) and len(beginning) < BLANK_BYTES_MAX:
            if not (chunk := await self.read()):
                break
            beginning += chunk
        self._beginning, self._read = beginning, self._read_again
        return text

    async def _read_again(self) -> bytes:
        beginning, self._beginning = self._beginning, b""
        self._read = self._response.content.readany
        return beginning or await self._read()

    async def read(self, *, may_linger: bool = False) -> bytes:
        """Return the bytes of the body that have come, as soon as there are any; empty at its end.

        ``may_linger``: it is not urgent, so a busy worker may read it together with other streams.

        Raises:
            GatewayError: UPSTREAM_TIMEOUT, UPSTREAM_UNAVAILABLE.
        """
        # Hot path: once per upstream read.
        limit, now = self._limit, self._time()
        limit.reading_since = now
        if may_linger:
            self._tap.hold_if_fast(now)
        try:
            return await self._read()
        except asyncio.CancelledError:
            if limit.is_cause():
                raise timed_out(self._provider, limit.silence_s) from None
            raise
        except TRANSPORT as error:
            raise within_answer(error, self._provider) from error
        finally:
            limit.reading_since = None

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end, otherwise close it."""
        self._tap.close()
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    async def read_body(self, bytes_max: int, on_growth: Callable[[int], Awaitable[None]] | None = None) -> bytes:
        """Return the whole body. ``on_growth`` gets the size so far, and raises if there is no room for more.

        Raises:
            GatewayError: as for ``read``, and UPSTREAM_PROTOCOL if the body is too large.
        """
        body, size = BytesIO(), 0  # BytesIO returns its bytes without a copy; a bytearray would be copied.
        while chunk := await self.read():
            size += body.write(chunk)
            if size > bytes_max:
                raise unreadable(self._provider, f"with more than {bytes_max} bytes", "size")
            if on_growth:
                await on_growth(size)
        return body.getvalue()


class Upstream:
    """The connections of one worker to all providers."""

    def __init__(
        self, settings: Settings, linger: Linger, on_replaced: Callable[[str], object] = lambda provider: None
    ) -> None:
        self._settings = settings
        self._linger = linger
        self._connections = Connections(settings, on_replaced)
        self.connections = 0

    async def close(self) -> None:
        await self._connections.close()

    @asynccontextmanager
    async def open(self, request: UpstreamRequest, provider: str, *, is_stream: bool) -> AsyncIterator[UpstreamAnswer]:
        """Send a request and yield its answer. At the end of the context the connection is closed, unless the body is fully
        read.

        A stream must begin within the first-token timeout. A complete body may take as long as a generation may take.

        Raises:
            GatewayError: OVERLOADED (our own connections are all in use).
            UpstreamFailure: UPSTREAM_TIMEOUT, UPSTREAM_UNAVAILABLE, UPSTREAM_PROTOCOL.
        """
        if self.connections >= self._settings.upstream_connections_max:
            raise GatewayError(ErrorKind.OVERLOADED, "All of the gateway's upstream connections are in use.", retry_after_s=5)
        within_s = self._settings.first_token_timeout_s if is_stream else self._settings.total_timeout_s
        limit = _SilenceLimit(within_s)
        self.connections += 1
        try:
            response = await self._send(request, provider, limit)
            answer = UpstreamAnswer(provider, response, limit, self._settings.between_tokens_timeout_s, self._linger)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            limit.end()
            self.connections -= 1

    async def _send(self, request: UpstreamRequest, provider: str, limit: _SilenceLimit) -> aiohttp.ClientResponse:
        limit.reading_since = asyncio.get_running_loop().time()  # One limit for the head and the first token: half the timers.
        try:
            return await self._connections.send(request, provider)
        except asyncio.CancelledError:
            if limit.is_cause():
                raise timed_out(provider, None) from None
            raise
        finally:
            limit.reading_since = None
