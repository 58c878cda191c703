"""How much may each ask for?"""

from typing import Literal

from pydantic import BaseModel, Field

from common.access.principal import Access, Limits
from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB


class LimitSettings(BaseModel):
    """Limits"""

    limits: dict[Literal["key", "tenant", "end_user", "address"], Limits] = Field(
        default_factory=dict,
        description='For each of a kind: {"key": {"requests": 60, "tokens": 100000, "concurrent": 10, "window_s": 60}}.',
    )
    tenants: dict[str, Access] = Field(
        default_factory=dict,
        description='What a tenant may: {"acme": {"models": ["gpt-*"], "budget": {"month_usd": 500}}}. See docs/access.md.',
    )
    budget_unknown_price: Literal["allow", "refuse"] = Field(
        "allow",
        description="Whether who has a budget may use models whose price is not known: they cost nothing there.",
    )
