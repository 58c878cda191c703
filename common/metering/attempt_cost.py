"""How many tokens did each upstream call of a generation use, and what did it cost?

Each attempt is priced separately and charged to its own provider: two prompts of 120,000 tokens are not one of 240,000, and
one vendor's answer must not be billed to another. A worker writes the attempts into the heartbeat's note, the head and
the end of a log. The next claim, the settlement and the ledger's collector read them.

An attempt counts from the moment its request is sent, however it ends, unless the upstream refused it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

import orjson

from common.canonical.events import Usage, add_usage
from common.canonical.money import NANO_USD
from common.metering.pricing import Cost, Price, calculate_cost

NANO_MAX = 10**15  # A million dollars for one attempt: more than ``FIGURE_MAX`` tokens of any model cost.


@dataclass(slots=True)
class Attempt:
    """``model`` is the requested model. ``usage`` is None if nothing is known except that the prompt was sent."""

    provider: str
    model: str
    usage: Usage | None = None
    cost: Cost | None = None  # None if the price is not known.
    is_estimated: bool = False  # We estimated some of the counts; the upstream did not report them.
    has_brought_key: bool = False  # Bring-your-own-key: the client pays the provider.
    service_tier: str = ""  # The requested tier, until the usage names the actual one.
    is_rough: bool = False  # Estimated from the number of events; reading the log gives a better estimate.

    def to_dict(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "provider": self.provider,
            "model": self.model,
            "answered_by": usage.model if usage else "",
            "service_tier": usage.service_tier if usage else self.service_tier,
            "usage": usage.to_dict() if usage else None,
            "cost": self.cost.to_dict() if self.cost else None,
            "estimated": self.is_estimated,
            "brought_key": self.has_brought_key,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Attempt":
        """Read what ``to_dict`` of this or another version wrote."""
        tier, counts = str(fields.get("service_tier") or ""), fields.get("usage")
        usage = Usage.from_dict(counts) if isinstance(counts, dict) else None
        if usage:
            usage.model, usage.service_tier = str(fields.get("answered_by") or ""), tier
        return cls(
            str(fields.get("provider") or ""),
            str(fields.get("model") or ""),
            usage,
            Cost.from_dict(fields.get("cost")),
            bool(fields.get("estimated")),
            bool(fields.get("brought_key")),
            tier,
        )

    def apply_prices(self, prices: Mapping[str, Price]) -> "Attempt":
        """Set the cost from the price list and ``prices``, and return this attempt."""
        self.cost = calculate_cost(self.usage, self.provider, self.model, prices) if self.usage else None
        return self


def pack(attempts: Iterable[Attempt]) -> bytes:
    return orjson.dumps([attempt.to_dict() for attempt in attempts])


def unpack(packed: bytes | None) -> list[Attempt]:
    """Return the packed attempts; an empty list for anything that ``pack`` did not write."""
    try:
        return parse_attempts(orjson.loads(packed)) if packed else []
    except orjson.JSONDecodeError:
        return []


def parse_attempts(items: Any) -> list[Attempt]:
    return [Attempt.from_dict(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def attempts_from_record(fields: Mapping[str, Any]) -> list[Attempt]:
    """Return the attempts in the data of a head or an end.

    The previous version wrote no list: a head had only the sum of the attempts before it (``spent``), an end the sum and its
    cost.
    """
    if "attempts" in fields:
        return parse_attempts(fields["attempts"])
    usage = fields["spent"] if "spent" in fields else fields.get("usage")
    if not isinstance(usage, dict):
        return []
    attempt = Attempt.from_dict({**fields, "usage": usage, "model": fields.get("upstream_model")})
    attempt.is_estimated = attempt.is_estimated or "spent" in fields
    return [attempt]


def merge_attempts(from_log: Sequence[Attempt], from_note: Sequence[Attempt]) -> list[Attempt]:
    """Return all attempts. The log has the better data; the heartbeat's note also has attempts after the log's last head."""
    return [*from_log, *from_note[len(from_log) :]]


def total_usage(attempts: Sequence[Attempt]) -> Usage | None:
    if len(attempts) == 1:  # Nearly always the case.
        return attempts[0].usage
    return reduce(add_usage, (attempt.usage for attempt in attempts), None)


def total_cost(attempts: Iterable[Attempt]) -> Cost | None:
    """Return the total cost; None if there are no attempts, or if the cost of one is not known."""
    costs = [attempt.cost for attempt in attempts]
    known_costs = [cost for cost in costs if cost]
    return reduce(Cost.__add__, known_costs) if known_costs and len(known_costs) == len(costs) else None


def nano_usd(usd: Decimal) -> int:
    """Return US dollars in whole nano-dollars, rounded, and limited to what counters and columns can hold."""
    return round(min(max(usd, Decimal(0)) * NANO_USD, Decimal(NANO_MAX)))
