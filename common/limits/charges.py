"""What does a request ask of its principal's limits, and where do these stand?

The enqueue script decides on all of it in one step, with the job itself: a limit of N admits N, however many replicas ask
at once. What was reserved is settled by the script that removes the job; see ``common/limits/settling.lua``.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from common.access.principal import Budget, Limits
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.money import NANO_USD
from common.redis import keyspace

Scope = Literal["key", "tenant", "end_user", "address", "provider"]
RETRY_AFTER_BUSY_S = 1.0  # A place is free when one of one's own generations ends, which nobody can foretell.
RETRY_AFTER_UNKNOWN_S = 2  # A worker sums them up at its next turn, each second.
_DAY_S = 86_400
_WORDS = {"key": "your key", "tenant": "your tenant", "end_user": "this end user", "address": "your address"}


class Window(NamedTuple):
    """So much of a limit on requests or tokens; tokens are settled in the end."""

    scope: Scope
    name: str
    kind: Literal["requests", "tokens"]
    limit: int
    window_s: float
    amount: int


class Slot(NamedTuple):
    """A place among so many concurrent generations."""

    scope: Scope
    name: str
    limit: int


class Purse(NamedTuple):
    """Whose counters a cost is added to, and their budget."""

    scope: Scope
    name: str
    budget: Budget


@dataclass(frozen=True, slots=True)
class Charges:
    """``alternatives`` are the providers of a route, if all of them have budgets: one that is not spent is enough."""

    windows: Sequence[Window] = ()
    slots: Sequence[Slot] = ()
    purses: Sequence[Purse] = ()
    alternatives: Sequence[Purse] = ()


NOTHING = Charges()
_SAFE = re.compile(r"[A-Za-z0-9._@-]{0,64}")


def safe_name(name: str) -> str:
    """Return a name that can stand in a key of Redis: as it is, or by its digest."""
    if _SAFE.fullmatch(name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def of_limits(scope: Scope, name: str, limits: Limits, tokens: int) -> tuple[list[Window], list[Slot]]:
    """Return what one request with so many tokens takes of one principal's limits."""
    windows = []
    if limits.requests:
        windows.append(Window(scope, name, "requests", limits.requests, limits.window_s, 1))
    if limits.tokens and tokens:
        # One that asks for more than there is at all is let in while nothing else has been used.
        windows.append(Window(scope, name, "tokens", limits.tokens, limits.window_s, min(tokens, limits.tokens)))
    return windows, [Slot(scope, name, limits.concurrent)] if limits.concurrent else []


def periods(now: datetime | None = None) -> tuple[str, str]:
    """Return the names of this day and this month, of UTC: ``20261121`` and ``202611``."""
    return _periods_of(int(now.timestamp() if now else time.time()) // _DAY_S)


@lru_cache(maxsize=4)
def _periods_of(day_number: int) -> tuple[str, str]:
    # Hot path: several times a request, and to write a date takes longer than all else about a budget.
    day = f"{datetime.fromtimestamp(day_number * _DAY_S, UTC):%Y%m%d}"
    return day, day[:6]


def spends(purse: Purse) -> str:
    """Return a purse as the scripts take it; see ``common/limits/settling.lua``."""
    limits = f"{_nano(purse.budget.day_usd)}/{_nano(purse.budget.month_usd)}"
    return f"{purse.scope}:{purse.name}={limits}"


def arguments(charges: Charges) -> list[Any]:
    """Return the enqueue script's arguments for them."""
    flat: list[Any] = [" ".join(map(spends, charges.purses)), len(charges.windows)]
    for w in charges.windows:
        flat += (keyspace.limit(w.scope, w.name, w.kind), int(w.window_s * 1000), w.limit, w.amount, int(w.kind == "tokens"))
    flat.append(len(charges.slots))
    for slot in charges.slots:
        flat += (keyspace.slots(slot.scope, slot.name), slot.limit)
    flat += _list_counters([counter for purse in charges.purses for counter in _counters(purse)])
    flat.append(len(charges.alternatives))
    for purse in charges.alternatives:
        flat += _list_counters(_counters(purse))
    return flat


def _counters(purse: Purse) -> list[tuple[str, int]]:
    both = zip(periods(), (purse.budget.day_usd, purse.budget.month_usd), strict=True)
    return [(keyspace.spent(purse.scope, purse.name, period), _nano(usd)) for period, usd in both if usd is not None]


def _list_counters(counters: list[tuple[str, int]]) -> list[Any]:
    return [len(counters), *(item for counter in counters for item in counter)]


def _nano(usd: Any) -> int:
    return int(usd * NANO_USD) if usd is not None else 0


class Stand(NamedTuple):
    """Where one window stands after a decision. ``reset_s``: until nothing of it is used any more."""

    window: Window
    remaining: int
    reset_s: float


def stands(charges: Charges, figures: Sequence[int]) -> list[Stand]:
    """Return the windows' stands from the script's figures: what remains and the ms until it is empty, in turn."""
    pairs = zip(figures[::2], figures[1::2], strict=True)
    return [Stand(window, left, ms / 1000) for window, (left, ms) in zip(charges.windows, pairs, strict=True)]


def limit_headers(found: Sequence[Stand]) -> dict[str, str]:
    """Return ``x-ratelimit-*`` for requests and for tokens, each by the limit of which least is left.

    Source: https://platform.openai.com/docs/guides/rate-limits (names, and durations such as 1.5s).
    """
    headers = {}
    for kind in ("requests", "tokens"):
        of_kind = [stand for stand in found if stand.window.kind == kind]
        if of_kind:
            least = min(of_kind, key=lambda stand: stand.remaining)
            headers[f"x-ratelimit-limit-{kind}"] = str(least.window.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(least.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{least.reset_s:g}s"
    return headers


class LimitReached(GatewayError):
    """A refusal by a limit, with the headers that tell where the limits stand."""

    def __init__(self, message: str, code: str, retry_after_s: float, headers: dict[str, str]) -> None:
        super().__init__(ErrorKind.RATE_LIMITED, message, code=code, retry_after_s=retry_after_s)
        self.headers = headers


def limited(window: Window, wait_ms: int, found: Sequence[Stand]) -> LimitReached:
    wait_s = wait_ms / 1000
    message = (
        f"The limit of {window.limit} {window.kind} per {window.window_s:g} seconds of {_WORDS[window.scope]} is reached. "
        f"Try again in {wait_s:.1f} seconds."
    )
    return LimitReached(message, f"{window.kind}_limit", wait_s, limit_headers(found))


def busy(slot: Slot) -> LimitReached:
    message = (
        f"{_WORDS[slot.scope].capitalize()} already has {slot.limit} generations at a time, its limit. "
        "Wait until one of them has ended."
    )
    return LimitReached(message, "concurrency_limit", RETRY_AFTER_BUSY_S, {})


def spent(charges: Charges, number: int) -> GatewayError:
    """Return the refusal for one of the purses' counters, by its place among them, from 1."""
    limits = [(p, (("day", p.budget.day_usd), ("month", p.budget.month_usd))) for p in charges.purses]
    purse, period = [(p, period) for p, both in limits for period, usd in both if usd is not None][number - 1]
    owner = "Your key" if purse.scope == "key" else "Your tenant"
    return budget_spent(f"{owner}'s budget for this {period} is spent.")


def all_spent(charges: Charges) -> GatewayError:
    names = ", ".join(sorted({purse.name for purse in charges.alternatives}))
    return budget_spent(f"The gateway's budget for {names} is spent. Another provider's models may still be had.")


def spent_unknown() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        "The gateway does not know yet what has been spent of your budget: its counters were lost, and are summed up again "
        f"from the ledger. Try again in {RETRY_AFTER_UNKNOWN_S} seconds.",
        code="budget_unknown",
        retry_after_s=RETRY_AFTER_UNKNOWN_S,
    )


def budget_spent(reason: str) -> GatewayError:
    message = f"{reason} Days and months are those of UTC; ask the gateway's operator for more."
    return GatewayError(ErrorKind.BUDGET_EXCEEDED, message, code="budget_exceeded")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an ended generation really took. ``cost_nano_usd`` is the principal's; ``shares`` tells whose providers' it is."""

    tokens: int = 0
    cost_nano_usd: int = 0
    shares: Sequence[tuple[Purse, int]] = ()
