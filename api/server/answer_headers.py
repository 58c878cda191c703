"""Which headers does every answer have, and which of an answer's headers may a page read?

The first are for browsers, so that they make nothing of an answer but what it is; the middleware adds them, and the ids of the
request, to every response.
"""

import base64
import hashlib
import re
from collections.abc import Iterable

_CSP = b"content-security-policy"
# An answer of the API is data: a browser that is shown one runs, loads and frames nothing.
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),  # For what is embedded without CORS; fetch() with CORS ignores it.
)
_DATA = (*_ALWAYS, (_CSP, b"default-src 'none'; frame-ancestors 'none'"))
_HTTPS = ((b"strict-transport-security", b"max-age=31536000"),)
# What CORS lets a page read beside what it always may.
EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "retry-after",
    "x-generation-id",
    "x-sluice-dropped",
    "x-sluice-estimated",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)


def security_headers(headers: Iterable[tuple[bytes, bytes]], *, is_https: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers to add to an answer that has these; a page brings its own policy."""
    found = _ALWAYS if any(name == _CSP for name, _ in headers) else _DATA
    return found + _HTTPS if is_https else found


def page_policy(page: bytes) -> str:
    """Return the policy of a page of ours: its own scripts and styles, by their hashes, and requests to where it came from."""
    scripts, styles = (" ".join(_hashes(tag, page)) or "'none'" for tag in (b"script", b"style"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(tag: bytes, page: bytes) -> list[str]:
    """The browser's names for the page's inline elements of a kind: the text between the tags, to the byte."""
    texts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts]
