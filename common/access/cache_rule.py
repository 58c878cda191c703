"""May answers of a request be cached, for how long, and who may get them?

The settings, a dialect, a model, a tenant and a key can each have a rule. ``CacheRule.over`` combines two of them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

TTL_S_MAX = 30 * 86_400

ModelPattern = Annotated[str, Field(min_length=1, max_length=200)]
CachePolicy = Literal["deterministic", "all"]
CacheScope = Literal["key", "tenant"]


def check_number(value: object) -> object:
    """Refuse everything that is not a JSON number: pydantic would also accept true and "5"."""
    if isinstance(value, bool | str):
        raise ValueError("it must be a number")  # noqa: TRY004 - pydantic's way to refuse a value.
    return value


class CacheRule(BaseModel):
    """What one source says. None: it says nothing, and a weaker source counts.

    ``ttl_s``: how long an answer is used, in seconds; 0: no cache. ``policy``: which requests, ``deterministic`` (those that
    ask for temperature 0) or ``all``. ``scope``: who gets an answer, other requests of the same ``key`` or of the same
    ``tenant``. ``anonymous``: whether clients without a key, who share one identity, share answers too. ``models``: the rule is
    only for these, by patterns; None: for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_s: Annotated[float, Field(ge=0, le=TTL_S_MAX), BeforeValidator(check_number)] | None = None
    policy: CachePolicy | None = None
    scope: CacheScope | None = None
    anonymous: StrictBool | None = None
    models: Annotated[tuple[ModelPattern, ...], Field(max_length=1_000)] | None = None

    def over(self, weaker: "CacheRule") -> "CacheRule":
        """Return this rule, completed from a weaker one."""
        stated = {name: value for name, value in self if value is not None and name != "models"}
        return weaker.model_copy(update=stated) if stated else weaker


NO_RULE = CacheRule()
