"""What do a cached answer and a shared call cost, beside what they replace?

``cache`` sends small requests that are not streamed, in turns: each a new one (``miss``), the same one again (``hit``), and one
for which nobody asks for the cache (``off``). ``join`` sends identical streams at once, which share one call, and beside it
lets as many clients read one running generation (``view``): a token of a joined stream should cost what it costs a viewer.
"""

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass, field

import httpx
import orjson

from bench.run import KEY, PATH, Machine, Outcome, send_raw

REQUESTS = 150  # Per turn.
TURNS = 4
AT_ONCE = 8
VIEWERS = 100
TOKENS, PACE_MS = 300, 10
LEDGER_S = 0.5  # After this, a worker has written the rows of a turn.
_OURS = ("api", "worker", "redis")
_MODEL = "demo-n20-d0"


@dataclass(slots=True)
class Cost:
    """CPU time of our processes for a number of requests, in seconds by process."""

    cpu_s: Counter[str] = field(default_factory=Counter)
    count: int = 0
    failed: int = 0

    @property
    def each_us(self) -> float:
        return self.cpu_s.total() * 1e6 / max(self.count, 1)

    def add(self, before: dict[str, float], after: dict[str, float], count: int, failed: int) -> None:
        for name in _OURS:
            self.cpu_s[name] += after[name] - before[name]  # type: ignore[assignment]  # A Counter of floats.
        self.count += count
        self.failed += failed

    def figures(self) -> str:
        parts = " + ".join(f"{name} {self.cpu_s[name] * 1e6 / max(self.count, 1):.0f}" for name in _OURS)
        return f"{self.each_us:6.0f} us = {parts}   errors {self.failed} of {self.count}"


async def measure_cache(under_test: Machine) -> int:
    """Print what a hit and a miss cost. Return the number of failed requests."""
    costs = {name: Cost() for name in ("off", "miss", "hit")}
    hot = secrets.token_hex(8)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        await _ask(client, hot, "miss")
        for _ in range(TURNS):
            for name, cost in costs.items():
                before = under_test.cpu_s()
                outcomes = await _many(client, name, hot)
                await asyncio.sleep(LEDGER_S)
                cost.add(before, under_test.cpu_s(), REQUESTS, REQUESTS - outcomes[name])
    print(f"\ncache: {TURNS} x {REQUESTS} small requests of each kind, {AT_ONCE} at a time, not streamed")
    for name, cost in costs.items():
        print(f"  {name:<5} CPU per request {cost.figures()}")
    print(f"  a hit costs {costs['hit'].each_us / costs['miss'].each_us:.2f} of a miss (goal: at most 0.33)")
    return sum(cost.failed for cost in costs.values())


async def _many(client: httpx.AsyncClient, name: str, hot: str) -> Counter[str]:
    """Send the requests of a turn. Return how many were answered in which way."""
    outcomes: Counter[str] = Counter()
    numbers = iter(range(REQUESTS))

    async def send() -> None:
        for _ in numbers:
            text = hot if name == "hit" else secrets.token_hex(8)
            outcomes[await _ask(client, text, name)] += 1

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return outcomes


async def _ask(client: httpx.AsyncClient, text: str, name: str) -> str:
    headers = {"authorization": f"Bearer {KEY}"} | ({} if name == "off" else {"x-sluice-cache": "use"})
    body = {"model": _MODEL, "messages": [{"role": "user", "content": text}]}
    response = await client.post(PATH, json=body, headers=headers)
    return response.headers.get("x-sluice-cache", "off") if response.status_code == 200 else "failed"


async def measure_join(under_test: Machine) -> int:
    """Print what a joined stream and a second viewer cost. Return the number of failed streams."""
    costs = {name: Cost() for name in ("join", "view")}
    for _ in range(TURNS):
        for name, cost in costs.items():
            before = under_test.cpu_s()
            failed = await (_joined(under_test) if name == "join" else _viewed(under_test))
            await asyncio.sleep(LEDGER_S)
            cost.add(before, under_test.cpu_s(), VIEWERS, failed)
    print(f"\njoin: {TURNS} x {VIEWERS} streams of one call at a time, {TOKENS} tokens, {PACE_MS} ms apart")
    for name, cost in costs.items():
        print(f"  {name}  CPU per stream {cost.figures()}")
    print(f"  a joined stream costs {costs['join'].each_us / costs['view'].each_us:.2f} of a second viewer")
    return sum(cost.failed for cost in costs.values())


def _body(text: str) -> dict[str, object]:
    return {"model": f"demo-n{TOKENS}-d{PACE_MS}", "stream": True, "messages": [{"role": "user", "content": text}]}


async def _joined(under_test: Machine) -> int:
    body = orjson.dumps(_body(secrets.token_hex(8)))
    sent = [send_raw(under_test.api_port, "POST", PATH, body, "x-sluice-cache: use\r\n") for _ in range(VIEWERS)]
    return _failed(await asyncio.gather(*sent))


async def _viewed(under_test: Machine) -> int:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        started = await client.post("/v1/generations", json=_body(secrets.token_hex(8)), headers=headers)
    path = f"/v1/generations/{started.json()['id']}"
    return _failed(await asyncio.gather(*(send_raw(under_test.api_port, "GET", path) for _ in range(VIEWERS))))


def _failed(outcomes: list[Outcome]) -> int:
    return sum(not (outcome.is_complete and outcome.tokens == TOKENS) for outcome in outcomes)
