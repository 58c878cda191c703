"""Is the place free at which a process is to listen?

It is taken before anything else begins, so that what is wrong with it is told in one line; the process listens there when it
is ready.
"""

import errno
import os
import socket


class CannotListen(Exception):
    """The message names the place, and the option or setting that chooses another."""


def bind(host: str, port: int, *, port_option: str, host_option: str = "--host or SLUICE_HOST") -> socket.socket:
    """Return a socket that holds an address and does not listen yet. Port 0 is one that is free.

    Raises:
        CannotListen: another process has it, or it is not this machine's to give.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # What a process before left behind is in nobody's way.
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise CannotListen(_reason(error, host, port, port_option, host_option)) from error
    return sock


def _reason(error: OSError, host: str, port: int, port_option: str, host_option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is taken by another process. Choose another with {port_option}."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this process has. Choose one above 1023 with {port_option}."
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is no address of this machine. Choose one with {host_option}: 127.0.0.1, or 0.0.0.0 for all."
    return f"Nothing can listen on {host}, port {port}: {os.strerror(error.errno or 0)}. Choose another with {port_option}."


def bound_address(sock: socket.socket) -> tuple[str, int]:
    """Return the host and the port that a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return str(host), int(port)


def local_url(host: str, port: int) -> str:
    """Return the address at which this machine reaches who listens at a host."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - To connect to.
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
