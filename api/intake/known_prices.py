"""Which models of a route may be paid from a budget?

All of them, unless budgets refuse costs that they cannot count (``SLUICE_BUDGET_UNKNOWN_PRICE=refuse``). Then only the models
with a known price.
"""

from common.access.principal import Budget, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.model_routes import Target, has_target
from common.config.settings import Settings
from common.metering.pricing import has_known_price


def countable(
    principal: Principal, model: str, targets: list[Target], settings: Settings, *, has_byok_key: bool = False
) -> list[Target]:
    """Return the targets whose cost the budgets of key, tenant and provider can count; all of them if there is no budget.

    ``model`` is the name that led to them. A call that the client's own provider key pays for costs no budget anything.

    Raises:
        GatewayError: BUDGET_EXCEEDED, no target can be counted.
    """
    if settings.budget_unknown_price == "allow":
        return targets
    has_budget = _is_set(principal.access.budget) or _is_set(principal.tenant_access.budget)
    countable_targets = [
        target
        for target in targets
        if (has_byok_key and settings.byok_pays(target.provider))
        or not (has_budget or _is_set(settings.provider(target.provider).budget))
        or has_known_price(target.provider, target.model, settings.prices)
    ]
    if not has_target(model, countable_targets, settings):
        names = ", ".join(target.name for target in targets if target not in countable_targets)
        message = (
            f"The price of {names} is not known, and a budget applies that accepts only models with a known price. "
            "Use another model, or ask the gateway's operator to set its price."
        )
        raise GatewayError(ErrorKind.BUDGET_EXCEEDED, message, code="price_unknown", param="model")
    return countable_targets


def _is_set(budget: Budget) -> bool:
    return (budget.day_usd, budget.month_usd) != (None, None)
