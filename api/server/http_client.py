"""How does the API send its own requests: for the set of token keys, and to a guardrail that is a web service?

Only this file imports httpx, which is slow to load. Code that may need it imports this file when it does.
It connects as workers connect to providers: with the configured proxy, the certificates that OpenSSL trusts (``SSL_CERT_FILE``,
``SSL_CERT_DIR``), names resolved by the process's loop, and no redirects.
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
    return ssl.create_default_context()  # It takes about 20 ms, since it parses the system's certificate files.
