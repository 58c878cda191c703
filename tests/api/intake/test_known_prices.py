"""Which models may be paid from a budget, where budgets refuse what they cannot count?"""

from decimal import Decimal
from typing import Any

import pytest

from api.intake.known_prices import countable
from common.access.principal import Access, Budget, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.models import ProviderSettings
from common.config.model_routes import Target
from common.config.settings import Settings
from common.metering.pricing import Price

KNOWN, UNKNOWN = Target("openai", "gpt-5"), Target("lab", "m")
OWN = {"lab/m": Price(input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1))}
BUDGET = Budget(day_usd=Decimal(1))


def settings(**more: Any) -> Settings:
    lab = ProviderSettings(base_url="http://lab/v1", **more.pop("lab", {}))
    return Settings(**{"providers": {"lab": lab}, "budget_unknown_price": "refuse", **more})


def principal(own: Budget = Budget(), tenant: Budget = Budget()) -> Principal:  # noqa: B008 - Frozen.
    return Principal("key_a", "acme", access=Access(budget=own), tenant_access=Access(budget=tenant))


def test_by_default_an_unknown_price_is_let_in():
    assert countable(principal(BUDGET), "m", [UNKNOWN], settings(budget_unknown_price="allow")) == [UNKNOWN]


@pytest.mark.parametrize("who", [principal(BUDGET), principal(tenant=BUDGET)])
def test_who_has_a_budget_keeps_the_models_whose_price_is_known(who: Principal):
    assert countable(who, "m", [UNKNOWN, KNOWN], settings()) == [KNOWN]
    assert countable(who, "m", [UNKNOWN], settings(prices=OWN)) == [UNKNOWN]


def test_where_none_is_left_the_refusal_names_the_model_and_what_to_do():
    with pytest.raises(GatewayError, match=r"lab/m is not known.*Use another model") as raised:
        countable(principal(BUDGET), "m", [UNKNOWN], settings())

    assert (raised.value.failed.kind, raised.value.failed.code) == (ErrorKind.BUDGET_EXCEEDED, "price_unknown")


def test_a_provider_with_a_budget_is_left_out_and_who_has_none_is_let_in():
    assert countable(principal(), "m", [UNKNOWN], settings()) == [UNKNOWN]
    assert countable(principal(), "m", [UNKNOWN, KNOWN], settings(lab={"budget": BUDGET})) == [KNOWN]


def test_a_fallback_with_a_known_price_does_not_answer_in_the_place_of_a_target_without_one():
    route = {"targets": ["lab/m"], "fallbacks": [{"model": "openai/gpt-5", "when": ["exhausted"]}]}
    with pytest.raises(GatewayError, match="lab/m is not known"):
        countable(principal(BUDGET), "r", [UNKNOWN, KNOWN], settings(routes={"r": route}))
    turned = {"targets": ["openai/gpt-5"], "fallbacks": [{"model": "lab/m", "when": ["exhausted"]}]}
    assert countable(principal(BUDGET), "r", [KNOWN, UNKNOWN], settings(routes={"r": turned})) == [KNOWN]
