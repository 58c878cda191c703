"""What do a cached answer and a shared call cost, beside what they replace?

``cache`` sends small requests that are not streamed, in turns: each a new one (``miss``), the same one again (``hit``), and one
for which nobody asks for the cache (``off``). ``join`` sends identical streams at once, which share one call, and beside it
lets as many clients read one running generation (``view``): a token of a joined stream should cost what it costs a viewer.
Both are measured with few and with many tokens: the difference is the cost of the stream, the rest that of the request.
"""

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass, field

import httpx
import orjson

from bench.run import KEY, OURS, PATH, Machine, Outcome, send_raw

REQUESTS = 150  # Per turn.
TURNS = 4
AT_ONCE = 8
VIEWERS = 100
LENGTHS = ((20, 150), (300, 10))  # Tokens, and ms between them: both last for three seconds.
LEDGER_S = 0.5  # After this, a worker has written the rows of a turn.
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
        for name in OURS:
            self.cpu_s[name] += after[name] - before[name]  # type: ignore[assignment]  # A Counter of floats.
        self.count += count
        self.failed += failed

    def figures(self) -> str:
        parts = " + ".join(f"{name} {self.cpu_s[name] * 1e6 / max(self.count, 1):.0f}" for name in OURS)
        return f"{self.each_us:6.0f} us = {parts}   errors {self.failed} of {self.count}"


async def measure_cache(under_test: Machine) -> int:
    """Print what a hit and a miss cost. Return the number of failed requests."""
    costs = {name: Cost() for name in ("off", "miss", "hit")}
    hot = secrets.token_hex(8)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        await _send_request(client, hot, "miss")
        for _ in range(TURNS):
            for name, cost in costs.items():
                before = under_test.cpu_s()
                outcomes = await count_answers(client, name, REQUESTS, hot)
                await asyncio.sleep(LEDGER_S)
                cost.add(before, under_test.cpu_s(), REQUESTS, REQUESTS - outcomes[name])
    print(f"\ncache: {TURNS} x {REQUESTS} small requests of each kind, {AT_ONCE} at a time, not streamed")
    for name, cost in costs.items():
        print(f"  {name:<5} CPU per request {cost.figures()}")
    print(f"  a hit costs {costs['hit'].each_us / costs['miss'].each_us:.2f} of a miss (goal: at most 0.33)")
    return sum(cost.failed for cost in costs.values())


async def count_answers(client: httpx.AsyncClient, name: str, count: int, hot: str = "") -> Counter[str]:
    """Send requests of one kind. Return how many were answered in which way."""
    outcomes: Counter[str] = Counter()
    numbers = iter(range(count))

    async def send() -> None:
        for _ in numbers:
            text = hot if name == "hit" else secrets.token_hex(8)
            outcomes[await _send_request(client, text, name)] += 1

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return outcomes


async def _send_request(client: httpx.AsyncClient, text: str, name: str) -> str:
    headers = {"authorization": f"Bearer {KEY}"} | ({} if name == "off" else {"x-sluice-cache": "use"})
    body = {"model": _MODEL, "messages": [{"role": "user", "content": text}]}
    response = await client.post(PATH, json=body, headers=headers)
    return response.headers.get("x-sluice-cache", "off") if response.status_code == 200 else "failed"


async def measure_join(under_test: Machine) -> int:
    """Print what a joined stream and a second viewer cost. Return the number of failed streams."""
    costs = {(name, tokens): Cost() for tokens, _ in LENGTHS for name in ("join", "view")}
    for _ in range(TURNS):
        for tokens, pace_ms in LENGTHS:
            for name, streams in (("join", _joined), ("view", _viewed)):
                before = under_test.cpu_s()
                failed = _failed(await streams(under_test, f"demo-n{tokens}-d{pace_ms}"), tokens)
                await asyncio.sleep(LEDGER_S)
                costs[name, tokens].add(before, under_test.cpu_s(), VIEWERS, failed)
    print(f"\njoin: {TURNS} x {VIEWERS} streams of one call at a time")
    for (name, tokens), cost in costs.items():
        print(f"  {name}, {tokens:3} tokens  CPU per stream {cost.figures()}")
    (few, _), (many, _) = LENGTHS
    token_us = {name: (costs[name, many].each_us - costs[name, few].each_us) / (many - few) for name in ("join", "view")}
    ratio = costs["join", many].each_us / costs["view", many].each_us
    more_us = costs["join", few].each_us - costs["view", few].each_us
    print(f"  a token of a joined stream costs {token_us['join']:.1f} us, of a second viewer {token_us['view']:.1f} us")
    print(f"  with {many} tokens a joined stream costs {ratio:.2f} of a second viewer; its request costs {more_us:.0f} us more")
    return sum(cost.failed for cost in costs.values())


def _body(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": secrets.token_hex(8)}]}


async def _joined(under_test: Machine, model: str) -> list[Outcome]:
    body = orjson.dumps(_body(model))
    sent = [send_raw(under_test.api_port, "POST", PATH, body, "x-sluice-cache: use\r\n") for _ in range(VIEWERS)]
    return await asyncio.gather(*sent)


async def _viewed(under_test: Machine, model: str) -> list[Outcome]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        started = await client.post("/v1/generations", json=_body(model), headers=headers)
    path = f"/v1/generations/{started.json()['id']}"
    return await asyncio.gather(*(send_raw(under_test.api_port, "GET", path) for _ in range(VIEWERS)))


def _failed(outcomes: list[Outcome], tokens: int) -> int:
    return sum(not (outcome.is_complete and outcome.tokens == tokens) for outcome in outcomes)
