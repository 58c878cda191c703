"""Which settings say how much each principal may use?"""

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
        description='Limits of each key, tenant, end user or address: {"key": {"requests": 60, "tokens": 100000, '
        '"concurrent": 10, "window_s": 60}}.',
    )
    tenants: dict[str, Access] = Field(
        default_factory=dict,
        description='What a tenant may do: {"acme": {"models": ["gpt-*"], "budget": {"month_usd": 500}}}. See docs/access.md.',
    )
    budget_unknown_price: Literal["allow", "refuse"] = Field(
        "allow",
        description="Whether a principal with a budget may use models with an unknown price. These cost nothing in the budget.",
    )
