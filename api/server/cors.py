"""For which origins of other sites may a browser let a page read our responses?

For the origins in the settings, and for those that a key or a tenant lists. A preflight request does not carry the key. So an
origin that any key allows may send requests. The request itself is refused if its own key does not allow the page's origin
(``Authenticator``), and the page can read that refusal.
Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from collections.abc import Awaitable, Callable, Iterable

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from api.server.http_errors import dialect_at, error_response
from common.canonical.errors import ErrorKind, Failed

METHODS = "GET, HEAD, POST, DELETE"
PREFLIGHT_MAX_AGE_S = 600  # Chromium keeps an answer for two hours at most, and a list of origins may change.
CorsHeaders = list[tuple[bytes, bytes]]


class Cors:
    """``listed`` returns origins that are always allowed, ``*`` for all; ``key_origins`` those that keys allow now.

    ``on_allowed`` is called with each origin that was allowed.
    """

    def __init__(
        self,
        listed: Callable[[], Iterable[str]],
        key_origins: Callable[[], Awaitable[frozenset[str]]],
        exposed: Iterable[str],
        on_allowed: Callable[[bytes], object] = lambda origin: None,
    ) -> None:
        self._listed = listed
        self._key_origins = key_origins
        self._exposed = ", ".join(exposed).encode()
        self._on_allowed = on_allowed

    async def check(self, scope: Scope) -> CorsHeaders | Response:
        """Return the headers that the answer to a request gets; for a preflight request, return the answer itself."""
        origin = _header(scope, b"origin")
        if origin is None:
            return []
        is_allowed = await self._allows(origin)
        if is_allowed:
            self._on_allowed(origin)
        if scope["method"] == "OPTIONS" and (method := _header(scope, b"access-control-request-method")) is not None:
            return self._preflight_answer(scope, origin, method, is_allowed=is_allowed)
        headers: CorsHeaders = [(b"vary", b"Origin")]
        if is_allowed:
            headers += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", self._exposed)]
        return headers

    async def _allows(self, origin: bytes) -> bool:
        text = origin.decode("latin-1")
        if any(listed in ("*", text) for listed in self._listed()):
            return True
        key_origins = await self._key_origins()
        return text in key_origins or "*" in key_origins

    def _preflight_answer(self, scope: Scope, origin: bytes, method: bytes, *, is_allowed: bool) -> Response:
        headers: dict[str, str] = {"vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}
        if is_allowed:
            headers |= {
                "access-control-allow-origin": origin.decode("latin-1"),
                "access-control-allow-methods": METHODS,
                "access-control-max-age": str(PREFLIGHT_MAX_AGE_S),
            }
            if requested := _header(scope, b"access-control-request-headers"):
                # All that are requested: SDKs add new headers with each version.
                headers["access-control-allow-headers"] = requested.decode("latin-1")
        if not is_allowed or method.decode("latin-1") not in METHODS.split(", "):
            return error_response(dialect_at(scope["path"]), _NOT_ALLOWED, scope["state"]["request_id"], headers)
        return PlainTextResponse("OK", headers=headers)


_NOT_ALLOWED = Failed(
    ErrorKind.INVALID_REQUEST,
    "A page of this origin may not call the gateway, or not with this method. Ask the gateway's operator to allow the origin.",
    code="origin_not_allowed",
)


def _header(scope: Scope, name: bytes) -> bytes | None:
    for header_name, value in scope["headers"]:
        if header_name == name:
            return bytes(value)
    return None
