"""What do a token and a request cost here and in other gateways, in the same run on one machine? Writes docs/benchmarks.md.

Every peer that is installed takes part; nginx, which only passes bytes on, is the floor. All call the same demo provider. The
rounds are interleaved, each with new processes, and the figures are medians. CPU time is that of all processes of a gateway, so
Redis counts as a part of Sluice.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.run import KEY, LOADS, OURS, PATH, ROOT, Load, Outcome, await_ok, machine, send_raw, stop
from cli.dev.embedded_redis import free_port
from common.process.process import raise_file_limit
from common.version import VERSION

PAGE = ROOT / "docs" / "benchmarks.md"
BURST = Load("burst", "500 streams at once", 500, 100, 20)
STREAMS = (*LOADS, BURST)
REQUESTS, AT_ONCE, ONE_BY_ONE = 400, 16, 100
LOAD_S_MAX = 300  # The slowest peer takes minutes over what takes seconds here.


@dataclass(slots=True)
class Started:
    """A gateway that runs. ``pids``: of its processes, without their children."""

    port: int
    pids: list[int]

    def cpu_s(self) -> float:
        """Return the CPU time that all its processes have used so far."""
        return sum(_cpu_s(pid) for root in self.pids for pid in _tree(root))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # It has ended.
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Peer:
    """``command`` returns how to start it on a port, before a provider's port, with its files in a folder. ``headers``: lines
    that each request to it needs."""

    name: str
    version: str
    command: Callable[[int, int, Path], list[str]]
    ready: str
    headers: str = ""


# The peers


def nginx(program: str) -> Peer:
    def command(port: int, provider_port: int, folder: Path) -> list[str]:
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 2;\n"
            "events { worker_connections 8192; }\n"
            "http { access_log off;\n"
            f"  upstream provider {{ server 127.0.0.1:{provider_port}; keepalive 1024; keepalive_timeout 2s; }}\n"
            f"  server {{ listen 127.0.0.1:{port} backlog=4096;\n"
            "    location / { proxy_pass http://provider; proxy_http_version 1.1; proxy_buffering off;\n"
            "      proxy_set_header Connection ''; } } }\n"
        )
        return [program, "-c", str(folder / "nginx.conf")]

    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return Peer("nginx", told.rpartition("/")[2].split()[0], command, "/stats")


def litellm(program: str) -> Peer:
    def command(port: int, provider_port: int, folder: Path) -> list[str]:
        provider = {"api_base": f"http://127.0.0.1:{provider_port}/v1", "api_key": "none"}
        models = {load.model for load in STREAMS} | {_UNARY_MODEL, _ONE_MODEL}
        entries = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **provider}} for name in sorted(models)]
        config = {
            "model_list": entries,
            "litellm_settings": {"num_retries": 0, "telemetry": False},
            "general_settings": {"master_key": KEY},
        }
        (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML, too.
        return [program, "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(port)]

    return Peer("LiteLLM", _package_version(Path(program).parent / "python", "litellm"), command, "/health/liveliness")


def sglang_router(python: str) -> Peer:
    def command(port: int, provider_port: int, _: Path) -> list[str]:
        options = f"--host 127.0.0.1 --port {port} --backend openai --worker-urls http://127.0.0.1:{provider_port}"
        more = f"--log-level error --prometheus-port {free_port()} --max-concurrent-requests 10000 --disable-health-check"
        return [python, "-m", "sglang_router.launch_router", *options.split(), *more.split()]

    return Peer("sglang-router", _package_version(Path(python), "sglang-router"), command, "/health")


def portkey(folder: str) -> Peer:
    package = Path(folder) / "node_modules" / "@portkey-ai" / "gateway"

    def command(port: int, _: int, __: Path) -> list[str]:
        return ["node", str(package / "build" / "start-server.js"), "--headless", f"--port={port}"]

    headers = "x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{provider_port}/v1\r\n"
    return Peer("Portkey", json.loads((package / "package.json").read_text())["version"], command, "/", headers)


def _package_version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def installed(options: argparse.Namespace) -> list[Peer]:
    found = [nginx(program)] if (program := shutil.which("nginx") or shutil.which("/usr/sbin/nginx")) else []
    if program := options.litellm or shutil.which("litellm"):
        found.append(litellm(program))
    if options.sglang:
        found.append(sglang_router(options.sglang))
    if options.portkey:
        found.append(portkey(options.portkey))
    return found


# Measuring

_UNARY_MODEL, _ONE_MODEL = "demo-n20-d0", "demo-n1-d0"


@dataclass(slots=True)
class Figures:
    """The medians' material: values by column, one per round; and what failed."""

    values: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    sent: int = 0

    def add(self, column: str, value: float) -> None:
        self.values.setdefault(column, []).append(value)

    def median(self, column: str) -> float:
        return statistics.median(self.values[column])


async def measure(gateway: Started, headers: str, figures: Figures) -> None:
    """Run all workloads once against a gateway."""
    for _ in range(20):  # Warm-up: connections, code paths and caches.
        await _stream(gateway.port, "demo-n5-d0", headers)
    first_s = [(await _stream(gateway.port, _ONE_MODEL, headers)).ttft_s or 0.0 for _ in range(ONE_BY_ONE)]
    figures.add("first token, ms", statistics.median(first_s) * 1000)
    for load in STREAMS:
        before = gateway.cpu_s()
        async with asyncio.timeout(LOAD_S_MAX):
            outcomes = await asyncio.gather(*(_stream(gateway.port, load.model, headers) for _ in range(load.streams)))
        figures.add(f"{load.name}, µs per token", (gateway.cpu_s() - before) * 1e6 / (load.streams * load.tokens))
        figures.sent += load.streams
        # Some gateways add an event without text.
        figures.failed += sum(not (outcome.is_complete and outcome.tokens >= load.tokens) for outcome in outcomes)
        if load is BURST:
            slowest_s = sorted(outcome.ttft_s or LOAD_S_MAX for outcome in outcomes)
            figures.add("burst, first token p99, ms", slowest_s[int(0.99 * len(slowest_s))] * 1000)
    before = gateway.cpu_s()
    numbers = iter(range(REQUESTS))
    figures.failed += sum(await asyncio.gather(*(_requests(gateway.port, headers, numbers) for _ in range(AT_ONCE))))
    figures.sent += REQUESTS
    await asyncio.sleep(0.5)  # What is written behind an answer counts too.
    figures.add("a request, ms", (gateway.cpu_s() - before) * 1e3 / REQUESTS)


async def _stream(port: int, model: str, headers: str) -> Outcome:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    return await send_raw(port, "POST", PATH, json.dumps(body).encode(), headers)


async def _requests(port: int, headers: str, numbers: Iterator[int]) -> int:
    """Send requests that are not streamed, on one connection. Return how many failed."""
    body = json.dumps({"model": _UNARY_MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    failed = 0
    for _ in numbers:
        writer.write(head.encode() + body)
        answer = await _read_answer(reader)
        failed += not answer.startswith(b"HTTP/1.1 200")
    writer.close()
    return failed


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in fields:
        return head + await reader.readexactly(int(fields[b"content-length"]))
    while await reader.readline() != b"0\r\n":  # Chunks; a JSON text has no such line.
        pass
    await reader.readline()
    return head


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[tuple[Started, str]]:
    """Start a peer and a provider for it, and yield it with the lines of its headers; stop both, whatever happens."""
    with contextlib.ExitStack() as stack:
        folder, provider_port, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port(), free_port()
        provider = [sys.executable, "-m", "cli.main", "demo-provider", "--port", str(provider_port)]
        commands = {"provider": provider, "peer": peer.command(port, provider_port, folder)}
        pids = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(command, cwd=ROOT if name == "provider" else folder, stdout=log, stderr=log)
            stack.callback(stop, process)
            pids[name] = process.pid
        await_ok(f"http://127.0.0.1:{provider_port}/stats")
        await_ok(f"http://127.0.0.1:{port}{peer.ready}", 90)
        yield Started(port, [pids["peer"]]), peer.headers.format(provider_port=provider_port)


# The page


def page(results: dict[str, Figures], versions: dict[str, str], rounds: int) -> str:
    columns = list(next(iter(results.values())).values)
    told = "one round" if rounds == 1 else f"medians of {rounds} interleaved rounds"
    floor = results.get("nginx")
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench-peers` on {datetime.now(UTC).date()}, {told} on {_machine()}.",
        "The figures of one run can be compared with each other, not with those of another machine. CPU time is that of all",
        "processes of a gateway; for Sluice these are one API, one worker and Redis with its append-only file. In brackets:",
        "how many times nginx's. [bench/README.md](../bench/README.md) says what each workload is. nginx ends a chunk where",
        "its buffer ends, also in the middle of a token: then the client counts one too few, and the stream as failed.",
        "",
        "| | " + " | ".join(f"{name} {versions[name]}" for name in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for column in columns:
        cells = [_cell(figures, column, None if figures is floor else floor) for figures in results.values()]
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    lines.append("| failed | " + " | ".join(f"{one.failed} of {one.sent}" for one in results.values()) + " |")
    return "\n".join(lines) + "\n"


def _cell(figures: Figures, column: str, floor: Figures | None) -> str:
    value = figures.median(column)
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} ({value / floor.median(column):.1f})" if floor and floor.median(column) else text


def _machine() -> str:
    cpu = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{os.cpu_count()} cores ({cpu.strip() or platform.machine()}), Linux {platform.release().partition('-')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Takes about two minutes per gateway and round.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--litellm", metavar="PROGRAM", help="the `litellm` command; default: the one on PATH")
    parser.add_argument("--sglang", metavar="PYTHON", help="a Python in whose environment sglang-router is installed")
    parser.add_argument("--portkey", metavar="FOLDER", help="a folder in which npm has installed @portkey-ai/gateway")
    parser.add_argument("--no-page", action="store_true", help="print the page only")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    peers = installed(options)
    results = {name: Figures() for name in ("Sluice", *(peer.name for peer in peers))}
    versions = {"Sluice": VERSION} | {peer.name: peer.version for peer in peers}
    for number in range(1, options.rounds + 1):
        print(f"round {number} of {options.rounds}: Sluice", flush=True)
        with machine() as ours:
            started = Started(ours.api_port, [ours.pids[name] for name in OURS])
            uvloop.run(measure(started, "", results["Sluice"]))
        for peer in peers:
            print(f"round {number} of {options.rounds}: {peer.name} {peer.version}", flush=True)
            with running(peer) as (gateway, headers):
                uvloop.run(measure(gateway, headers, results[peer.name]))
    text = page(results, versions, options.rounds)
    print(text)
    if not options.no_page:
        PAGE.write_text(text)
        print(f"Written to {PAGE.relative_to(ROOT)}.")
    sys.exit(1 if results["Sluice"].failed else 0)


if __name__ == "__main__":
    main()
