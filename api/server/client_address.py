"""Which address do limits count a request under?"""

import ipaddress
from functools import lru_cache

from starlette.types import Scope


def client_address(scope: Scope) -> str:
    """Return the client's IPv4 address, or the /64 network of its IPv6 address: one customer usually has a whole /64."""
    return _counted((scope.get("client") or ("", 0))[0])


@lru_cache(maxsize=4096)
def _counted(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"  # A Unix socket.
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)
