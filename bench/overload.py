"""What does an overloaded gateway do? Workload W8: an open loop of clients that give up, at multiples of the knee.

``make overload``; see README.md. ``--url`` measures another gateway, which must be running.
"""

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.open_loop import ENDS, LoadTarget, Phase, Sent, send
from bench.run import KEY, PATH, Machine, machine
from common.process.process import raise_file_limit

MODEL = "demo-n20-d20"
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)
USUAL = Phase(30, 4)
PROBES = Phase(20, 4)  # After the flood: when is a new client served as usual?
RAMP_FROM, RAMP_BY, RAMP_S = 100.0, 1.2, 5.0
KNEE_SERVED, KNEE_TTFT_S = 0.97, 1.0  # Up to the knee, this share is served, and the first token arrives within this time.
GOALS_FROM = 2.0


@dataclass(frozen=True, slots=True)
class FloodResult:
    """One flood. ``offered`` and ``goodput`` are per second; times are in seconds, None if nothing arrived."""

    offered: float
    goodput: float
    ends: dict[str, int]
    ttft_p50: float | None
    ttft_p99: float | None
    refusal_p50: float | None
    refusal_p99: float | None
    recovery: float
    cpu: dict[str, float]
    generator_late_p99: float | None


def percentile(values: Iterable[float | None], share: float) -> float | None:
    ordered = sorted(value for value in values if value is not None)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else None


def summarize(sent: Sent, per_s: float, flood_s: float, usual_s: float, cpu: dict[str, float]) -> FloodResult:
    flood = [outcome for outcome in sent.outcomes if outcome.began_s < flood_s]
    after = [outcome for outcome in sent.outcomes if outcome.began_s >= flood_s]
    served = [outcome for outcome in flood if outcome.end == "served"]
    refused = [outcome.ended_s for outcome in flood if outcome.end == "refused"]
    late = [outcome for outcome in after if outcome.end != "served" or outcome.ttft_s is None or outcome.ttft_s > usual_s]
    return FloodResult(
        offered=per_s,
        goodput=len(served) / flood_s,
        ends={end: sum(outcome.end == end for outcome in flood) for end in ENDS},
        ttft_p50=percentile((outcome.ttft_s for outcome in flood), 0.5),
        ttft_p99=percentile((outcome.ttft_s for outcome in flood), 0.99),
        refusal_p50=percentile(refused, 0.5),
        refusal_p99=percentile(refused, 0.99),
        recovery=max((outcome.began_s - flood_s for outcome in late), default=0.0),
        cpu=cpu,
        generator_late_p99=percentile(sent.late_s, 0.99),
    )


class Bench:
    def __init__(self, target: LoadTarget, under_test: Machine | None, options: argparse.Namespace) -> None:
        self._target = target
        self._under_test = under_test
        self._options = options
        self._usual_s = 1.0

    def run(self) -> list[FloodResult]:
        send(self._target, [USUAL], self._options.patience)  # Warm-up.
        usual = send(self._target, [USUAL], self._options.patience).outcomes
        p99_s = percentile((outcome.ttft_s for outcome in usual), 0.99)
        if p99_s is None:
            sys.exit(f"Nothing is served at {USUAL.per_s}/s: {usual[0]}")
        self._usual_s = max(0.1, 2 * p99_s)
        print(f"first token at {USUAL.per_s}/s: p99 {p99_s * 1000:.0f} ms; usual means up to {self._usual_s * 1000:.0f} ms")
        knee = self._options.knee or self._knee()
        print(f"knee: {knee:.0f}/s\n{_HEAD}")
        results = []
        for factor in self._options.factors:
            results.append(self._flood(factor * knee))
            print(_line(factor, results[-1]))
        return results

    def _knee(self) -> float:
        """Return the highest rate that is served in time, in requests per second."""
        per_s, knee = RAMP_FROM, 0.0
        while True:
            outcomes = send(self._target, [Phase(per_s, RAMP_S)], self._options.patience).outcomes
            goodput = sum(outcome.end == "served" for outcome in outcomes) / RAMP_S
            ttft_s = percentile((outcome.ttft_s for outcome in outcomes), 0.99) or math.inf
            print(f"  ramp: {per_s:.0f}/s, served {goodput:.0f}/s, first token p99 {ttft_s * 1000:.0f} ms", flush=True)
            if goodput < KNEE_SERVED * per_s or ttft_s > KNEE_TTFT_S:
                return knee or per_s
            per_s, knee = per_s * RAMP_BY, per_s

    def _flood(self, per_s: float) -> FloodResult:
        flood = Phase(per_s, self._options.seconds)
        before = self._under_test.cpu_s() if self._under_test else {}
        sent = send(self._target, [flood, PROBES], self._options.patience, self._options.processes)
        after = self._under_test.cpu_s() if self._under_test else {}
        cpu = {name: after[name] - before[name] for name in before} | {"load": sent.cpu_s}
        return summarize(sent, per_s, flood.seconds, self._usual_s, cpu)


_HEAD = (
    "   x  offered/s  goodput/s  served refused failed gave-up  cut  first token p50/p99 ms  refusal p50/p99 ms"
    "  recovery s  generator late p99 ms  CPU s"
)


def _line(factor: float, result: FloodResult) -> str:
    def ms(*values: float | None) -> str:
        return " / ".join("-" if value is None else f"{value * 1000:.0f}" for value in values)

    ends = "{served:7d} {refused:7d} {failed:6d} {gave up:7d} {cut:4d}".format(**result.ends)
    cpu = " ".join(f"{name} {cpu_s:.1f}" for name, cpu_s in result.cpu.items())
    return (
        f"{factor:4.1f}  {result.offered:9.0f}  {result.goodput:9.0f} {ends}  {ms(result.ttft_p50, result.ttft_p99):>22}"
        f"  {ms(result.refusal_p50, result.refusal_p99):>18}  {result.recovery:10.2f}"
        f"  {ms(result.generator_late_p99):>21}  {cpu}"
    )


def missed_goals(factors: Sequence[float], results: Sequence[FloodResult]) -> list[str]:
    """Return the goals that were not met."""
    best = max(result.goodput for result in results)
    goals: tuple[tuple[str, Callable[[FloodResult], bool]], ...] = (
        ("goodput is at least 90 % of its best", lambda result: result.goodput >= 0.9 * best),
        ("first token p99 is at most 2 s", lambda result: (result.ttft_p99 or math.inf) <= 2),
        ("refusals come within 50 ms at p99", lambda result: (result.refusal_p99 or 0) <= 0.05),
        ("recovery is within 1 s", lambda result: result.recovery <= 1),
    )
    pairs = [(factor, result) for factor, result in zip(factors, results, strict=True) if factor >= GOALS_FROM]
    return [f"{factor:g}x: not met: {goal}" for factor, result in pairs for goal, is_met in goals if not is_met(result)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knee", type=float, help="streams per second at the knee; default: measured with a ramp")
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS), help="multiples of the knee")
    parser.add_argument("--seconds", type=float, default=12, help="duration of each flood")
    parser.add_argument("--patience", type=float, default=5, help="seconds after which a client gives up")
    parser.add_argument("--processes", type=int, default=1, help="generator processes; one sends about 4,000 requests/s")
    parser.add_argument("--url", help="URL of /chat/completions of another gateway, which must be running")
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("needs Linux: it reads the CPU clocks of other processes")
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    with nullcontext() if options.url else machine() as under_test:
        parts = urlsplit(options.url or f"http://127.0.0.1:{under_test.api_port if under_test else 0}{PATH}")
        target = LoadTarget(parts.hostname or "", parts.port or 80, parts.path, options.key, options.model)
        results = Bench(target, under_test, options).run()
    for goal in missed_goals(options.factors, results):
        print(goal)
    sys.exit(1 if any(result.ends["cut"] for result in results) else 0)


if __name__ == "__main__":
    main()
