"""How are connections taken, and who is answered before one is made? On sockets, beside a gate that does as it is told."""

import asyncio
import errno
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from api.overload import accepting
from api.overload.accepting import BURST_MAX, MADE_PER_TURN, Acceptor, parse_complete_request
from common.process.event_loop import Loop

BODY = b'{"model":"demo"}'
POST = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: here\r\nAuthorization: Bearer k\r\ncontent-length: 16\r\n\r\n" + BODY
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Gate:
    def __init__(self, is_refusing: bool = False, lets_in: bool = False) -> None:
        self.is_refusing, self.lets_in = is_refusing, lets_in
        self.asked: list[dict[str, Any]] = []
        self.waited: list[bool] = []

    def refusal(self, scope: dict[str, Any], *, is_last: bool) -> bytes | None:
        assert is_last
        self.asked.append(scope)
        scope["state"]["seen"] = True
        return None if self.lets_in else REFUSAL

    def record_waiting(self, count: int) -> None:
        self.waited.append(count > 0)


class Made(asyncio.Protocol):
    admitted_state: Any = None
    is_early = is_stopping = False

    def __init__(self, all_made: "list[Made]") -> None:
        self.received = b""
        self._all = all_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._all.append(self)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def shutdown(self) -> None:
        self.is_stopping = True


class Listener(socket.socket):
    """Its first connection meets a process without files."""

    has_room = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.has_room:
            self.has_room = True
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@asynccontextmanager
async def taking(gate: Gate, sock: socket.socket) -> AsyncIterator[list[Made]]:
    made: list[Made] = []
    acceptor = Acceptor(sock, lambda: Made(made), gate)  # type: ignore[arg-type,return-value]  # They have what is used.
    yield made
    acceptor.close()
    await acceptor.wait_closed()
    for each in made:
        each.transport.close()


def run(gate: Gate, what: Callable[[tuple[str, int], list[Made]], Awaitable[None]], kind: type[socket.socket] = socket.socket):
    """Run on the loop of our processes: with uvloop a turn is another thing than with asyncio."""

    async def on_loop() -> None:
        async with taking(gate, sock) as made:
            await what(sock.getsockname(), made)

    with kind() as sock, asyncio.Runner(loop_factory=Loop) as runner:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1_000)
        runner.run(on_loop())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)


async def told(address: tuple[str, int], data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    received = await reader.read()
    writer.close()
    return received


def test_who_comes_at_once_is_taken_at_once_and_a_few_are_made_in_a_turn():
    gate, count = Gate(), 5 * MADE_PER_TURN

    async def come(address: tuple[str, int], made: list[Made]) -> None:
        clients = [socket.create_connection(address) for _ in range(count)]  # The kernel takes them meanwhile.
        sizes = [0]
        while len(made) < count:
            await asyncio.sleep(0)
            sizes.append(len(made))
        for client in clients:
            client.close()
        assert max(after - before for before, after in itertools.pairwise(sizes)) <= 2 * MADE_PER_TURN
        assert len(sizes) < count / 2

    run(gate, come)

    assert gate.waited[-1] is False
    assert True in gate.waited  # Which is how long it was so that tells an overload.


def test_who_comes_before_an_overload_is_early_as_far_as_that_is_a_burst():
    async def come(address: tuple[str, int], made: list[Made]) -> None:
        clients = [socket.create_connection(address) for _ in range(BURST_MAX + 40)]
        await until(lambda: len(made) == len(clients))
        assert [each.is_early for each in made].count(True) == BURST_MAX
        for client in clients:
            client.close()

    run(Gate(), come)


def test_in_an_overload_a_refusal_is_told_before_anything_is_made():
    gate = Gate(is_refusing=True)

    async def come(address: tuple[str, int], made: list[Made]) -> None:
        client = socket.create_connection(address)
        client.sendall(POST)  # All of it is there when the connection is taken.
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1_000) == REFUSAL
        assert await asyncio.get_running_loop().sock_recv(client, 1_000) == b""  # An end, and no reset.
        client.close()
        assert made == []

    run(gate, come)

    (scope,) = gate.asked
    assert (scope["method"], scope["path"]) == ("POST", "/v1/chat/completions")
    assert (b"authorization", b"Bearer k") in scope["headers"]


def test_who_is_let_in_is_asked_once_and_nothing_of_its_request_is_lost():
    gate = Gate(is_refusing=True, lets_in=True)

    async def come(address: tuple[str, int], made: list[Made]) -> None:
        client = socket.create_connection(address)
        client.sendall(POST)
        await until(lambda: bool(made and made[0].received))
        client.close()
        assert (made[0].received, made[0].admitted_state, made[0].is_early) == (POST, {"seen": True}, False)

    run(gate, come)

    assert len(gate.asked) == 1


@pytest.mark.parametrize("data", [b"", POST[:30], POST[:-1], POST + POST, b"\x16\x03\x01" + POST])
def test_what_is_not_one_whole_request_is_left_to_who_reads_it(data: bytes):
    gate = Gate(is_refusing=True)

    async def come(address: tuple[str, int], made: list[Made]) -> None:
        client = socket.create_connection(address)
        client.sendall(data)
        await until(lambda: bool(made) and made[0].received == data)
        client.close()
        assert (made[0].admitted_state, made[0].is_early) == (None, False)

    run(gate, come)

    assert gate.asked == []


def test_who_is_taken_when_the_process_stops_is_made_and_soon_told_to_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accepting, "STOPPING_S", 0)

    async def stop(sock: socket.socket) -> None:
        made: list[Made] = []
        acceptor = Acceptor(sock, lambda: Made(made), Gate())  # type: ignore[arg-type,return-value]
        clients = [socket.create_connection(sock.getsockname()) for _ in range(3 * MADE_PER_TURN)]
        await until(lambda: len(made) > 0)
        acceptor.close()
        await acceptor.wait_closed()
        assert len(made) == len(clients)
        await until(lambda: all(each.is_stopping for each in made[-MADE_PER_TURN:]))
        for each in [*made, *clients]:
            (each.transport if isinstance(each, Made) else each).close()

    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as sock, asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(stop(sock))


def test_who_waits_in_the_kernel_when_the_process_stops_is_made_too():
    async def stop(sock: socket.socket) -> None:
        made: list[Made] = []
        acceptor = Acceptor(sock, lambda: Made(made), Gate())  # type: ignore[arg-type,return-value]
        clients = [socket.create_connection(sock.getsockname()) for _ in range(2 * MADE_PER_TURN)]
        for client in clients:
            client.sendall(POST)
        acceptor.close()  # In the same turn: nothing has been accepted yet.
        sock.close()
        await acceptor.wait_closed()
        await until(lambda: [each.received for each in made] == [POST] * len(clients))
        for each in [*made, *clients]:
            (each.transport if isinstance(each, Made) else each).close()

    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as sock, asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(stop(sock))


def test_a_process_without_files_takes_the_others_a_moment_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accepting, "PAUSE_S", 0)

    async def come(address: tuple[str, int], made: list[Made]) -> None:
        client = socket.create_connection(address)
        await until(lambda: bool(made))
        client.close()

    run(Gate(), come, Listener)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (POST, "/v1/chat/completions"),
        (POST.replace(b"/chat/completions", b"/chat%2Fcompletions"), "/v1/chat/completions"),
        (POST.replace(b"/v1", b"http://here:80/v1"), "/v1/chat/completions"),
        (POST.replace(b"host: here", b"host: here\r\nconnection: upgrade\r\nupgrade: h2c"), None),
        (POST.replace(b"content-length: 16", b"transfer-encoding: chunked"), None),
        (b"POST /caf\xc3\xa9 HTTP/1.1\r\ncontent-length: 0\r\n\r\n", None),
        (b"GET /livez HTTP/1.1\r\nhost: here\r\n\r\n", "/livez"),
    ],
)
def test_a_request_is_known_for_what_it_asks(data: bytes, path: str | None):
    scope = parse_complete_request(data)

    assert (scope and scope["path"]) == path
