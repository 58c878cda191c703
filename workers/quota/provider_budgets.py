"""Which providers' budgets are spent?

The counters are written when generations are settled (``common/limits/settling.lua``), and read with the regular Redis poll.
Half a second after a budget is spent, routes use their other providers. Running generations continue.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.money import NANO_USD
from common.config.groups.models import ModelSettings
from common.limits.charges import periods, spending_unknown_error
from common.redis import keyspace
from workers.providers.base import Deployment


class ProviderBudgets:
    def __init__(self, settings: ModelSettings) -> None:
        self._limits = {
            provider: [usd if usd is None else usd * NANO_USD for usd in (row.budget.day_usd, row.budget.month_usd)]
            for provider, row in settings.providers.items()
        }
        self._limits = {provider: limits for provider, limits in self._limits.items() if limits != [None, None]}
        self._counter_keys: list[str] = []
        self.spent_nano_usd: dict[str, int] = {}
        self.is_known = False

    def follow(self, before: "ProviderBudgets") -> None:
        """Start with what those before knew. The next poll, half a second later, brings the rest."""
        self.spent_nano_usd, self.is_known = dict(before.spent_nano_usd), before.is_known

    def command(self) -> tuple[str, ...]:
        """Return the command that reads the counters of this day and month, and whether they hold what the ledger knows.

        ``update`` gets its answer.
        """
        self._counter_keys = [keyspace.spent("provider", provider, period) for provider in self._limits for period in periods()]
        return ("MGET", keyspace.SPENT_LOADED, *self._counter_keys)

    def update(self, values: Sequence[bytes | None]) -> None:
        loaded, *spent = values
        self.is_known = loaded == b"loaded"
        self.spent_nano_usd = {name: int(value or 0) for name, value in zip(self._counter_keys, spent, strict=True)}

    def within_budget(self, candidates: list[Deployment]) -> list[Deployment]:
        """Return the deployments whose provider's budget is not spent, and those that the client pays for.

        Raises:
            GatewayError: BUDGET_EXCEEDED, there is none; OVERLOADED, the spent amounts are not known.
        """
        if not self._limits:
            return candidates
        if not self.is_known:
            if payable := [
                deployment for deployment in candidates if deployment.client_pays or deployment.provider not in self._limits
            ]:
                return payable
            raise spending_unknown_error()
        spent = {provider: self._spent_period(provider) for provider in {deployment.provider for deployment in candidates}}
        if payable := [deployment for deployment in candidates if deployment.client_pays or spent[deployment.provider] is None]:
            return payable
        # The client should wait for the budget that starts again first.
        provider, period = min(spent.items(), key=lambda item: item[1] == "month")
        message = (
            f"The gateway's budget for {provider} is spent for this {period}. It starts again at {_next_period_start(period)}."
        )
        raise GatewayError(ErrorKind.BUDGET_EXCEEDED, message, code="budget_exceeded")

    def _spent_period(self, provider: str) -> str | None:
        """Return the longest period whose budget for this provider is spent; None: no budget is spent."""
        limits = zip(periods(), ("day", "month"), self._limits.get(provider, ()), strict=False)
        spent_periods = [
            period
            for suffix, period, limit in limits
            if limit is not None and self.spent_nano_usd.get(keyspace.spent("provider", provider, suffix), 0) >= limit
        ]
        return spent_periods[-1] if spent_periods else None


def _next_period_start(period: str | None) -> str:
    """Return when the next period begins, in the format for clients."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # The 28th and four days are always in the next month.
    begins = (today.replace(day=28) + timedelta(days=4)).replace(day=1) if period == "month" else today + timedelta(days=1)
    return f"{begins:%Y-%m-%dT%H:%M:%SZ}"
