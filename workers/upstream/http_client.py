"""How is an upstream called, and its answer read in time?

How it is connected to is ``connecting``, what failures mean ``upstream_errors``.
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
BLANK_BYTES_MAX = 4096  # Blanks that may stand before an answer; some servers write them so that nothing between gives up.


class _SilenceLimit:
    """Cancels a task's read once nothing has come for too long. An ``asyncio.timeout`` per read costs as much as a token."""

    def __init__(self, due_at: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._between_s: float | None = None
        self._due_at = due_at
        self.reading_since: float | None = None
        self._has_fired = False
        self._handle = self._loop.call_at(due_at, self._check)

    def narrow(self, between_s: float) -> None:
        """From now on each read has ``between_s``, where it had more. Once is enough."""
        if self._between_s is not None and self._between_s <= between_s:
            return
        self._between_s = between_s
        self._handle.cancel()
        self._handle = self._loop.call_later(between_s, self._check)

    def _check(self) -> None:
        """A read that began since has moved the moment: the timer finds out when it rings."""
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
        """How long it may be silent now; None before the first token."""
        return self._between_s

    def is_cause(self) -> bool:
        """Whether a cancellation that just arrived was this limit's, and no one else's as well."""
        return self._has_fired and self._task is not None and self._task.uncancel() == 0

    def end(self) -> None:
        self._handle.cancel()


class UpstreamAnswer:
    """An answer whose status and headers have come; header names are in lower case."""

    def __init__(
        self, provider: str, response: aiohttp.ClientResponse, due_at: float, between_s: float, linger: Linger
    ) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self._provider = provider
        self._response = response
        self._between_s = between_s
        self._limit = _SilenceLimit(due_at)
        self._tap = Tap(linger, response.connection.transport if response.connection else None)
        self._read = response.content.readany
        self._beginning = b""
        self._time = asyncio.get_running_loop().time

    def mark_begun(self) -> None:
        """The first token is there: from now on it is the time between tokens that is limited."""
        self._limit.narrow(self._between_s)

    def mark_finished(self, tail_s: float) -> None:
        """All that is needed has come: each further read has ``tail_s``."""
        self._limit.narrow(tail_s)

    async def read_beginning(self) -> bytes:
        """Return what the body begins with, blanks left out; it is read again afterwards. Empty: there is nothing else.

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
        """Return what has come of the body, as soon as there is anything; nothing at its end.

        ``may_linger``: this is no hurry, a busy worker may read it with what other streams bring.

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
        """Give the connection back if the body was read to its end, else close it."""
        self._limit.end()
        self._tap.close()
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    async def read_body(self, bytes_max: int, on_growth: Callable[[int], Awaitable[None]] | None = None) -> bytes:
        """Return the whole body. ``on_growth`` is called with what has come of it, and raises where there is no room for more.

        Raises:
            GatewayError: as for ``read``, and UPSTREAM_PROTOCOL where the body is too large.
        """
        body, size = BytesIO(), 0  # It gives its bytes away as they are; those of a bytearray would be copied.
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
        """Send a request and yield its answer; leaving closes the connection unless the body was read to its end.

        A stream must begin within the first-token timeout; a whole answer may take as long as a generation may.

        Raises:
            GatewayError: OVERLOADED (our own connections are all in use).
            UpstreamFailure: UPSTREAM_TIMEOUT, UPSTREAM_UNAVAILABLE, UPSTREAM_PROTOCOL.
        """
        if self.connections >= self._settings.upstream_connections_max:
            raise GatewayError(ErrorKind.OVERLOADED, "All of the gateway's upstream connections are in use.", retry_after_s=5)
        loop = asyncio.get_running_loop()
        within_s = self._settings.first_token_timeout_s if is_stream else self._settings.total_timeout_s
        due_at = loop.time() + within_s
        self.connections += 1
        try:
            try:
                async with asyncio.timeout_at(due_at):
                    response = await self._connections.send(request, provider)
            except TimeoutError as error:
                raise timed_out(provider, None) from error
            answer = UpstreamAnswer(provider, response, due_at, self._settings.between_tokens_timeout_s, self._linger)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            self.connections -= 1
