"""What does a client get if its request is refused when only the head of the request is known?

The bytes of a complete response in its dialect. Its parts are made once.
"""

import re
import secrets
from collections.abc import Iterable
from itertools import count

from api.server.answer_headers import security_headers
from api.server.http_errors import dialect_at
from common.canonical.errors import ErrorKind, Failed
from common.canonical.wording import try_again
from common.dialects import DIALECTS
from common.dialects.base import Dialect

CODE = "overloaded"
_ID, _SECONDS = b"req_00000000", b"86399"  # Placeholders for what differs between responses.
_WAIT = try_again(int(_SECONDS)).encode()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_REASONS = {503: b"Service Unavailable", 529: b"Overloaded"}


def overloaded(retry_after_s: int) -> Failed:
    message = f"The gateway has more requests than it can serve now. {try_again(retry_after_s)}"
    return Failed(ErrorKind.OVERLOADED, message, code=CODE, retry_after_s=retry_after_s)


class RefusalResponses:
    """``exposed``: the response headers that a browser may let a page read, as in ``Cors``."""

    def __init__(self, exposed: Iterable[str] = ()) -> None:
        self._exposed = ", ".join(exposed).encode()
        self._parts = {dialect.name: _parts(dialect) for dialect in DIALECTS.values()}
        self._prefix, self._numbers = secrets.token_hex(8).encode(), count(1)

    def refusal(
        self, path: str, headers: Iterable[tuple[bytes, bytes]], retry_after_s: int, *, origin: bytes, is_last: bool
    ) -> bytes:
        """Return a complete response.

        Args:
            origin: The origin of a page that may read it; empty for none.
            is_last: Whether the connection is closed after it.
        """
        head, body = self._parts[dialect_at(path).name]
        seconds, request_id = b"%d" % retry_after_s, b""
        for name, value in headers:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                request_id = value
        request_id = request_id or b"req_%s%x" % (self._prefix, next(self._numbers))
        content = body.replace(_ID, request_id).replace(_WAIT, try_again(retry_after_s).encode()).replace(_SECONDS, seconds)
        extra = b"connection: close\r\n" if is_last else b""
        if origin:
            extra += b"vary: Origin\r\naccess-control-allow-origin: %s\r\naccess-control-expose-headers: %s\r\n" % (
                origin,
                self._exposed,
            )
        return b"%sretry-after: %s\r\nx-request-id: %s\r\nrequest-id: %s\r\ncontent-length: %d\r\n%s\r\n%s" % (
            head,
            seconds,
            request_id,
            request_id,
            len(content),
            extra,
            content,
        )


def _parts(dialect: Dialect) -> tuple[bytes, bytes]:
    """Return the part of the head that is the same for all responses, and the body with placeholders."""
    failed = overloaded(int(_SECONDS))
    status = dialect.status(failed)
    headers = [(b"content-type", b"application/json"), *security_headers((), is_https=False)]
    lines = [b"HTTP/1.1 %d %s" % (status, _REASONS[status]), *(b"%s: %s" % header for header in headers), b""]
    return b"\r\n".join(lines), dialect.error_body(failed, _ID.decode())
