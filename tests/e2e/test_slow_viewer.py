"""What does a client cost that reads slower than the provider speaks? A real socket that is not read."""

import socket
from pathlib import Path

import psutil
import pytest

from demo_provider.script import answer
from tests.support.fleet import CHAT, RawClient, body_of, fleet, sse_events, until

pytestmark = pytest.mark.timeout(600)

TOKENS = 100_000
MIB = 1024 * 1024
# The stream is 20 MiB. What an API may grow by meanwhile: the viewer's buffer (256 KiB), a read of the log, Python's own.
GROWTH_MAX = 8 * MIB


def test_a_client_that_does_not_read_costs_little_and_catches_up_from_the_log(tmp_path: Path):
    with fleet(tmp_path) as found:
        api = psutil.Process(found.apis[0].pid)
        with RawClient(found.ports[0]) as warm:  # What is loaded once is loaded now.
            warm.post(CHAT, body_of(CHAT, "demo-n2000-d0", stream=True))
            warm.read_until(b"data: [DONE]\n\n")
        with RawClient(found.ports[0]) as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # Else the kernel holds megabytes for it.
            client.post(CHAT, body_of(CHAT, f"demo-n{TOKENS}-d0", stream=True), x_disconnect="detach")
            client.read_until(b'"content":"A')
            before = api.memory_info().rss

            until(lambda: found.stats()["completed"] == 2 and found.running() == 0, "all is said")
            grown = api.memory_info().rss - before
            generation = str(client.received).partition("x-generation-id: ")[2].partition("\\r")[0]
            size = found.redis.memory_usage(f"{{{generation}}}:log", samples=0)

            assert size > 2 * GROWTH_MAX
            assert grown < GROWTH_MAX
            body = read_to(client, b"data: [DONE]\n\n")

        events = sse_events(unchunked(body))
        texts = [event.fields["choices"] for event in events if event.data != "[DONE]"]
        text = "".join(choice["delta"].get("content") or "" for choices in texts for choice in choices)
        assert text == answer(TOKENS)
        assert len({event.id for event in events}) == len(events)


def read_to(client: RawClient, mark: bytes) -> bytes:
    """As ``read_until``, for much."""
    pieces = [client.received]
    while mark not in b"".join(pieces[-2:]):
        pieces.append(client.socket.recv(65536))
        assert pieces[-1], "the connection was closed"
    return b"".join(pieces)


def unchunked(raw: bytes) -> str:
    """Return the body of an HTTP/1.1 answer that came in chunks."""
    at, pieces = raw.index(b"\r\n\r\n") + 4, []
    while at < len(raw):
        end = raw.index(b"\r\n", at)
        length = int(raw[at:end], 16)
        pieces.append(raw[end + 2 : end + 2 + length])
        at = end + 2 + length + 2
    return b"".join(pieces).decode()
