"""In which order are the deployments of a route called, for one request?

Each priority is a group of its own. Within a group the route's strategy decides, or the conversation if the route has affinity.
Deployments that are unwell are called last, whatever the strategy: ``workers.quota.health`` sees to that afterwards.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from common.canonical.events import Usage
from common.canonical.job import Job
from common.config.model_routes import fallbacks_of, route_targets
from common.config.route_rules import Route, RouteTarget
from common.config.settings import Settings
from common.metering.pricing import calculate_cost
from workers.providers.base import Deployment
from workers.quota.health import name_of
from workers.routing.lineup import Fallback, Lineup
from workers.routing.traffic import Traffic

_TYPICAL = Usage(input_tokens=3_000, output_tokens=1_000)  # By what such a call costs, prices are compared.
_UNKNOWN_PRICE = math.inf

Shares = Mapping[str, RouteTarget]  # By the target's name, ``provider/model``.


class Router:
    """Orders the deployments of one worker's requests."""

    def __init__(self, settings: Settings, traffic: Traffic, random_unit: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._traffic = traffic
        self._random = random_unit
        self._shares: dict[str, Shares] = {}
        self._prices: dict[tuple[str, str], float] = {}  # Of targets of routes, which are few.

    def line_up(self, job: Job, candidates: list[Deployment]) -> Lineup:
        """Return who may answer a job. Tokens are counted only by the model that is asked for, or by what replaces it."""
        model, settings = job.model, self._settings
        route = settings.routes.get(model)
        if route is None:
            return Lineup(candidates)
        is_generation = job.operation == "generate"
        rules = fallbacks_of(model, settings)
        own = [one for one in candidates if f"{one.provider}/{one.model}" not in rules] if rules else candidates
        fallbacks = []
        for name, rule in rules.items():
            deployments = [one for one in candidates if f"{one.provider}/{one.model}" == name]
            when = rule.when if is_generation else tuple(reason for reason in rule.when if reason == "retired")
            if deployments and when:
                fallbacks.append(Fallback(deployments, when))
        strategy = "affinity" if route.affinity and job.conversation else route.strategy
        hedge_after_s = route.hedge_after_ms / 1000 if route.hedge_after_ms and is_generation else None
        return Lineup(self.order(model, job.conversation, own), fallbacks, model, strategy, hedge_after_s)

    def order(self, model: str, conversation: str, candidates: list[Deployment]) -> list[Deployment]:
        """Return a route's deployments in the order in which they are called. Those of other names stay as they are."""
        route = self._settings.routes.get(model)
        if route is None or len(candidates) < 2:
            return candidates
        shares = self._shares.get(model) or self._shares.setdefault(model, route_targets(route, self._settings))

        def share(deployment: Deployment) -> RouteTarget:
            return shares.get(f"{deployment.provider}/{deployment.model}") or route.targets[0]

        keys = Counter((deployment.provider, deployment.model) for deployment in candidates)
        ordered: list[Deployment] = []
        by_priority = sorted(candidates, key=lambda deployment: share(deployment).priority)
        for _, group in groupby(by_priority, key=lambda deployment: share(deployment).priority):
            members = list(group)
            # A target's weight is divided among its keys.
            weights = [share(one).weight / keys[one.provider, one.model] for one in members]
            ordered += self._order_group(route, conversation, members, weights)
        return ordered

    def _order_group(
        self, route: Route, conversation: str, members: list[Deployment], weights: Sequence[float]
    ) -> list[Deployment]:
        if route.affinity and conversation:
            return _by_key(
                members, [_pull(conversation, name_of(one), weight) for one, weight in zip(members, weights, strict=True)]
            )
        match route.strategy:
            case "weighted":
                return _by_key(members, [-math.log(1 - self._random()) / weight for weight in weights])
            case "least_busy":
                busy = [self._traffic.load(name_of(one)) / weight for one, weight in zip(members, weights, strict=True)]
                return _by_key(members, [(count, self._random()) for count in busy])
            case "fastest":
                return self._fastest(members)
            case "cheapest":
                return _by_key(members, [self._price(deployment) for deployment in members])
            case _:
                return members

    def _fastest(self, members: list[Deployment]) -> list[Deployment]:
        """The faster of two that are drawn comes first: if all workers chose the fastest one, it would not stay so."""
        expected = {id(deployment): self._traffic.expected_s(name_of(deployment)) for deployment in members}
        drawn = _by_key(members, [self._random() for _ in members])[:2]
        first = min(drawn, key=lambda deployment: expected[id(deployment)])
        others = [deployment for deployment in members if deployment is not first]
        return [first, *_by_key(others, [expected[id(deployment)] for deployment in others])]

    def _price(self, deployment: Deployment) -> float:
        target = deployment.provider, deployment.model
        if target not in self._prices:
            cost = calculate_cost(_TYPICAL, *target, self._settings.prices)
            self._prices[target] = float(cost.total_usd) if cost else _UNKNOWN_PRICE
        return self._prices[target]


def _by_key(members: list[Deployment], keys: Sequence[object]) -> list[Deployment]:
    """Return the members sorted by their keys. Equal ones stay in their order."""
    places = sorted(range(len(members)), key=lambda place: keys[place])  # type: ignore[arg-type, return-value]
    return [members[place] for place in places]


def _pull(conversation: str, name: str, weight: float) -> float:
    """Return how far a deployment is from a conversation: weighted rendezvous hashing.

    The nearest one stays the nearest when others come and go. With weights, each gets its share of the conversations.
    Source: https://en.wikipedia.org/wiki/Rendezvous_hashing#Weighted_rendezvous_hash
    """
    digest = hashlib.blake2b(f"{conversation} {name}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest) + 0.5) / 2**64
    return -math.log(share) / weight
