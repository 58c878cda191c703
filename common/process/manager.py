"""How does a process tell the one that manages it (systemd, or ``sluice api --processes``) that it is ready and alive?

Both pass the address of a socket in ``NOTIFY_SOCKET``, and get datagrams there. If they watch the process, they say in
``WATCHDOG_USEC`` how long it may be silent. Without these variables nothing is sent. Source: sd_notify(3).
"""

import asyncio
import contextlib
import os
import socket

BEATS = 3  # Signs of life within the time after which a silent process is taken for frozen.


def report_ready() -> None:
    """Report that the process can work. From now on its event loop also shows that it turns."""
    _notify("READY=1")
    if watchdog_us := os.environ.get("WATCHDOG_USEC"):
        _beat(int(watchdog_us) / 1e6 / BEATS)


def _notify(state: str) -> None:
    """Send one state. If nobody reads it, it is lost: the work of this process does not depend on its manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _beat(interval_s: float) -> None:
    _notify("WATCHDOG=1")
    asyncio.get_running_loop().call_later(interval_s, _beat, interval_s)
