"""How does the API reach what it asks itself: the set of token keys, a guardrail that is a service?

The one place of httpx, which takes long to load: whoever may need it imports this file when it does.
As workers reach providers: the proxy that is given, the certificates that OpenSSL trusts (``SSL_CERT_FILE``, ``SSL_CERT_DIR``),
names resolved by the process's loop, no redirects.
"""

import functools
import ssl

import httpx

from common.config.proxies import Proxy

HttpClient = httpx.AsyncClient
HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL)


def http_client(proxy: Proxy | None, timeout_s: float, connections_max: int = 1) -> HttpClient:
    """Return a client for one address."""
    headers = {"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else {}
    return HttpClient(
        timeout=timeout_s,
        follow_redirects=False,
        trust_env=False,
        verify=_trusted_certificates(),
        proxy=httpx.Proxy(proxy.url, headers=headers) if proxy else None,
        limits=httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_max),
    )


@functools.cache
def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context()  # It takes some 20 ms: the files of the system's certificates are parsed.
