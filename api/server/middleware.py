"""What happens to every request, whatever its route?

It gets an id, a log line, metrics, a limit on its headers, security headers, and what CORS adds. An unexpected exception
becomes an error in the client's dialect. When the process stops, its connection is closed.

All of this is one layer, because each layer costs every request calls of its own, and a wrapper of ``send``. It is pure
ASGI, because Starlette's BaseHTTPMiddleware hides disconnects. See docs/decisions/direct-send.md.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import ApiMetrics
from api.server.answer_headers import security_headers
from api.server.connection import DIRECT_WRITE
from api.server.cors import Cors, CorsHeaders
from api.server.http_errors import dialect_at, error_response, not_served, refusal_in, restarting
from common.canonical.errors import ErrorKind, Failed

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # Machines ask for them every few seconds.


class Front:
    """The outermost layer, and the only one of ours.

    It puts ``request_id`` and ``direct_send`` into the scope's state. ``direct_send`` is the server's own ``send``, for the
    pieces of a body: each wrapper would cost a call per token and client. Once ``is_stopping`` returns true, every answer
    closes its connection. ``cors`` is None where no other site's page is served.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ApiMetrics,
        header_bytes_max: int,
        is_stopping: Callable[[], bool],
        cors: Cors | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._header_bytes_max = header_bytes_max
        self._is_stopping = is_stopping
        self._cors = cors
        self._headers_too_large = Failed(
            ErrorKind.INVALID_REQUEST,
            f"The request's headers are larger than {header_bytes_max} bytes. Send fewer or shorter ones.",
            status=431,
            code="headers_too_large",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        state = scope.setdefault("state", {})
        state["request_id"], state["direct_send"] = request_id, send
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        answer = _Answer(scope, send, request_id, is_last=self._is_stopping)
        started_at = time.monotonic()
        try:
            if refusal := self._refusal(scope):
                self._metrics.record_refusal(refusal)
                await error_response(dialect_at(scope["path"]), refusal, request_id)(scope, receive, answer.send)
            else:
                await self._serve(scope, receive, answer)
        finally:
            # These refer to their request, which refers to this state. With that cycle, only the garbage collector frees the
            # request.
            del state["direct_send"]
            state.pop(DIRECT_WRITE, None)
            self._report(scope, answer.status, time.monotonic() - started_at)

    def _refusal(self, scope: Scope) -> Failed | None:
        """Return why a request is not read at all; None: it is."""
        if refusal := refusal_in(scope):
            return refusal
        size = sum([len(name) + len(value) for name, value in scope["headers"]])
        return self._headers_too_large if size > self._header_bytes_max else None

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Have a request answered. If that breaks, the client gets an error in its dialect, with the usual headers."""
        try:
            checked = await self._cors.check(scope) if self._cors else []
            app: ASGIApp
            if isinstance(checked, Response):
                app = checked
            elif _is_plain(scope["path"]):
                app, answer.cors_headers = self._app, checked
            else:
                app, answer.cors_headers = not_served(scope), checked
            await app(scope, receive, answer.send)
        except Exception:  # The outermost frame of a request: the client gets an error, and the log the traceback.
            log.exception("request_broke")
            if answer.status:
                raise  # The server cuts the connection: a broken answer must never end cleanly.
            await error_response(dialect_at(scope["path"]), _BROKEN, answer.request_id)(scope, receive, answer.send)
        except asyncio.CancelledError:  # Only the server cancels, when its time to stop is over.
            if answer.status:
                raise
            await error_response(dialect_at(scope["path"]), restarting(), answer.request_id)(scope, receive, answer.send)

    def _report(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # The template: the number of paths has no bound.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.duration.labels(method, route).observe(duration_s)
        if scope["path"] not in _QUIET_PATHS:
            log.info("request", method=method, route=route, status=status, duration_ms=round(duration_s * 1000))


class _Answer:
    """The answer to one request on its way to the server. ``status`` is 0 until it begins."""

    __slots__ = ("_is_https", "_is_last", "_send", "cors_headers", "request_id", "status")

    def __init__(self, scope: Scope, send: Send, request_id: str, is_last: Callable[[], bool]) -> None:
        self.status = 0
        self.request_id = request_id
        self.cors_headers: CorsHeaders = []
        self._send = send
        self._is_last = is_last
        self._is_https = scope.get("scheme") == "https"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self.cors_headers]
            request_id = self.request_id.encode()
            message["headers"] = [
                *headers,
                *security_headers(headers, is_https=self._is_https),
                (b"x-request-id", request_id),
                (b"request-id", request_id),
                *(_CLOSE if self._is_last() else ()),
            ]
        await self._send(message)


_BROKEN = Failed(ErrorKind.INTERNAL, "The gateway failed on this request.", code="internal")
_CLOSE = ((b"connection", b"close"),)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _is_plain(path: str) -> bool:
    """Whether a path may exist here. A route would ignore a line break at the end, and its parameters match anything."""
    return path.isascii() and path.isprintable() and "/." not in path


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return value.decode("latin-1")
    return f"req_{secrets.token_hex(16)}"
