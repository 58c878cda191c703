"""An address that Sluice must never call, which counts connections; and an upstream that redirects every request to it."""

import socket
import threading

from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply


class Listener:
    """Accepts connections on loopback, counts them, and closes them."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.address}/secret.png"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class Redirector(AnsweringServer):
    """An upstream that answers each request with a redirect; the status is the last number in the model's name."""

    def __init__(self, target: str) -> None:
        self.requests = 0
        self._target = target
        super().__init__()

    def reply(self, request: ReceivedRequest) -> Reply:
        self.requests += 1
        status = next(status for status in (301, 302, 303, 307, 308) if str(status).encode() in request.body)
        return Reply(status=status, headers={"location": self._target})
