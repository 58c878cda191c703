"""How are requests sent at a fixed rate, whether or not earlier ones are answered, from clients that give up?

Each request has its own connection, like a new client. The generator shares the processors with the gateway, so it is late
when they are fully used. That must not count against the gateway. So times of arrival are the kernel's (``SO_TIMESTAMPNS``),
not the times when the generator reads; a request begins when its connection does. Plain sockets and epoll, because they cost
less than an event loop's transports.
"""

import errno
import math
import multiprocessing
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from common.process.process import raise_file_limit

ENDS = ("served", "refused", "failed", "gave up", "cut")
REFUSED = (429, 503, 529)
DONE = b"data: [DONE]"
TOKEN = b'"delta":{"content":'
SO_TIMESTAMPNS = 35  # Linux' number; Python has no name for it.
_TIMESPEC = struct.Struct("@qq")
READ_BYTES = 64 * 1024
EVENTS_MAX = 64  # Handled before the next check for requests that are due.


class LoadTarget(NamedTuple):
    host: str
    port: int
    path: str
    key: str
    model: str

    def request(self) -> bytes:
        body = b'{"model":"%s","stream":true,"messages":[{"role":"user","content":"hello"}]}' % self.model.encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {self.key}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(slots=True)
class LoopOutcome:
    """The result of a request. ``status`` is 0 if there was none. Times are in seconds since before its connection was made."""

    began_s: float  # Since the start of the flood.
    status: int = 0
    ttft_s: float | None = None
    ended_s: float = 0.0
    end: str = ""  # One of ENDS.


class LoopClient:
    """One request on one connection."""

    __slots__ = ("began_at", "is_sent", "outcome", "socket", "tail")

    def __init__(self, target: LoadTarget, request: bytes, flood_at: float) -> None:
        self.tail = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.began_at = time.time()
        self.outcome = LoopOutcome(self.began_at - flood_at)
        error_number = self.socket.connect_ex((target.host, target.port))
        self.is_sent = False
        if error_number in (0, errno.EINPROGRESS):
            self.send(request)
        else:
            self.end("cut", time.time())

    def send(self, request: bytes) -> None:
        """Send the request if the connection is established; on the same machine it is at once."""
        try:
            self.socket.send(request)
            self.is_sent = True
        except (BlockingIOError, OSError) as error:
            if error.errno not in (errno.EAGAIN, errno.ENOTCONN, errno.EINPROGRESS):
                self.end("cut", time.time())

    def read(self) -> None:
        # Hot path: runs once per read.
        outcome = self.outcome
        try:
            data, ancillary, _, _ = self.socket.recvmsg(READ_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        at = time.time()
        for _, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                at = seconds + nanoseconds / 1e9
        if not data:
            self.end("cut", at)
            return
        if outcome.status == 0:
            outcome.status = int(data[9:12])
            if outcome.status != 200:
                self.end("refused" if outcome.status in REFUSED else "failed", at)
                return
        data = self.tail + data
        if outcome.ttft_s is None and TOKEN in data:
            outcome.ttft_s = at - self.began_at
        if DONE in data:
            self.end("served", at)
        self.tail = data[-len(TOKEN) :]

    def end(self, end: str, at: float) -> None:
        self.outcome.end, self.outcome.ended_s = end, at - self.began_at
        self.socket.close()


class Phase(NamedTuple):
    per_s: float
    seconds: float


def _send(target: LoadTarget, phases: list[Phase], patience_s: float) -> tuple[list[LoopOutcome], list[float]]:
    """Return the outcome of each request, and how late each was sent, in seconds."""
    request, outcomes, late_s = target.request(), list[LoopOutcome](), list[float]()
    clients: dict[int, LoopClient] = {}  # By file descriptor.
    in_order: deque[LoopClient] = deque()  # In the order in which they give up.
    poll = select.epoll()
    flood_at = phase_at = time.time()

    def start() -> None:
        client = LoopClient(target, request, flood_at)
        outcomes.append(client.outcome)
        if not client.outcome.end:
            number = client.socket.fileno()
            clients[number] = client
            in_order.append(client)
            poll.register(number, select.EPOLLIN if client.is_sent else select.EPOLLIN | select.EPOLLOUT)

    def poll_once(until: float) -> None:
        """Read what arrives until ``until``, and end the requests of clients that give up."""
        for number, _ in poll.poll(max(0.0, until - time.time()), EVENTS_MAX):
            client = clients[number]
            if client.is_sent:
                client.read()
            else:
                client.send(request)
                if client.is_sent:
                    poll.modify(number, select.EPOLLIN)
            if client.outcome.end:
                del clients[number]
        now = time.time()
        while in_order and (in_order[0].outcome.end or now - in_order[0].began_at > patience_s):
            client = in_order.popleft()
            if not client.outcome.end:
                del clients[client.socket.fileno()]
                client.end("gave up", now)

    for phase in phases:
        for number in range(math.ceil(phase.per_s * phase.seconds)):
            due_at = phase_at + number / phase.per_s
            poll_once(0.0)
            while time.time() < due_at:
                poll_once(due_at)
            late_s.append(time.time() - due_at)
            start()
        phase_at += phase.seconds
    while in_order:
        poll_once(in_order[0].began_at + patience_s)
    return outcomes, late_s


def _process(
    target: LoadTarget, phases: list[Phase], patience_s: float, sender: "multiprocessing.connection.Connection"
) -> None:
    raise_file_limit()
    began_s = time.process_time()
    outcomes, late_s = _send(target, phases, patience_s)
    sender.send(Sent(outcomes, time.process_time() - began_s, late_s))


class Sent(NamedTuple):
    """The outcome of each request and, in seconds, the generator's CPU time and how late it sent each request."""

    outcomes: list[LoopOutcome]
    cpu_s: float
    late_s: list[float]


def send(target: LoadTarget, phases: list[Phase], patience_s: float, processes: int = 1) -> Sent:
    """Send the phases, one after the other."""
    context = multiprocessing.get_context("spawn")
    shares = [Phase(phase.per_s / processes, phase.seconds) for phase in phases]
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [context.Process(target=_process, args=(target, shares, patience_s, sender), daemon=True) for _, sender in pipes]
    for process in started:
        process.start()
    parts: list[Sent] = [receiver.recv() for receiver, _ in pipes]
    for process in started:
        process.join()
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    return Sent(outcomes, sum(part.cpu_s for part in parts), [late_s for part in parts for late_s in part.late_s])
