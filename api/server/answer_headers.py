"""Which headers does every response have, and which headers of a response may a page read?

The first ones make browsers treat a response as data and nothing else. The middleware adds them to every response, together
with the ids of the request.
"""

import base64
import hashlib
import re
from collections.abc import Iterable

_CSP = b"content-security-policy"
# A response of the API is data. A browser that displays one must run, load and frame nothing.
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),  # For resources embedded without CORS. fetch() with CORS ignores it.
)
_DATA = (*_ALWAYS, (_CSP, b"default-src 'none'; frame-ancestors 'none'"))
_CACHE_CONTROL = b"cache-control"
_NOT_KEPT = ((_CACHE_CONTROL, b"no-store"),)
_HTTPS = ((b"strict-transport-security", b"max-age=31536000"),)
# What CORS lets a page read, besides the headers that it may always read.
EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "retry-after",
    "x-generation-id",
    "x-sluice-dropped",
    "x-sluice-deprecation",
    "x-sluice-estimated",
    "x-sluice-cache",
    "x-sluice-route",
    "age",
    *(f"x-ratelimit-{value}-{kind}" for value in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)


def security_headers(headers: Iterable[tuple[bytes, bytes]], *, is_https: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers to add to a response that has ``headers``. A page brings its own content security policy.

    What does not say how long it may be kept must not be kept: a cache between us and the client, which does not know our keys
    and tokens, could give one client's answer to another.
    """
    names = {name for name, _ in headers}
    added: tuple[tuple[bytes, bytes], ...] = _ALWAYS if _CSP in names else _DATA
    if _CACHE_CONTROL not in names:
        added += _NOT_KEPT
    return added + _HTTPS if is_https else added


def page_policy(page: bytes) -> str:
    """Return the policy for one of our pages: its own scripts and styles by their hashes, and requests to its own origin."""
    scripts, styles = (" ".join(_hashes(tag, page)) or "'none'" for tag in (b"script", b"style"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(tag: bytes, page: bytes) -> list[str]:
    """Return how a policy names the page's inline elements of a kind: by the hash of the exact bytes between the tags."""
    texts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts]
