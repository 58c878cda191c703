"""What does translation cost, per token and per request? ``python bench/translation.py``; see README.md.

No server runs. The demo provider's streams go through the pumps of a worker in this process, for each client dialect and each
vendor's wire, and the CPU time is divided by the tokens.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from common.canonical.generation import GenerationRequest
from common.canonical.job import Job, Policy
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.sse import SseCutter, cut
from common.vendors.models import MODELS, ModelTable
from common.vendors.table import WireName
from demo_provider import chat, cohere, gemini, messages, responses
from demo_provider.plan import make_plan
from demo_provider.script import Script
from demo_provider.wire import Wire
from workers.attempt.prepare import prepare_request
from workers.providers import FAMILIES, WIRES
from workers.providers.base import Deployment, UpstreamRequest
from workers.transcode.pump import Pump

ADDED_US_MAX, TABLE_MS_MAX = 15.0, 0.05  # Goals: CPU per token over passthrough, CPU of the table per request.
EVENT_BYTES_MAX = 1 << 20
READS = {"one token per read": 1, "64 tokens per read": 64}
# Which provider speaks a wire, and with which model.
TARGETS: dict[WireName, tuple[str, str, Wire]] = {
    "openai-chat": ("openai", "gpt-4o", chat),
    "openai-responses": ("openai", "gpt-5.6", responses),
    "anthropic-messages": ("anthropic", "claude-sonnet-5", messages),
    "gemini": ("google-ai-studio", "gemini-3.8-flash", gemini),
    "cohere": ("cohere", "command-a-03-2025", cohere),
}
QUESTION = {"role": "user", "content": "What is a sluice?"}
BODIES: dict[str, dict[str, Any]] = {
    "openai-chat": {"messages": [QUESTION]},
    "openai-responses": {"input": [QUESTION]},
    "anthropic-messages": {"messages": [QUESTION], "max_tokens": 100_000},
    "agentary": {"messages": [QUESTION], "provider": "openai"},
    "unified": {"messages": [QUESTION], "provider": "openai"},
}
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "read", "parameters": PARAMETERS}}
AGENT_TURNS = 20
TIMES = 10


def target(wire: WireName) -> Deployment:
    provider, model, _ = TARGETS[wire]
    return Deployment(provider, "https://x.example", "k", model, wire, facts=MODELS.facts(provider, model))


def pump_for(dialect: str, wire: WireName) -> Pump:
    """Return what a worker would run for a client of this dialect."""
    body = {"model": "m", "stream": True, **BODIES[dialect]}
    job = Job("gen_abc", "req_1", dialect, "m", True, Policy.STOP, grace_s=0, created_s=1, body=orjson.dumps(body))
    info = ReplyInfo("gen_abc", "m", 1, TARGETS[wire][0], body, lambda: 0, lambda usage: None)
    return prepare_request(job, WIRES[wire], target(wire), info)[1]


def upstream_reads(wire: WireName, tokens: int, per_read: int) -> list[bytes]:
    """Return the demo provider's stream as a worker reads it: the opening, then some tokens at a time, and the end."""
    _, model, demo = TARGETS[wire]
    question = DIALECTS["openai-chat"].parse({"model": "m", **BODIES["openai-chat"]})
    body = orjson.loads(WIRES[wire].build_request(question, target(wire)).body)
    request = demo.read({"model": model, "stream": True, **body})
    stream = demo.open_stream(request, make_plan(Script(tokens=tokens), request))
    beats = list(stream.beats())
    middle = [b"".join(beats[start : start + per_read]) for start in range(0, len(beats), per_read)]
    return [stream.opening(), *middle, stream.closing()]


def cpu_us(run: Callable[[], object], times: int, repeats: int) -> float:
    """Return the CPU time of one of ``times`` things that ``run`` does, in µs: the best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best * 1e6 / times


def feed(dialect: str, wire: WireName, reads: list[bytes]) -> int:
    """Do with a stream what a worker does, and return how many bytes the client gets."""
    pump, cutter, size = pump_for(dialect, wire), SseCutter(EVENT_BYTES_MAX), 0
    for chunk in reads:
        run = cutter.gather(chunk)
        passed = pump.pass_head(run) if pump.has_output else 0
        size += passed + len(pump.feed(cut(run[passed:]))) if passed < len(run) else passed
    return size + len(pump.end())


def per_token(tokens: int, repeats: int) -> bool:
    """Print the tables of CPU per token; return whether all goals are met."""
    is_met = True
    for title, per_read in READS.items():
        reads = {wire: upstream_reads(wire, tokens, per_read) for wire in TARGETS}
        cost = {
            (dialect, wire): cpu_us(partial(feed, dialect, wire, reads[wire]), tokens, repeats)
            for dialect in DIALECTS
            for wire in TARGETS
        }
        passing: dict[str, float] = {wire: cost[wire, wire] for wire in TARGETS if wire in DIALECTS}
        print(f"\nCPU per token in µs, {title} (=: passes unchanged; !: more than {ADDED_US_MAX:g} over passthrough)")
        print(f"{'':20}" + "".join(f"{wire:>20}" for wire in TARGETS))
        for dialect in DIALECTS:
            base = passing.get(dialect, passing["openai-chat"])
            marks = ["=" if wire == dialect else "!" if cost[dialect, wire] - base > ADDED_US_MAX else " " for wire in TARGETS]
            is_met = is_met and "!" not in marks
            figures = (f"{cost[dialect, wire]:19.2f}{mark}" for wire, mark in zip(TARGETS, marks, strict=True))
            print(f"{dialect:20}" + "".join(figures))
    return is_met


def agent_body() -> dict[str, Any]:
    """Return a request of an agent that has called tools in 20 turns."""
    turns: list[dict[str, Any]] = [QUESTION]
    for number in range(AGENT_TURNS):
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "read", "arguments": '{"path":"a.py"}'}}
        turns += [{"role": "assistant", "content": "Let me see.", "tool_calls": [call]}]
        turns += [{"role": "tool", "tool_call_id": f"call_{number}", "content": "def f(): ...\n" * 20}]
    return {"model": "m", "stream": True, "messages": turns, "tools": [TOOL], "max_completion_tokens": 4_000}


def per_request(repeats: int) -> bool:
    """Print the costs of a request; return whether the table's goal is met."""
    models = [(provider, model) for provider, model, _ in TARGETS.values()]
    body, parse, passing = agent_body(), DIALECTS["openai-chat"].parse, FAMILIES["openai-chat"].pass_request
    runs: dict[str, Callable[[], object]] = {
        "table, models that were used before": lambda: [MODELS.facts(*model) for model in models * TIMES],
        "table, models that are new": lambda: [ModelTable(MODELS.rows).facts(*model) for model in models * TIMES],
        "agent, passed to openai-chat": lambda: [passing(body, {}, target("openai-chat")) for _ in models * TIMES],
    }
    for wire in TARGETS:
        build = WIRES[wire].build_request
        runs[f"agent, translated to {wire}"] = partial(build_all, build, parse, body, target(wire), len(models) * TIMES)
    costs = {name: cpu_us(run, len(models) * TIMES, repeats) / 1000 for name, run in runs.items()}
    print(f"\nCPU per request in ms (goal for the table: {TABLE_MS_MAX:g}; the agent has {AGENT_TURNS} turns)")
    for name, cost in costs.items():
        print(f"{name:45}{cost:8.4f}")
    return max(cost for name, cost in costs.items() if name.startswith("table")) <= TABLE_MS_MAX


def build_all(
    build: Callable[[GenerationRequest, Deployment], UpstreamRequest],
    parse: Callable[[dict[str, Any]], GenerationRequest],
    body: dict[str, Any],
    deployment: Deployment,
    times: int,
) -> None:
    for _ in range(times):
        build(parse(body), deployment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000, help="of each stream (2,000)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement; the best counts (5)")
    args = parser.parse_args()
    results = [per_token(args.tokens, args.repeats), per_request(args.repeats)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
