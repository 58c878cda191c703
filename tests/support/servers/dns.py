"""A DNS server that knows one set of addresses for every name. A test changes it while it runs."""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator

ANSWER, ONE_HOUR = 0x8180, 3600


class Dns:
    """``addresses`` may be set at any time. ``answered`` counts the answers for each set that was asked for."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.answered: list[list[str]] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    def serve(self) -> None:
        while True:
            query, client = self.socket.recvfrom(512)
            if not query:
                return
            addresses = self.addresses
            self.socket.sendto(answer(query, addresses), client)
            self.answered.append(addresses)


def answer(query: bytes, addresses: list[str]) -> bytes:
    """Return the answer to a query for A records: its header with our counts, its question, and a record per address."""
    question = query[12 : query.index(0, 12) + 5]
    counts = b"".join(number.to_bytes(2, "big") for number in (ANSWER, 1, len(addresses), 0, 0))
    start = b"\xc0\x0c\x00\x01\x00\x01" + ONE_HOUR.to_bytes(4, "big") + b"\x00\x04"  # The question's name; an address follows.
    return query[:2] + counts + question + b"".join(start + ipaddress.IPv4Address(address).packed for address in addresses)


@contextlib.contextmanager
def running(addresses: list[str]) -> Iterator[Dns]:
    server = Dns(addresses)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.socket.sendto(b"", ("127.0.0.1", server.port))
        thread.join()
        server.socket.close()
