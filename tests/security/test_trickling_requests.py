"""Do requests that never arrive, or arrive without end, leave the process again?

Real sockets against a real process whose time for a request is one second. Nothing is timed: what is checked is that the
server closes the connection by itself, while the client would have gone on.
"""

import socket
import threading
from collections.abc import Iterator

import httpx
import orjson
import pytest

from tests.support.fleet import CHAT, KEY, MESSAGES, PATH_OF, Fleet, RawClient, body_of, fleet, headers_of, until

POST = f"POST {PATH_OF[CHAT]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n".encode()
WAIT_S = 0.1  # Between the bytes of a client that is slow on purpose.


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("hasty"), SLUICE_REQUEST_READ_TIMEOUT_S="1") as found:
        yield found


class Trickle:
    """A connection that sends something every moment until it is cut off; ``received`` is what it was told by then."""

    def __init__(self, port: int, first: bytes, then: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.sendall(first)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(then,), daemon=True)
        self._thread.start()

    def _send(self, then: bytes) -> None:
        while not self._is_over.wait(WAIT_S):
            try:
                self._socket.sendall(then)
            except OSError:
                return

    def until_closed(self) -> bytes:
        """Return what came once the server has closed the connection; fails where it does not within the socket's 20 s."""
        received = b""
        try:
            while piece := self._socket.recv(65536):
                received += piece
        except ConnectionResetError:  # It closed while more was on its way.
            pass
        finally:
            self._is_over.set()
            self._thread.join()
            self._socket.close()
        return received


def refusals(found: Fleet) -> float:
    return found.metrics(found.ports[0]).get('sluice_refusals_total{limit="read_timeout"}', 0.0)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b"\r\n"),
        (b"P", b""),
        (b"POST /v1/chat/completions HT", b""),
        (POST, b"x-padding: 1\r\n"),
        (POST + b"x-padding: ", b"1"),
        (b"GET /", b"x"),
    ],
    ids=["line ends", "a letter and silence", "half a line", "header after header", "one header", "one path"],
)
def test_a_head_that_never_ends_is_cut_off(hasty: Fleet, first: bytes, then: bytes):
    before = refusals(hasty)

    told = Trickle(hasty.ports[0], first, then).until_closed()

    assert told.startswith(b"HTTP/1.1 408 ")
    assert orjson.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert refusals(hasty) == before + 1


@pytest.mark.parametrize(
    ("framing", "then"),
    [(b"content-length: 5000\r\n\r\n{", b" "), (b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n")],
    ids=["declared", "chunked"],
)
def test_a_body_that_trickles_is_cut_off_in_the_dialects_shape(hasty: Fleet, framing: bytes, then: bytes):
    head = POST.replace(PATH_OF[CHAT].encode(), PATH_OF[MESSAGES].encode())

    told = Trickle(hasty.ports[0], head + framing, then).until_closed()

    assert told.startswith(b"HTTP/1.1 408 ")
    assert orjson.loads(told.partition(b"\r\n\r\n")[2])["type"] == "error"


def test_a_request_that_was_refused_early_cannot_go_on_for_ever(hasty: Fleet):
    head = POST.replace(KEY.encode(), b"sk-wrong") + b"content-length: 99999999\r\n\r\n"

    told = Trickle(hasty.ports[0], head, b" " * 1000).until_closed()

    assert told.startswith(b"HTTP/1.1 401 ")


def test_a_second_request_on_a_connection_is_bounded_too(hasty: Fleet):
    first = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"

    told = Trickle(hasty.ports[0], first + POST, b"x-padding: 1\r\n").until_closed()

    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in told


def test_an_answer_outlives_the_bound_of_its_request(hasty: Fleet):
    text = hasty.post(CHAT, body_of(CHAT, "demo-n12-d200", stream=True)).text

    assert text.endswith("data: [DONE]\n\n")


def test_half_a_next_request_does_not_cut_the_answer_before_it(hasty: Fleet):
    raw = orjson.dumps(body_of(CHAT, "demo-n12-d200", stream=True))
    with RawClient(hasty.ports[0]) as client:
        client.send_bytes(POST + f"content-length: {len(raw)}\r\n\r\n".encode() + raw + b"GET /liv")

        assert b"event: error" not in client.read_until(b"data: [DONE]\n\n")

        client.send_bytes(b"ez HTTP/1.1\r\nhost: x\r\n\r\n")
        client.read_until(b"HTTP/1.1 200 ", times=2)


def test_a_body_that_comes_steadily_has_more_time_the_larger_it_is(hasty: Fleet):
    """200 KiB in four pieces, half a second apart: more than the second of a small one."""
    raw = orjson.dumps(body_of(CHAT, "demo-n1-d0", text="x" * 200_000))
    quarter = len(raw) // 4 + 1
    pause = threading.Event()
    with RawClient(hasty.ports[0]) as client:
        client.send_bytes(POST + f"content-length: {len(raw)}\r\n\r\n".encode())
        for start in range(0, len(raw), quarter):
            client.send_bytes(raw[start : start + quarter])
            pause.wait(0.5)

        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"GET /", b"x" * 8192),
        (b"GET / HTTP/1.1\r\nx-long: ", b"x" * 8192),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 1000),
        (POST + b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 8192),
        (POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"x-trailer: y\r\n" * 600),
    ],
    ids=["path", "header", "headers", "chunk extension", "trailers"],
)
def test_what_is_not_body_is_bounded_in_bytes(shared: Fleet, first: bytes, then: bytes):
    told = Trickle(shared.ports[0], first, then).until_closed()

    assert told.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_an_upgrade_is_not_made(shared: Fleet, upgrade: str):
    headers = {**headers_of(), "connection": "Upgrade", "upgrade": upgrade, "sec-websocket-version": "13"}
    with RawClient(shared.ports[0]) as client:
        client.send("GET", "/livez", headers)

        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_idle_connections_do_not_stand_in_the_way(hasty: Fleet):
    idle = [socket.create_connection(("127.0.0.1", hasty.ports[0])) for _ in range(200)]
    try:
        assert httpx.get(f"{hasty.url}/livez").status_code == 200
    finally:
        for each in idle:
            each.close()
    until(lambda: httpx.get(f"{hasty.url}/livez").status_code == 200, "it serves on")
