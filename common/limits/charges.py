"""What does a request take of its principal's limits, and what is left of them?

The enqueue script checks all limits and enqueues the job in one step: a limit of N admits N, however many replicas enqueue
at once. The script that removes the job settles what was reserved; see ``common/limits/settling.lua``.
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
from common.canonical.wording import counted, try_again
from common.redis import keyspace

Scope = Literal["key", "tenant", "end_user", "address", "provider"]
RETRY_AFTER_BUSY_S = 1.0  # A slot becomes free when one of the client's own generations ends. Nobody knows when that is.
RETRY_AFTER_UNKNOWN_S = 2  # A worker restores the counters in its next turn, which comes every second.
_DAY_S = 86_400
_SCOPE_NAMES = {"key": "your key", "tenant": "your tenant", "end_user": "this end user", "address": "your address"}


class Window(NamedTuple):
    """An ``amount`` that counts against a limit on requests or tokens. Tokens are settled at the end."""

    scope: Scope
    name: str
    kind: Literal["requests", "tokens"]
    limit: int
    window_s: float
    amount: int


class Slot(NamedTuple):
    """One of ``limit`` concurrent generations."""

    scope: Scope
    name: str
    limit: int


class BudgetAccount(NamedTuple):
    """A key, tenant or provider whose counters a cost is added to, and its budget."""

    scope: Scope
    name: str
    budget: Budget


@dataclass(frozen=True, slots=True)
class Charges:
    """``alternatives`` are the providers of a route, if all of them have budgets. One unspent budget is enough."""

    windows: Sequence[Window] = ()
    slots: Sequence[Slot] = ()
    accounts: Sequence[BudgetAccount] = ()
    alternatives: Sequence[BudgetAccount] = ()


NO_CHARGES = Charges()
_SAFE = re.compile(r"[A-Za-z0-9._@-]{0,64}")


def safe_name(name: str) -> str:
    """Return a name that is safe in a Redis key: the name itself, or its digest."""
    if _SAFE.fullmatch(name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def charges_for_limits(scope: Scope, name: str, limits: Limits, tokens: int) -> tuple[list[Window], list[Slot]]:
    """Return what one request with so many ``tokens`` takes of one principal's limits."""
    windows = []
    if limits.requests:
        windows.append(Window(scope, name, "requests", limits.requests, limits.window_s, 1))
    if limits.tokens and tokens:
        # A request for more tokens than the whole limit is admitted while the window is empty.
        windows.append(Window(scope, name, "tokens", limits.tokens, limits.window_s, min(tokens, limits.tokens)))
    return windows, [Slot(scope, name, limits.concurrent)] if limits.concurrent else []


def periods(now: datetime | None = None) -> tuple[str, str]:
    """Return the names of this day and this month in UTC: ``20261121`` and ``202611``."""
    return _period_names(int(now.timestamp() if now else time.time()) // _DAY_S)


@lru_cache(maxsize=4)
def _period_names(day_number: int) -> tuple[str, str]:
    # Hot path: several times per request. Formatting the date costs more than everything else about a budget.
    day = f"{datetime.fromtimestamp(day_number * _DAY_S, UTC):%Y%m%d}"
    return day, day[:6]


def pack_account(account: BudgetAccount) -> str:
    """Return a budget account as the scripts read it; see ``spends`` in ``common/limits/settling.lua``."""
    limits = f"{_nano(account.budget.day_usd)}/{_nano(account.budget.month_usd)}"
    return f"{account.scope}:{account.name}={limits}"


def enqueue_arguments(charges: Charges) -> list[Any]:
    """Return the charges as arguments of the enqueue script."""
    flat: list[Any] = [" ".join(map(pack_account, charges.accounts)), len(charges.windows)]
    for window in charges.windows:
        flat += (
            keyspace.limit(window.scope, window.name, window.kind),
            int(window.window_s * 1000),
            window.limit,
            window.amount,
            int(window.kind == "tokens"),
        )
    flat.append(len(charges.slots))
    for slot in charges.slots:
        flat += (keyspace.slots(slot.scope, slot.name), slot.limit)
    flat += _list_counters([counter for account in charges.accounts for counter in _counters(account)])
    flat.append(len(charges.alternatives))
    for account in charges.alternatives:
        flat += _list_counters(_counters(account))
    return flat


def _counters(account: BudgetAccount) -> list[tuple[str, int]]:
    limits = zip(periods(), (account.budget.day_usd, account.budget.month_usd), strict=True)
    return [(keyspace.spent(account.scope, account.name, period), _nano(usd)) for period, usd in limits if usd is not None]


def _list_counters(counters: list[tuple[str, int]]) -> list[Any]:
    return [len(counters), *(item for counter in counters for item in counter)]


def _nano(usd: Any) -> int:
    return int(usd * NANO_USD) if usd is not None else 0


class LimitStatus(NamedTuple):
    """What is left of one window after a decision. ``reset_s``: seconds until nothing of it is used any more."""

    window: Window
    remaining: int
    reset_s: float


def read_limit_statuses(charges: Charges, figures: Sequence[int]) -> list[LimitStatus]:
    """Return the windows' states from the script's figures, which alternate: what remains, ms until nothing is used."""
    pairs = zip(figures[::2], figures[1::2], strict=True)
    return [LimitStatus(window, remaining, ms / 1000) for window, (remaining, ms) in zip(charges.windows, pairs, strict=True)]


def limit_headers(statuses: Sequence[LimitStatus]) -> dict[str, str]:
    """Return ``x-ratelimit-*`` for requests and for tokens, each by the limit with the least left.

    Source: https://platform.openai.com/docs/guides/rate-limits (names, and durations such as 1.5s).
    """
    headers = {}
    for kind in ("requests", "tokens"):
        same_kind = [status for status in statuses if status.window.kind == kind]
        if same_kind:
            least = min(same_kind, key=lambda status: status.remaining)
            headers[f"x-ratelimit-limit-{kind}"] = str(least.window.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(least.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{least.reset_s:g}s"
    return headers


class LimitReached(GatewayError):
    """A refusal by a limit, with the ``x-ratelimit-*`` headers."""

    def __init__(self, message: str, code: str, retry_after_s: float, headers: dict[str, str]) -> None:
        super().__init__(ErrorKind.RATE_LIMITED, message, code=code, retry_after_s=retry_after_s)
        self.headers = headers


def limit_error(window: Window, wait_ms: int, statuses: Sequence[LimitStatus]) -> LimitReached:
    wait_s = wait_ms / 1000
    limit = f"{counted(window.limit, window.kind)} per {counted(window.window_s, 'seconds')}"
    message = f"The limit of {limit} of {_SCOPE_NAMES[window.scope]} is reached. {try_again(wait_s)}"
    return LimitReached(message, f"{window.kind}_limit", wait_s, limit_headers(statuses))


def concurrency_error(slot: Slot) -> LimitReached:
    message = (
        f"{_SCOPE_NAMES[slot.scope].capitalize()} already has {counted(slot.limit, 'generations')} at a time, its limit. "
        "Wait until one of them has ended."
    )
    return LimitReached(message, "concurrency_limit", RETRY_AFTER_BUSY_S, {})


def budget_error(charges: Charges, number: int) -> GatewayError:
    """Return the error for a spent budget. ``number`` is the counter's position in the script's arguments, from 1."""
    limits = [(account, (("day", account.budget.day_usd), ("month", account.budget.month_usd))) for account in charges.accounts]
    account, period = [(account, period) for account, budgets in limits for period, usd in budgets if usd is not None][
        number - 1
    ]
    owner = "Your key" if account.scope == "key" else "Your tenant"
    return budget_exceeded(f"{owner}'s budget for this {period} is spent.")


def all_budgets_error(charges: Charges) -> GatewayError:
    names = ", ".join(sorted({account.name for account in charges.alternatives}))
    return budget_exceeded(f"The gateway's budget for {names} is spent. Models of other providers may still be available.")


def spending_unknown_error() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        "The gateway does not know yet how much of your budget is spent: its counters were lost and are being restored "
        f"from the ledger. {try_again(RETRY_AFTER_UNKNOWN_S)}",
        code="budget_unknown",
        retry_after_s=RETRY_AFTER_UNKNOWN_S,
    )


def budget_exceeded(reason: str) -> GatewayError:
    message = f"{reason} Days and months are counted in UTC. Ask the gateway's operator for a higher budget."
    return GatewayError(ErrorKind.BUDGET_EXCEEDED, message, code="budget_exceeded")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an ended generation really used. ``cost_nano_usd`` is the principal's cost; ``shares`` divides it by provider.

    ``is_cached``: its answer is in the cache now.
    """

    tokens: int = 0
    cost_nano_usd: int = 0
    shares: Sequence[tuple[BudgetAccount, int]] = ()
    is_cached: bool = False
