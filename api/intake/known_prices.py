"""Which models of a route may be paid from a budget?

Where a budget refuses what it cannot count (``SLUICE_BUDGET_UNKNOWN_PRICE=refuse``), those whose price is known.
"""

from common.access.principal import Budget, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.model_routes import Target
from common.config.settings import Settings
from common.metering.pricing import has_known_price


def countable(
    principal: Principal, targets: list[Target], settings: Settings, *, has_brought_key: bool = False
) -> list[Target]:
    """Return the targets whose cost the budgets of key, tenant and provider can count; all of them, where none has a budget.

    What a key pays for that the request brought costs no budget anything.

    Raises:
        GatewayError: BUDGET_EXCEEDED, there is none.
    """
    if settings.budget_unknown_price == "allow":
        return targets
    own = _is_set(principal.access.budget) or _is_set(principal.tenant_access.budget)
    found = [
        target
        for target in targets
        if (has_brought_key and settings.brought_key_pays(target.provider))
        or not (own or _is_set(settings.provider(target.provider).budget))
        or has_known_price(target.provider, target.model, settings.prices)
    ]
    if not found:
        names = ", ".join(target.name for target in targets)
        message = (
            f"The price of {names} is not known, and a budget applies that counts only what has one. "
            "Use another model, or ask the gateway's operator to set its price."
        )
        raise GatewayError(ErrorKind.BUDGET_EXCEEDED, message, code="price_unknown", param="model")
    return found


def _is_set(budget: Budget) -> bool:
    return (budget.day_usd, budget.month_usd) != (None, None)
