"""What may the headers of an upstream's answer do to a client? Those that are passed on are as harmless as any of ours."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_provider.script import answer
from tests.support.fleet import CHAT, body_of, fleet

CHUNK = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":%b,"finish_reason":"stop"}]}'
)
BODY = CHUNK % b'{"role":"assistant","content":"Hello"}'
ODD = [b"\x01", b"\x7f", b"\xff\xfe", b"\xc3\xa9", b"a\tb", b"", b"x" * 7000, b"\xe2\x80\xa8"]


class RawUpstream:
    """Answers every connection's request with one header of its own choice, byte for byte."""

    def __init__(self) -> None:
        self.value = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                received = b""
                while not received.endswith(b"}"):
                    received += connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncf-aig-odd: " + self.value
                connection.sendall(head + b"\r\nx-other: " + self.value + b"\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)

    def __enter__(self) -> "RawUpstream":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream() as found:
        yield found


def test_an_odd_header_of_an_upstream_harms_no_answer(upstream: RawUpstream, tmp_path: Path):
    with fleet(tmp_path, OPENAI_BASE_URL=f"{upstream.url}/v1") as found:
        for value in (*ODD, b"HIT"):
            upstream.value = value

            response = found.post(CHAT, body_of(CHAT, "openai/m"))

            # An HTTP reader may refuse what no header may hold; then it is the provider's failure, and said to be.
            assert response.status_code in (200, 502), (value, response.text)
            assert "x-other" not in response.headers
            assert response.headers.get("cf-aig-odd") in (None, "", "HIT")
            assert (response.headers.get("cf-aig-odd") == "HIT") == (value == b"HIT")
        assert found.post(CHAT, body_of(CHAT, "demo-n2-d0")).json()["choices"][0]["message"]["content"] == answer(2)
        assert not found.apis[0].events("request_broke")
