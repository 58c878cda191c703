"""How does a worker connect to its providers?

One aiohttp session: names, proxies, certificates, the pool of idle connections. The doctor connects by the same class, so what
it finds is what a worker would find. aiohttp's types stop here and in ``upstream_errors``.
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

HEADER_BYTES_MAX = 64 * KIB  # Of one header; gateways send traces and policies that are longer than aiohttp's 8 KiB.
DNS_CACHE_S = 60
CONNECTION_AGE_S_MAX = 300.0  # One that is never idle would else go to a name's old address for as long as that answers.
# A machine that is gone, or what forgot a connection without a word, acknowledges nothing: known within these, not by the wait
# for the first token. Of a provider that is only slow, the machine answers; it may read a large body slowly.
UNACKNOWLEDGED_S_MAX = 20
PROBE_AFTER_S, PROBE_EVERY_S = 30, 10  # Of silence. Most NATs forget a connection that is silent for minutes.
_DECODED = ("", "identity", "gzip", "deflate", "br", "zstd")  # By aiohttp; the last two with a library, else it says so.
_PROXY_REFUSED = 407


class _Protocol(ResponseHandler):
    """aiohttp's, without looking after each read for what a pause may have left behind (3.14): only after a pause."""

    uses = 0  # Requests that were sent on this connection.
    taken_at = 0.0  # When the last one was: monotonic seconds, as aiohttp's pool counts.
    has_answered = False  # Whether anything came back for it.
    made_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made_at = time.monotonic()

    def take(self) -> None:
        self.uses += 1
        self.taken_at = time.monotonic()
        self.has_answered = False

    @property
    def was_dead(self) -> bool:
        """Whether a failure now is the connection's own: it worked before, and for this request nothing came back."""
        return self.uses > 1 and not self.has_answered

    def data_received(self, data: bytes) -> None:
        # Hot path: once per upstream read.
        self.has_answered = True
        super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Hot path: once per upstream read.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)


class _Sending:
    """One request on its way through aiohttp, which tells the connector nothing of whose request it is."""

    __slots__ = ("needs_new_connection", "protocol", "request")

    def __init__(self) -> None:
        self.request: Any = None  # aiohttp's, as soon as it looks for a connection.
        self.protocol: _Protocol | None = None  # That of the connection it was sent on last.
        self.needs_new_connection = False


# Of the task that sends. Cheaper than a middleware, which lies between the task and each of its wake-ups.
_sending: contextvars.ContextVar[_Sending] = contextvars.ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """aiohttp's, whose idle connections may be dead without knowing it: what is between forgot them, or the pod is gone."""

    def __init__(self) -> None:
        # Our own count is the limit; left alone, aiohttp would queue in silence past 100.
        super().__init__(limit=0, ttl_dns_cache=DNS_CACHE_S, socket_factory=_socket)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = functools.partial(protocol, loop=asyncio.get_running_loop())

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Connection:
        # The one that was used last is used first: the others are all the more likely dead, and die out unused.
        if len(idle := self._conns.get(req.connection_key, ())) > 1:
            idle.rotate(1)  # type: ignore[union-attr]
        sending = _sending.get()
        sending.request = req
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        assert isinstance(protocol, _Protocol)
        protocol.take()
        sending.protocol = protocol
        return connection

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        is_old = isinstance(protocol, _Protocol) and time.monotonic() - protocol.made_at > CONNECTION_AGE_S_MAX
        super()._release(key, protocol, should_close=should_close or is_old)

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        return None if _sending.get().needs_new_connection else await super()._get(key, traces)

    def drop_idle(self, key: Any, since: float) -> None:
        """Close what has been idle since then or longer: what one connection was forgotten by has forgotten these too."""
        for idle in [each for each in self._conns.get(key, ()) if each[1] <= since]:
            self._conns[key].remove(idle)
            idle[0].close()


def _socket(address: Any) -> socket.socket:
    """Return a socket that notices a peer that is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    options = {
        "TCP_USER_TIMEOUT": UNACKNOWLEDGED_S_MAX * 1000,
        "TCP_KEEPIDLE": PROBE_AFTER_S,
        "TCP_KEEPINTVL": PROBE_EVERY_S,
    }
    for name, value in options.items():
        with contextlib.suppress(AttributeError, OSError):  # Not everywhere.
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class Connections:
    """The connections of one process to all providers. ``on_replaced`` is called with the provider of each dead one."""

    def __init__(self, settings: Settings, on_replaced: Callable[[str], object] = lambda provider: None) -> None:
        self._settings = settings
        self._on_replaced = on_replaced
        self._proxies: dict[str, Proxy | None] = {}  # By origin. These come from settings: there are a few dozen at most.
        self._connector = _Connector()
        connect_s = settings.connect_timeout_s
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            # One tenant's cookies must never travel with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Name, proxy and TLS are parts of connecting. Of several addresses the next is tried after a quarter second.
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s),
            headers={"user-agent": "sluice"},
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )

    async def close(self) -> None:
        await self._session.close()

    def proxy(self, url: str) -> Proxy | None:
        """Return the proxy that leads to a URL.

        Raises:
            ProxyUnusable
        """
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(url, self._settings)
        return self._proxies[origin]

    async def send(self, request: UpstreamRequest, provider: str) -> aiohttp.ClientResponse:
        """Send a request and return the answer whose head has come.

        Raises:
            UpstreamFailure: there is none that could be read.
        """
        proxy = None
        sending = _Sending()
        _sending.set(sending)
        try:
            proxy = self.proxy(request.url)
            arguments = request_arguments(request.url, request.headers, proxy)
            try:
                response = await self._session.request(request.method, request.url, data=request.body, **arguments)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as error:
                await self._let_go_of_dead(error, sending, provider)
                response = await self._session.request(request.method, request.url, data=request.body, **arguments)
        except upstream_errors.TRANSPORT as error:
            if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                self._forget_address(sending)
            is_a_url = isinstance(error, TimeoutError | OSError)
            host = (is_a_url and urlsplit(proxy.url if proxy else request.url).hostname) or ""
            raise upstream_errors.without_answer(error, provider, host, self._settings.connect_timeout_s, proxy) from error
        finally:
            request.is_sent = sending.protocol is not None  # aiohttp writes it as soon as there is a connection.
        if failure := _refusal(response, provider, proxy):
            response.close()
            raise failure
        return response

    def _forget_address(self, sending: _Sending) -> None:
        """Have the name resolved anew: it may have another address by now."""
        way = sending.request.proxy or sending.request.url
        self._connector.clear_dns_cache(way.raw_host, way.port)

    async def _let_go_of_dead(self, error: Exception, sending: _Sending, provider: str) -> None:
        """Make ready to send a request again, at once and on a new connection, where a used one died before a byte of an answer
        came; raise any other error."""
        protocol = sending.protocol
        if isinstance(error, aiohttp.ClientConnectorError) or protocol is None or not protocol.was_dead:
            raise error
        self._connector.drop_idle(sending.request.connection_key, protocol.taken_at)
        self._forget_address(sending)
        self._on_replaced(provider)
        await sending.request.close()  # Its body's writer, which may not know yet.
        sending.needs_new_connection = True


def request_arguments(url: str, headers: dict[str, str], proxy: Proxy | None) -> dict[str, Any]:
    """Return aiohttp's arguments that say how a request travels. No redirect is ever followed."""
    if proxy is None:
        return {"headers": headers, "allow_redirects": False}
    proxy_headers = {"proxy-authorization": proxy.authorization} if proxy.authorization else {}
    if url.startswith("http:"):
        headers = headers | proxy_headers  # There is no tunnel: the proxy reads the request itself.
    return {"headers": headers, "allow_redirects": False, "proxy": proxy.url, "proxy_headers": proxy_headers}


def _refusal(response: aiohttp.ClientResponse, provider: str, proxy: Proxy | None) -> upstream_errors.UpstreamFailure | None:
    """Return what is wrong with an answer that has come, before anybody reads it."""
    if proxy and response.status == _PROXY_REFUSED:
        return upstream_errors.proxy_refused(provider, proxy, response.status)
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if response.ok and encoding not in _DECODED:
        return upstream_errors.unreadable(provider, "in a content encoding that cannot be read", "encoding", encoding)
    return None
