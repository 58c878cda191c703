"""Which proxy leads to a URL? Workers use this for providers, the API for key sets and webhooks, and ``sluice doctor`` too.

The variables are the usual ones: ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` (if the former is not set), and ``NO_PROXY``
for hosts that are reached directly (domains with their subdomains, addresses, networks, ``*``). Each may also be written in
small letters. A setting switches proxies off.
"""

import base64
import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment

from common.config.settings import Settings

_SCHEMES = ("http", "https")


class ProxyUnusable(ValueError):
    """A proxy is set that cannot be used. The message says which one and what to do. It contains no password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """``url`` is without user and password. ``authorization`` is the header value with these, empty where there are none."""

    url: str
    host: str  # With the port, for logs and reports.
    authorization: str = field(default="", repr=False)


def proxy_for(url: str, settings: Settings) -> Proxy | None:
    """Return the proxy that leads to a URL. None where the URL is reached directly.

    Raises:
        ProxyUnusable: callers must not connect directly then.
    """
    if not settings.proxy_from_env:
        return None
    set_proxies = getproxies_environment()
    parts = urlsplit(url)
    if any(_names(entry.lower(), parts) for entry in re.split(r"[,\s]+", set_proxies.get("no", ""))):
        return None
    name = parts.scheme if set_proxies.get(parts.scheme) else "all"
    value = set_proxies.get(name)
    return _proxy(value, f"{name.upper()}_PROXY") if value else None


def missing_certificates() -> dict[str, str]:
    """Return the variables for trusted certificates whose paths do not exist. Then no certificate at all is trusted."""
    named = {name: os.environ.get(name, "") for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    return {name: path for name, path in named.items() if path and not any(map(os.path.exists, path.split(os.pathsep)))}


def _names(entry: str, url: SplitResult) -> bool:
    """Whether an entry of NO_PROXY matches a URL: ``*``, a domain with its subdomains, an address or a network."""
    host, netloc = url.hostname or "", url.netloc.rpartition("@")[2].lower()
    if entry in ("*", netloc):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # One of them is a name.
        name = entry.lstrip("*").lstrip(".")
        return bool(name) and any(name_or_port == name or name_or_port.endswith(f".{name}") for name_or_port in (host, netloc))


def _proxy(value: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise ProxyUnusable(f"{variable} is not a proxy's URL. Set it to http://host:port.") from error
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    if parts.scheme not in _SCHEMES or not host:
        raise ProxyUnusable(
            f"{variable} names a proxy of the type {parts.scheme[:20]}, which cannot be used. Set HTTP_PROXY and HTTPS_PROXY "
            "to an HTTP proxy, list directly reachable hosts in NO_PROXY, or set SLUICE_PROXY_FROM_ENV=false."
        )
    authorization = ""
    if parts.username or parts.password:
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(f"{parts.scheme}://{host}:{port}", f"{host}:{port}", authorization)
