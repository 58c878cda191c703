"""How does a worker connect to its providers?

With one aiohttp session, for names, proxies, certificates and the pool of idle connections. The doctor uses the same class, so
it sees what a worker would see. aiohttp's types stop here and in ``workers/upstream/errors.py``.
See docs/decisions/upstream-client.md and docs/decisions/dead-connections.md.
"""

import asyncio
import contextlib
import contextvars
import functools
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from common.config.proxies import Proxy, proxy_for
from common.config.settings import KIB, Settings
from workers.providers.base import UpstreamRequest
from workers.upstream import errors as upstream_errors

HEADER_BYTES_MAX = 64 * KIB  # For one header. Gateways send traces and policies that are longer than aiohttp's 8 KiB.
DNS_CACHE_S = 60
CONNECTION_AGE_S_MAX = 300.0  # Otherwise a connection that is never idle keeps using a name's old address.
# A dead machine, or a NAT that forgot the connection, acknowledges no packets. After this time we know, and need not wait for
# the first-token timeout. A provider that is only slow still acknowledges packets; it may also read a large body slowly.
UNACKNOWLEDGED_S_MAX = 20
PROBE_AFTER_S, PROBE_EVERY_S = 30, 10  # Of silence. Most NATs forget a connection that is silent for minutes.
_DECODED = ("", "identity", "gzip", "deflate", "br", "zstd")  # aiohttp decodes these; the last two only with a library.
_PROXY_REFUSED = 407


class _Protocol(ResponseHandler):
    """aiohttp's protocol, but cheaper: it resumes reading only after a pause. aiohttp 3.14 tries to after each read."""

    uses = 0  # Requests that were sent on this connection.
    request_began_at = 0.0  # When the last request began: monotonic seconds, as in aiohttp's pool.
    has_answered = False  # Whether any byte came back for that request.
    made_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made_at = time.monotonic()

    def begin_request(self) -> None:
        self.uses += 1
        self.request_began_at = time.monotonic()
        self.has_answered = False

    @property
    def was_dead(self) -> bool:
        """Whether a failure now means that the connection was dead: it worked before, and nothing came back this time."""
        return self.uses > 1 and not self.has_answered

    def data_received(self, data: bytes) -> None:
        # Hot path: once per upstream read.
        self.has_answered = True
        super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Hot path: once per upstream read.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)


class _PendingSend:
    """One request on its way through aiohttp. aiohttp's connector does not know which of our requests it serves."""

    __slots__ = ("needs_new_connection", "protocol", "request", "upstream_request")

    def __init__(self, upstream_request: UpstreamRequest) -> None:
        self.upstream_request = upstream_request
        self.request: Any = None  # aiohttp's request object, from the moment it asks for a connection.
        self.protocol: _Protocol | None = None  # The protocol of the connection on which it was sent last.
        self.needs_new_connection = False


# For the task that sends. This is cheaper than a middleware, which would add a frame to each of the task's wake-ups.
_sending: contextvars.ContextVar[_PendingSend] = contextvars.ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connector, for idle connections that may be dead: a NAT forgot them, or the pod is gone."""

    def __init__(self) -> None:
        # Our own count is the limit. By default, aiohttp would silently queue requests above 100.
        super().__init__(limit=0, ttl_dns_cache=DNS_CACHE_S, socket_factory=_socket)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = functools.partial(protocol, loop=asyncio.get_running_loop())

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Connection:
        # The connection that was used last is used first. The others are more likely dead, and expire without being used.
        if len(idle := self._conns.get(req.connection_key, ())) > 1:
            idle.rotate(1)  # type: ignore[union-attr]
        sending = _sending.get()
        sending.request = req
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        assert isinstance(protocol, _Protocol)
        protocol.begin_request()
        sending.protocol = protocol
        sending.upstream_request.is_sent = True  # aiohttp writes a request as soon as it has a connection.
        return connection

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        is_old = isinstance(protocol, _Protocol) and time.monotonic() - protocol.made_at > CONNECTION_AGE_S_MAX
        super()._release(key, protocol, should_close=should_close or is_old)

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        return None if _sending.get().needs_new_connection else await super()._get(key, traces)

    def drop_idle(self, key: Any, since: float) -> None:
        """Close the connections that are idle since ``since`` or longer: they are as dead as the one that failed."""
        for idle in [idle_connection for idle_connection in self._conns.get(key, ()) if idle_connection[1] <= since]:
            self._conns[key].remove(idle)
            idle[0].close()


def _socket(address: Any) -> socket.socket:
    """Return a socket that detects a dead peer."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    options = {
        "TCP_USER_TIMEOUT": UNACKNOWLEDGED_S_MAX * 1000,
        "TCP_KEEPIDLE": PROBE_AFTER_S,
        "TCP_KEEPINTVL": PROBE_EVERY_S,
    }
    for name, value in options.items():
        with contextlib.suppress(AttributeError, OSError):  # Not every system has these options.
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class Connections:
    """The connections of one process to all providers. ``on_replaced`` gets the provider of each replaced connection."""

    def __init__(self, settings: Settings, on_replaced: Callable[[str], object] = lambda provider: None) -> None:
        self._settings = settings
        self._on_replaced = on_replaced
        self._proxies: dict[str, Proxy | None] = {}  # By origin. Origins come from settings: there are a few dozen at most.
        self._connector = _Connector()
        connect_s = settings.connect_timeout_s
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            # One tenant's cookies must never be sent with another tenant's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            # These timeouts include name resolution, proxy and TLS. If there are several addresses, aiohttp tries the next one
            # after a quarter of a second.
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s),
            headers={"user-agent": "sluice"},
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )

    async def close(self) -> None:
        await self._session.close()

    def proxy(self, url: str) -> Proxy | None:
        """Return the proxy for a URL; None: there is none.

        Raises:
            ProxyUnusable
        """
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(url, self._settings)
        return self._proxies[origin]

    async def send(self, request: UpstreamRequest, provider: str) -> aiohttp.ClientResponse:
        """Send a request, and return the response when its head has come.

        Raises:
            UpstreamFailure: there is no readable response.
        """
        proxy = None
        sending = _PendingSend(request)
        _sending.set(sending)
        try:
            proxy = self.proxy(request.url)
            arguments = request_arguments(request.url, request.headers, proxy)
            try:
                response = await self._session.request(request.method, request.url, data=request.body, **arguments)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
                await self._prepare_resend(error, sending, provider)
                response = await self._session.request(request.method, request.url, data=request.body, **arguments)
        except upstream_errors.TRANSPORT as error:
            if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                self._forget_address(sending)
            is_a_url = isinstance(error, TimeoutError | OSError)
            host = (is_a_url and urlsplit(proxy.url if proxy else request.url).hostname) or ""
            raise upstream_errors.without_answer(error, provider, host, self._settings.connect_timeout_s, proxy) from error
        if failure := _refusal(response, provider, proxy):
            response.close()
            raise failure
        return response

    def _forget_address(self, sending: _PendingSend) -> None:
        """Resolve the name again for the next connection: it may have another address by now."""
        target = sending.request.proxy or sending.request.url
        self._connector.clear_dns_cache(target.raw_host, target.port)

    async def _prepare_resend(self, error: Exception, sending: _PendingSend, provider: str) -> None:
        """Prepare to send the request again at once, on a new connection.

        This is done only if a used connection was dead: no byte of an answer came. Any other error is raised again.
        """
        protocol = sending.protocol
        if isinstance(error, aiohttp.ClientConnectorError) or protocol is None or not protocol.was_dead:
            raise error
        self._connector.drop_idle(sending.request.connection_key, protocol.request_began_at)
        self._forget_address(sending)
        self._on_replaced(provider)
        await sending.request.close()  # Stops the writer of its body, which may not have noticed yet.
        sending.needs_new_connection = True


def request_arguments(url: str, headers: dict[str, str], proxy: Proxy | None) -> dict[str, Any]:
    """Return aiohttp's arguments for headers, proxy and redirects. No redirect is ever followed."""
    if proxy is None:
        return {"headers": headers, "allow_redirects": False}
    proxy_headers = {"proxy-authorization": proxy.authorization} if proxy.authorization else {}
    if url.startswith("http:"):
        headers = headers | proxy_headers  # There is no tunnel for http: the proxy reads the request itself.
    return {"headers": headers, "allow_redirects": False, "proxy": proxy.url, "proxy_headers": proxy_headers}


def _refusal(response: aiohttp.ClientResponse, provider: str, proxy: Proxy | None) -> upstream_errors.UpstreamFailure | None:
    """Return the failure of a response that cannot be used, before its body is read; None: it is fine."""
    if proxy and response.status == _PROXY_REFUSED:
        return upstream_errors.proxy_refused(provider, proxy, response.status)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if response.ok and encoding not in _DECODED:
        return upstream_errors.unreadable(provider, "in a content encoding that cannot be read", "encoding", encoding)
    return None
