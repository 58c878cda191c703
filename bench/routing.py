"""What does it cost to order the deployments of a route, per request?

It prints the CPU time of each strategy for a route of ten targets with two keys each, of such a route with five fallbacks, and
of a name that is no route. Goal: at most 150 µs. Exit status 1: one misses it. Takes five seconds.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, get_args

from common.canonical.job import Job, Policy
from common.config.route_rules import Strategy
from common.config.settings import Settings
from common.metering import pricing
from workers.providers.base import Deployment
from workers.quota.health import name_of
from workers.routing.lineup import Fallbacks
from workers.routing.order import Router
from workers.routing.traffic import Traffic

GOAL_US = 150
TARGETS, KEYS, FALLBACKS = 10, 2, 5
PLAIN = "p0/m"  # No route.
ROUNDS = 3_000


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    pricing.load()
    names, spare = [f"p{number}" for number in range(TARGETS)], [f"f{number}" for number in range(FALLBACKS)]
    targets = [{"model": f"{name}/m"} for name in names]
    weighted = [{**target, "weight": 1 + number % 3} for number, target in enumerate(targets)]
    routes: dict[str, Any] = {strategy: {"targets": targets, "strategy": strategy} for strategy in get_args(Strategy)}
    routes |= {strategy: {"targets": weighted, "strategy": strategy} for strategy in ("weighted", "least_busy")}
    routes["affinity"] = {"targets": weighted, "affinity": True}
    others = [{"model": f"{name}/m", "when": ["exhausted", "retired"]} for name in spare]
    routes["fallbacks"] = {"targets": targets, "fallbacks": others, "hedge_after_ms": 500}
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    settings = Settings(
        providers={name: {"base_url": "http://127.0.0.1:9"} for name in [*names, *spare]},
        routes=routes,
        prices={f"{name}/m": price for name in names},
    )
    candidates = _deployments(names)
    traffic = Traffic(time.monotonic)
    for number, deployment in enumerate(candidates):
        traffic.record_ttft(name_of(deployment), 0.1 + number / 100)
    router = Router(settings, traffic)
    costs_us = {model: _cost_us(_line_up(router, model, candidates)) for model in (*routes, PLAIN)}
    costs_us["fallbacks"] = _cost_us(_line_up(router, "fallbacks", candidates + _deployments(spare)))
    for model, cost_us in costs_us.items():
        print(f"{'no route' if model == PLAIN else model:<12} {cost_us:7.1f} us per request{' !' if cost_us > GOAL_US else ''}")
    sys.exit(1 if max(costs_us.values()) > GOAL_US else 0)


def _deployments(names: list[str]) -> list[Deployment]:
    return [Deployment(name, "", "", "m", key_id=f"{name}:{key}") for name in names for key in range(KEYS)]


def _line_up(router: Router, model: str, candidates: list[Deployment]) -> Callable[[], object]:
    """Return what a worker does to know whom it calls first."""
    job = Job("g", "r", "openai-chat", model, True, Policy.STOP, 0, 1, conversation="c")
    return lambda: Fallbacks(router.line_up(job, candidates)).first_round()


def _cost_us(run: Callable[[], object]) -> float:
    """Return the CPU time of one run: the best of five, as other processes only ever make it longer."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(ROUNDS // 5):
            run()
        best = min(best, (time.process_time() - began) / (ROUNDS // 5))
    return best * 1e6


if __name__ == "__main__":
    main()
