"""What did each upstream call of a generation take, and what did it cost?

Each attempt is priced by itself, and charged to the provider that made it: two prompts of 120,000 tokens are not one of
240,000, and what one vendor answered is not owed to the next. A worker writes them into the heartbeat's note, the head and
the end of a log; the next claim, the settlement and the ledger's collector read them.

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
    """``model`` is the one that was asked for; ``usage`` None: the prompt was sent, and no more is known."""

    provider: str
    model: str
    usage: Usage | None = None
    cost: Cost | None = None  # None where the price is not known.
    is_estimated: bool = False  # Some of the figures were counted by us, not reported by the upstream.
    has_brought_key: bool = False  # Whose key it is pays.
    service_tier: str = ""  # As it was asked for, while no more is known.
    is_rough: bool = False  # Estimated from the number of events; the log, once it is read, tells more.

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
        """Return what ``to_dict`` gave, of this version or another."""
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
        self.cost = calculate_cost(self.usage, self.provider, self.model, prices) if self.usage else None
        return self


def pack(attempts: Iterable[Attempt]) -> bytes:
    return orjson.dumps([attempt.to_dict() for attempt in attempts])


def unpack(packed: bytes | None) -> list[Attempt]:
    """Return what was packed; nothing where it is none of ours."""
    try:
        return parse_attempts(orjson.loads(packed)) if packed else []
    except orjson.JSONDecodeError:
        return []


def parse_attempts(found: Any) -> list[Attempt]:
    return [Attempt.from_dict(each) for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def attempts_from_record(told: Mapping[str, Any]) -> list[Attempt]:
    """Return the attempts that the data of a head or an end names.

    The version before named none: in a head only the sum of those before it (``spent``), in an end the sum and its cost.
    """
    if "attempts" in told:
        return parse_attempts(told["attempts"])
    usage = told["spent"] if "spent" in told else told.get("usage")
    if not isinstance(usage, dict):
        return []
    found = Attempt.from_dict({**told, "usage": usage, "model": told.get("upstream_model")})
    found.is_estimated = found.is_estimated or "spent" in told
    return [found]


def merge_attempts(from_log: Sequence[Attempt], noted: Sequence[Attempt]) -> list[Attempt]:
    """Return all attempts: the log tells most of those that it has, and the note has those after its last head too."""
    return [*from_log, *noted[len(from_log) :]]


def total_usage(attempts: Sequence[Attempt]) -> Usage | None:
    if len(attempts) == 1:  # Nearly always.
        return attempts[0].usage
    return reduce(add_usage, (attempt.usage for attempt in attempts), None)


def total_cost(attempts: Iterable[Attempt]) -> Cost | None:
    """Return what attempts cost together; None where there is none, or the price of one is not known."""
    costs = [attempt.cost for attempt in attempts]
    known = [cost for cost in costs if cost]
    return reduce(Cost.__add__, known) if known and len(known) == len(costs) else None


def nano_usd(usd: Decimal) -> int:
    """Return US dollars as whole nano-dollars, the nearest, within what counters and columns hold."""
    return round(min(max(usd, Decimal(0)) * NANO_USD, Decimal(NANO_MAX)))
