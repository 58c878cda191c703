"""Sends requests at a rate, whether or not the ones before are answered, from clients that give up. Each is a connection of
its own, as of a client that has just come. The generator is a process of its own, with one protocol object per request.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import uvloop

from common.process.process import raise_file_limit

TICK_S = 0.004
ENDS = ("served", "refused", "failed", "gave up", "cut")
REFUSED = (429, 503, 529)
DONE = b"data: [DONE]"
TOKEN = b'"delta":{"content":'


class Target(NamedTuple):
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
class Outcome:
    """What came of a request: ``status`` 0 where there was none. Seconds, from before its connection was made."""

    began_s: float  # Since the start of its flood.
    status: int = 0
    ttft_s: float | None = None
    ended_s: float = 0.0
    end: str = ""  # One of ENDS.


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, outcome: Outcome, patience_s: float, on_end: Callable[["Client"], None]) -> None:
        self.outcome = outcome
        self._request = request
        self._on_end = on_end
        self._began_at = time.perf_counter()
        self._tail = b""
        self._transport: asyncio.Transport | None = None
        self._patience = asyncio.get_running_loop().call_later(patience_s, self.end, "gave up")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # It is none of its bases.
        self._transport = transport
        if self.outcome.end:
            transport.abort()
        else:
            transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # Hot path.
        outcome = self.outcome
        if outcome.status == 0:
            outcome.status = int(data[9:12])
            if outcome.status != 200:
                self.end("refused" if outcome.status in REFUSED else "failed")
                return
        data = self._tail + data
        if outcome.ttft_s is None and TOKEN in data:
            outcome.ttft_s = time.perf_counter() - self._began_at
        if DONE in data:
            self.end("served")
        self._tail = data[-len(TOKEN) :]

    def connection_lost(self, _: Exception | None) -> None:
        self.end("cut")

    def end(self, how: str) -> None:
        if self.outcome.end:
            return
        self.outcome.end, self.outcome.ended_s = how, time.perf_counter() - self._began_at
        self._patience.cancel()
        if self._transport:
            self._transport.abort() if how == "gave up" else self._transport.close()
        self._on_end(self)


class Phase(NamedTuple):
    per_s: float
    seconds: float


async def _send(target: Target, phases: list[Phase], patience_s: float) -> tuple[list[Outcome], float]:
    loop, request = asyncio.get_running_loop(), target.request()
    outcomes: list[Outcome] = []
    open_clients: set[Client] = set()
    connecting: set[asyncio.Task[object]] = set()
    began_at = phase_at = time.perf_counter()

    async def connect(client: Client) -> None:
        try:
            await loop.create_connection(lambda: client, target.host, target.port)
        except OSError:
            client.end("cut")

    late_s = [0.0]
    for phase in phases:
        sent = 0
        while (passed_s := time.perf_counter() - phase_at) < phase.seconds:
            late_s.append(passed_s - sent / phase.per_s)
            while sent < passed_s * phase.per_s:
                outcome = Outcome(time.perf_counter() - began_at)
                outcomes.append(outcome)
                client = Client(request, outcome, patience_s, open_clients.discard)
                open_clients.add(client)
                task = asyncio.ensure_future(connect(client))
                connecting.add(task)
                task.add_done_callback(connecting.discard)
                sent += 1
            await asyncio.sleep(TICK_S)
        phase_at += phase.seconds
    await asyncio.sleep(patience_s + 1)  # By then each has ended.
    return outcomes, max(late_s)


def _process(target: Target, phases: list[Phase], patience_s: float, back: "multiprocessing.connection.Connection") -> None:
    raise_file_limit()
    began_s = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes, late_s = runner.run(_send(target, phases, patience_s))
    back.send(Sent(outcomes, time.process_time() - began_s, late_s))


class Sent(NamedTuple):
    """What came of each request, and in seconds: the generator's CPU, and how late it was at worst."""

    outcomes: list[Outcome]
    cpu_s: float
    late_s: float


def send(target: Target, phases: list[Phase], patience_s: float, processes: int = 1) -> Sent:
    """Send phase after phase."""
    context = multiprocessing.get_context("spawn")
    shares = [Phase(phase.per_s / processes, phase.seconds) for phase in phases]
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [context.Process(target=_process, args=(target, shares, patience_s, back), daemon=True) for _, back in pipes]
    for process in started:
        process.start()
    found: list[Sent] = [ours.recv() for ours, _ in pipes]
    for process in started:
        process.join()
    outcomes = [outcome for each in found for outcome in each.outcomes]
    return Sent(outcomes, sum(each.cpu_s for each in found), max(each.late_s for each in found))
