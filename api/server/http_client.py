"""How does the API reach what it asks itself: the set of token keys, a guardrail that is a service?

As workers reach providers: the proxy that is given, the certificates that OpenSSL trusts (``SSL_CERT_FILE``, ``SSL_CERT_DIR``),
names resolved by the process's loop, no redirects.
"""

import functools
import ssl
from typing import Any

import httpx

from common.config.proxies import Proxy


def http_client(proxy: Proxy | None, timeout_s: float, **options: Any) -> httpx.AsyncClient:
    """Return a client for one address. ``options`` are httpx's."""
    headers = {"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else {}
    return httpx.AsyncClient(
        timeout=timeout_s,
        follow_redirects=False,
        trust_env=False,
        verify=_trusted_certificates(),
        proxy=httpx.Proxy(proxy.url, headers=headers) if proxy else None,
        **options,
    )


@functools.cache
def _trusted_certificates() -> ssl.SSLContext:
    return ssl.create_default_context()  # It takes some 20 ms: the files of the system's certificates are parsed.
