"""A client on a bare socket, for tests that need the bytes as they arrive."""

import socket
from typing import Any

import orjson

from tests.support.fleet.requests import PATH_OF, headers_of
from tests.support.fleet.waiting import WAIT_S


class RawClient:
    """Reads the bytes as they arrive, and can leave at any moment. ``received`` has all bytes so far."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.received = b""

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
        self.send_bytes("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def send_bytes(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def post(self, dialect: str, body: dict[str, Any], **headers: str) -> None:
        raw = orjson.dumps(body)
        named = headers_of(content_type="application/json", content_length=str(len(raw)), **headers)
        self.send("POST", PATH_OF[dialect], named, raw)

    def read_until(self, mark: bytes, times: int = 1) -> bytes:
        """Return all bytes so far when ``mark`` has come ``times`` times."""
        while self.received.count(mark) < times:
            piece = self.socket.recv(65536)
            assert piece, f"the connection was closed before {mark!r} came, after {self.received[-500:]!r}"
            self.received += piece
        return self.received

    def shut_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        self.socket.close()
