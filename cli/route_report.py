"""What would happen now to a request for a model? Gathered from the settings and, as far as it answers, from Redis.

Each worker counts its own running calls and times. So an order by chance, load or speed is one of those that a worker may
choose, and the report says so.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.auth.authenticator import static_ids
from api.auth.permissions import RequestedModel, refusal_of
from common.access.key_records import KeyRecord, KeyRecords, principal_id
from common.access.principal import ALL, Principal
from common.canonical.errors import GatewayError
from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.config.model_routes import Target, fallbacks_of, named_targets, possible_targets, resolve, route_targets
from common.config.settings import Settings
from common.metering.pricing import calculate_cost
from common.redis import keyspace
from common.redis.client import Client
from common.redis.errors import redis_errors
from workers.providers.base import Deployment
from workers.quota.health import name_of
from workers.quota.provider_budgets import ProviderBudgets
from workers.routing.lineup import Fallbacks
from workers.routing.order import Router
from workers.routing.traffic import Traffic
from workers.upstream.deployments import deployments

ANSWER_S = 5.0  # Of Redis.
_TYPICAL = Usage(input_tokens=3_000, output_tokens=1_000)
_BY_CHANCE = ("weighted", "least_busy", "fastest")  # Each request, or each worker, may have another order.


class UnknownKey(Exception):
    """There is no key with this id."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What Redis knows: ends of rests and of pauses by name, in ms of its clock, and what was spent."""

    now_ms: int
    rests: Mapping[bytes, bytes]
    pauses: Mapping[bytes, bytes]
    budgets: ProviderBudgets

    def left_s(self, ends: Mapping[bytes, bytes], name: str) -> float | None:
        """Return for how many seconds a name is still in a list; None: it is not."""
        until_ms = ends.get(name.encode())
        left_ms = int(until_ms) - self.now_ms if until_ms else 0
        return left_ms / 1000 if left_ms > 0 else None


async def read_shared(redis: Client, settings: Settings) -> Shared:
    """
    Raises:
        StoreUnavailable
    """
    budgets = ProviderBudgets(settings)
    with redis_errors():
        async with asyncio.timeout(ANSWER_S):
            seconds, micros = await redis.time()
            rests = await redis.execute_command("HGETALL", keyspace.UNWELL)
            pauses = await redis.execute_command("HGETALL", keyspace.PAUSED)
            budgets.update(await redis.execute_command(*budgets.command()))
    return Shared(seconds * 1000 + micros // 1000, rests, pauses, budgets)


async def find_principal(key: str | None, redis: Client, settings: Settings) -> Principal | None:
    """Return who sends requests with the key of this id; None: any key without restrictions.

    Raises:
        UnknownKey, StoreUnavailable
    """
    if key is None:
        return None
    if key in static_ids(settings):
        return Principal(key, tenant_access=settings.tenants.get(key, ALL))
    with redis_errors():
        record = await KeyRecords(redis).load(key)
    if not isinstance(record, KeyRecord):
        raise UnknownKey(key)
    tenant_access = settings.tenants.get(record.tenant, ALL)
    return Principal(principal_id(record.id), record.tenant, access=record.access, tenant_access=tenant_access)


def explain(model: str, settings: Settings, principal: Principal | None, shared: Shared | None) -> dict[str, Any]:
    """Return the report, for JSON.

    Raises:
        GatewayError: MODEL_NOT_FOUND, the name leads nowhere.
    """
    usable = resolve(model, settings)
    route, requested = settings.routes.get(model), RequestedModel(model)
    refusals = {one.name: refusal_of(principal, requested, one, settings) if principal else None for one in usable}
    job = Job("explain", "", "openai-chat", model, False, Policy.STOP, 0, 0, body=b"{}", targets=[one.name for one in usable])
    found = deployments(job, settings)
    return {
        "model": model,
        "is_route": route is not None,
        "strategy": route.strategy if route else None,
        "affinity": route.affinity if route else False,
        "hedge_after_ms": route.hedge_after_ms if route else None,
        "order": _order(job, [one for one in found if not refusals[_target_of(one)]], settings, shared),
        "order_varies": route is not None and (route.affinity or route.strategy in _BY_CHANCE),
        "targets": [
            {
                "target": one.name,
                **_rule(one, model, settings),
                "usable": one in usable,
                "refusal": refusals.get(one.name),
                **_facts(one, settings),
                "provider_limits": settings.provider(one.provider).limits.model_dump(exclude_defaults=True),
                "budget_problem": _budget_problem(one, found, shared),
                "keys": [_key(deployment, shared) for deployment in found if _target_of(deployment) == one.name],
            }
            for one in _all_targets(model, settings)
        ],
    }


def _all_targets(model: str, settings: Settings) -> list[Target]:
    """Return the targets of a name, configured or not."""
    if model in settings.aliases:
        return [one for one in named_targets(settings.aliases[model], settings) if one]
    return possible_targets(model, settings)


def _rule(target: Target, model: str, settings: Settings) -> dict[str, Any]:
    """Return what a route says of a target or a fallback; ``when`` None: it is a target."""
    route, fallback = settings.routes.get(model), fallbacks_of(model, settings).get(target.name)
    rule = fallback or (route_targets(route, settings).get(target.name) if route else None)
    fields = rule.model_dump(mode="json", exclude={"model", "when"}) if rule else {}
    return {"when": list(fallback.when) if fallback else None, **fields}


def _facts(target: Target, settings: Settings) -> dict[str, Any]:
    facts = settings.model_table.facts(target.provider, target.model)
    cost = calculate_cost(_TYPICAL, target.provider, target.model, settings.prices)
    return {
        "context_tokens": facts.context_tokens,
        "retires": facts.retires,
        "typical_cost_usd": f"{cost.total_usd.normalize():f}" if cost else None,
    }


def _budget_problem(target: Target, found: list[Deployment], shared: Shared | None) -> str | None:
    """Return why the budget of a target's provider prevents calls; None: it does not, as far as is known."""
    own = next((one for one in found if _target_of(one) == target.name), None)
    error = _budget_error(own, shared) if own and shared else None
    return error.failed.message if error else None


def _budget_error(deployment: Deployment, shared: Shared) -> GatewayError | None:
    try:
        shared.budgets.within_budget([deployment])
    except GatewayError as error:
        return error
    return None


def _key(deployment: Deployment, shared: Shared | None) -> dict[str, Any]:
    name = name_of(deployment)
    return {
        "key": deployment.key_label,
        "unwell_s": shared.left_s(shared.rests, name) if shared else None,
        "paused_s": shared.left_s(shared.pauses, name) if shared else None,
    }


def _order(job: Job, allowed: list[Deployment], settings: Settings, shared: Shared | None) -> list[dict[str, Any]]:
    """Return the calls until one answers, as a worker would make them: those that are unwell come last."""
    lineup = Router(settings, Traffic(time.monotonic)).line_up(job, allowed)
    if not lineup.deployments:
        return []
    groups = Fallbacks(lineup).first_round()
    calls = [(one, reason) for reason, ones in groups.items() for one in ones]
    if shared:
        calls = [call for call in calls if _budget_error(call[0], shared) is None]
        calls.sort(key=lambda call: shared.left_s(shared.rests, name_of(call[0])) is not None)
    return [{"target": _target_of(one), "key": one.key_label, "reason": reason} for one, reason in calls]


def _target_of(deployment: Deployment) -> str:
    return f"{deployment.provider}/{deployment.model}"
