"""What happens to every request, whatever its route?

It gets an id, a log line, metrics, a limit on its headers, and security headers. When the process stops, its connection is
closed. This is pure ASGI, because Starlette's BaseHTTPMiddleware hides disconnects.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Iterable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import ApiMetrics
from api.server.answer_headers import security_headers
from api.server.http_errors import dialect_at, error_response, not_served, refusal_in, restarting
from common.canonical.errors import ErrorKind, Failed

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # Machines ask for them every few seconds.


class RequestObserver:
    """The outermost middleware.

    It puts ``request_id`` and ``direct_send`` into the scope's state. ``direct_send`` is the server's own ``send``, for the
    pieces of a body: each middleware layer would cost a call per token and client. Once ``is_stopping`` returns true, every
    answer closes its connection.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, header_bytes_max: int, is_stopping: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._header_bytes_max = header_bytes_max
        self._is_stopping = is_stopping
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
        headers = scope["headers"]
        request_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state["request_id"], state["direct_send"] = request_id, send
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started_at, status = time.monotonic(), 0

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", ())
                message["headers"] = [
                    *headers,
                    *security_headers(headers, is_https=scope.get("scheme") == "https"),
                    (b"x-request-id", request_id.encode()),
                    (b"request-id", request_id.encode()),
                    *(_CLOSE if self._is_stopping() else ()),
                ]
            await send(message)

        try:
            refusal = refusal_in(scope)
            if refusal is None and sum(len(name) + len(value) for name, value in headers) > self._header_bytes_max:
                refusal = self._headers_too_large
            if refusal:
                self._metrics.record_refusal(refusal)
                await error_response(dialect_at(scope["path"]), refusal, request_id)(scope, receive, send_with_ids)
            else:
                await self._app(scope, receive, send_with_ids)
        finally:
            # It refers to its request, which refers to this state. With that cycle, only the garbage collector frees the
            # request.
            del state["direct_send"]
            self._report(scope, status, time.monotonic() - started_at)

    def _report(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # The template: the number of paths has no bound.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.duration.labels(method, route).observe(duration_s)
        if scope["path"] not in _QUIET_PATHS:
            log.info("request", method=method, route=route, status=status, duration_ms=round(duration_s * 1000))


class ErrorBoundary:
    """The innermost middleware: an unexpected exception becomes an error in the client's dialect, with the usual headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        if scope["type"] == "http" and not _is_plain(scope["path"]):
            await not_served(scope)(scope, receive, send)
            return

        async def send_and_mark(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_mark)
        except Exception:  # The outermost frame of a request: the client gets an error, and the log the traceback.
            log.exception("request_broke")
            if scope["type"] != "http" or has_started:
                raise  # The server cuts the connection: a broken answer must never end cleanly.
            await self._answer(_BROKEN, scope, receive, send)
        except asyncio.CancelledError:  # Only the server cancels, when its time to stop is over.
            if scope["type"] != "http" or has_started:
                raise
            await self._answer(restarting(), scope, receive, send)

    async def _answer(self, failed: Failed, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(dialect_at(scope["path"]), failed, scope["state"]["request_id"])(scope, receive, send)


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
    return f"req_{uuid.uuid4().hex}"
