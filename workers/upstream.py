"""How is an upstream called, and what do its failures mean?

aiohttp (a C parser), called directly: see docs/decisions/upstream-client.md. Its types stop at this file.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace

from common.errors import ErrorKind, GatewayError
from common.settings import Settings
from workers.linger import Linger, Tap
from workers.providers.base import UpstreamRequest

ERROR_BODY_BYTES_MAX = 64 * 1024


_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


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
        """The first token is there: from now on each read has ``between_s``. Once is enough."""
        if self._between_s is not None:
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

    def is_the_reason(self) -> bool:
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
        self._time = asyncio.get_running_loop().time

    def has_begun(self) -> None:
        """The first token is there: from now on it is the time between tokens that is limited."""
        self._limit.narrow(self._between_s)

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
            self._tap.shut_if_fast(now)
        try:
            return await self._read()
        except asyncio.CancelledError:
            if limit.is_the_reason():
                raise _timed_out(self._provider) from None
            raise
        except _FAILURES as error:
            raise _meaning(error, self._provider) from error
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

    async def whole(self, bytes_max: int) -> bytes:
        """Return the whole body.

        Raises:
            GatewayError: as for ``read``, and UPSTREAM_PROTOCOL where the body is too large.
        """
        body = bytearray()
        while chunk := await self.read():
            body += chunk
            if len(body) > bytes_max:
                raise GatewayError(
                    ErrorKind.UPSTREAM_PROTOCOL, f"{self._provider} sent an answer of more than {bytes_max} bytes."
                )
        return bytes(body)


class _Protocol(ResponseHandler):
    """aiohttp's, without looking after each read for what a pause may have left behind (3.14): only after a pause."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Hot path: once per upstream read.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)


_sending: ContextVar[UpstreamRequest] = ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    def __init__(self) -> None:
        # Our own count is the limit; left alone, aiohttp would queue in silence past 100.
        super().__init__(limit=0, ttl_dns_cache=60)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = functools.partial(protocol, loop=asyncio.get_running_loop())

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        _sending.get().is_sent = True  # aiohttp writes it next.
        return connection


class Upstream:
    """The connections of one worker to all providers."""

    def __init__(self, settings: Settings, linger: Linger) -> None:
        self._settings = settings
        self._linger = linger
        self._session = aiohttp.ClientSession(
            connector=_Connector(),
            # One tenant's cookies must never travel with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            headers={"user-agent": "sluice"},
        )
        self.connections = 0

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def open(self, request: UpstreamRequest, provider: str, *, is_stream: bool) -> AsyncIterator[UpstreamAnswer]:
        """Send a request and yield its answer; leaving closes the connection unless the body was read to its end.

        A stream must begin within the first-token timeout; a whole answer may take as long as a generation may.

        Raises:
            GatewayError: OVERLOADED (our own connections are all in use), UPSTREAM_TIMEOUT, UPSTREAM_UNAVAILABLE.
        """
        if self.connections >= self._settings.upstream_connections_max:
            raise GatewayError(ErrorKind.OVERLOADED, "All of the gateway's upstream connections are in use.", retry_after_s=5)
        loop = asyncio.get_running_loop()
        within_s = self._settings.first_token_timeout_s if is_stream else self._settings.total_timeout_s
        due_at = loop.time() + within_s
        self.connections += 1
        try:
            _sending.set(request)
            with upstream_errors(provider):
                async with asyncio.timeout_at(due_at):
                    response = await self._session.request(
                        request.method, request.url, data=request.body, headers=request.headers, allow_redirects=False
                    )
            answer = UpstreamAnswer(provider, response, due_at, self._settings.between_tokens_timeout_s, self._linger)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            self.connections -= 1


@contextmanager
def upstream_errors(provider: str) -> Iterator[None]:
    """Turn the client's failures into ours."""
    try:
        yield
    except _FAILURES as error:
        raise _meaning(error, provider) from error


def _meaning(error: Exception, provider: str) -> GatewayError:
    match error:
        case TimeoutError():  # aiohttp's own timeouts are these too.
            return _timed_out(provider)
        case aiohttp.ClientConnectorError():
            what = "could not be reached"
        case _:
            what = "closed the connection before its answer was complete"
    return GatewayError(ErrorKind.UPSTREAM_UNAVAILABLE, f"The provider {provider} {what}.", code="upstream_unavailable")


def _timed_out(provider: str) -> GatewayError:
    return GatewayError(ErrorKind.UPSTREAM_TIMEOUT, f"The provider {provider} did not answer in time.", code="upstream_timeout")
