"""Is the address free at which a process wants to listen?

The process binds it before anything else starts, so that a problem is reported in one line. It listens there when it is ready.
"""

import errno
import os
import socket

FIRST_PASSED_FD = 3  # Source: sd_listen_fds(3).


class CannotListen(Exception):
    """The message names the address, and the option or setting that chooses another one."""


def bind(host: str, port: int, *, port_option: str, host_option: str = "--host or SLUICE_HOST") -> socket.socket:
    """Return a socket that is bound to an address and does not listen yet. Port 0 means any free port.

    Raises:
        CannotListen: another process uses the address, or this machine does not have it.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Ignore connections that a previous process left behind.
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise CannotListen(_reason(error, host, port, port_option, host_option)) from error
    return sock


def inherited(fd: int | None) -> socket.socket | None:
    """Return the socket that a supervisor passed to this process by its number, or systemd by its rules; None if none did.

    Raises:
        CannotListen: systemd passed something else than one TCP socket.
    """
    if fd is not None:
        return socket.socket(fileno=fd)
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    sock = socket.socket(fileno=FIRST_PASSED_FD)
    if os.environ.get("LISTEN_FDS") != "1" or sock.family == socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise CannotListen("systemd passed something else than one TCP socket: write one ListenStream=ADDRESS:PORT.")
    return sock


def _reason(error: OSError, host: str, port: int, port_option: str, host_option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is used by another process. Choose another port with {port_option}."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this process has. Choose a port above 1023 with {port_option}."
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is not an address of this machine. Choose one with {host_option}: 127.0.0.1, or 0.0.0.0 for all."
    return f"Cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}. Choose another port with {port_option}."


def bound_address(sock: socket.socket) -> tuple[str, int]:
    """Return the host and the port that a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return str(host), int(port)


def local_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens at ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - To connect to.
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
