"""Does a token or a request cost more than its budget? For a change that made something dearer without anybody noticing.

CPU times differ from machine to machine. So each cost is compared with a reference in the same run: a small server that reads
a line of JSON and writes one back, over TCP, on the same event loop. Its cost per message is the unit of bench/budgets.toml.
The margin is wide: this finds what costs half as much again, not what costs a tenth more. `make bench` shows the latter.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop

from bench.caching import count_answers
from bench.run import LOADS, OURS, ROOT, Load, Machine, machine, run_load
from common.process.process import raise_file_limit

BUDGETS = Path(__file__).parent / "budgets.toml"
ROUNDS = 5
REQUESTS = 150
MESSAGES, AT_ONCE = 4_000, 16
_LINE = json.dumps({"choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}]}).encode() + b"\n"


class Echo(asyncio.Protocol):
    """One connection of the reference: each line of JSON is parsed and written back."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._transport.write(json.dumps(json.loads(line)).encode() + b"\n")


async def serve_echo() -> None:
    """Serve the reference until standard input is closed. Prints its port first."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@dataclass(slots=True)
class Reference:
    """The process that runs ``serve_echo``."""

    pid: int
    port: int

    async def cost_us(self) -> float:
        """Return the CPU time of one message, in microseconds."""
        clock = (~self.pid << 3) | 2
        before = time.clock_gettime(clock)
        await asyncio.gather(*(self._exchange(MESSAGES // AT_ONCE) for _ in range(AT_ONCE)))
        return (time.clock_gettime(clock) - before) * 1e6 / MESSAGES

    async def _exchange(self, count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for _ in range(count):
            writer.write(_LINE)
            await reader.readline()
        writer.close()


def over_budget(costs: dict[str, float], budgets: dict[str, float], margin: float) -> list[str]:
    """Return the names of what costs more than its budget and the margin, or has no budget. Costs and budgets in references."""
    return [name for name, cost in costs.items() if cost > budgets.get(name, 0.0) * margin]


async def measure(under_test: Machine, reference: Reference) -> dict[str, float]:
    """Return what each workload costs, in references: the median of its rounds, each beside the references around it."""
    workloads: dict[str, Callable[[], Awaitable[float]]] = {
        **{load.name: lambda load=load: _token_us(load, under_test) for load in LOADS},  # type: ignore[misc]
        "request": lambda: _request_us(under_test),
    }
    ratios: dict[str, list[float]] = {name: [] for name in workloads}
    for number in range(ROUNDS + 1):
        for name, cost_us in workloads.items():
            before_us = await reference.cost_us()
            each_us = await cost_us()
            reference_us = (before_us + await reference.cost_us()) / 2
            if number:  # The first round warms up: connections, code paths and caches.
                ratios[name].append(each_us / reference_us)
                print(f"  {name:<9} {each_us:7.1f} us, a reference {reference_us:5.1f} us", flush=True)
    return {name: statistics.median(values) for name, values in ratios.items()}


async def _token_us(load: Load, under_test: Machine) -> float:
    figures = await run_load(load, under_test)
    if figures.failed:
        sys.exit(f"{load.name}: {figures.failed} of {load.streams} streams failed, so the figure means nothing.")
    return figures.ours_us


async def _request_us(under_test: Machine) -> float:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        before = under_test.cpu_s()
        outcomes = await count_answers(client, "off", REQUESTS)
        await asyncio.sleep(0.5)  # By then the ledger's rows are written.
        after = under_test.cpu_s()
    if outcomes["failed"]:
        sys.exit(f"request: {outcomes['failed']} of {REQUESTS} failed, so the figure means nothing.")
    return sum(after[name] - before[name] for name in OURS) * 1e6 / REQUESTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Takes a minute. Exit status 1: something is over its budget.")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().echo:
        return uvloop.run(serve_echo())
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    stored = tomllib.loads(BUDGETS.read_text())
    command = [sys.executable, "-m", "bench.check", "--echo"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo, machine() as under_test:
        assert echo.stdin
        assert echo.stdout
        reference = Reference(echo.pid, int(echo.stdout.readline()))
        costs = uvloop.run(measure(under_test, reference))
        echo.stdin.close()
    dear = over_budget(costs, stored["references"], stored["margin"])
    for name, cost in costs.items():
        budget = stored["references"].get(name, 0.0)
        print(f"{name:<9} {cost:6.2f} references, budget {budget:6.2f}  {'OVER' if name in dear else 'ok'}")
    if dear:
        print(f"Over budget by more than {stored['margin'] - 1:.0%}: {', '.join(dear)}. Find out what made it dearer.")
        print(f"If it must cost more, raise its budget in {BUDGETS.relative_to(ROOT)}.")
    sys.exit(1 if dear else 0)


if __name__ == "__main__":
    main()
