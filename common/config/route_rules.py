"""What is a route: a model name of the operator's own, and the models that may answer it, in which order?"""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from common.access.principal import NO_LIMITS, Limits

Strategy = Literal["priority", "weighted", "least_busy", "fastest", "cheapest"]

# For what a fallback may answer; see ``workers.routing.fallbacks``.
FallbackReason = Literal["exhausted", "context_overflow", "content_policy", "retired"]

Tag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["eu"])]


def _as_target(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class RouteTarget(BaseModel):
    """``model`` is written like any model name: ``provider/model``. Targets with a lower ``priority`` are called first.

    ``weight`` is the share of a target among those with the same priority. ``tags``: what a request may ask for. ``limits``:
    how much this route may use of the target, with all of its keys, by all workers together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    weight: Annotated[float, Field(gt=0, le=10**6)] = 1
    priority: Annotated[int, Field(ge=1, le=1000)] = 1
    tags: Annotated[tuple[Tag, ...], Field(max_length=100)] = ()
    limits: Limits = NO_LIMITS


class RouteFallback(BaseModel):
    """Another model, which answers only for one of the reasons in ``when``, and is then named to the client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    when: Annotated[tuple[FallbackReason, ...], Field(min_length=1)]
    tags: Annotated[tuple[Tag, ...], Field(max_length=100)] = ()


class Route(BaseModel):
    """How the targets of one priority are ordered, for each request:

    ``priority``: as they are written. ``weighted``: at random, by their weights. ``least_busy``: the one with the fewest
    running calls first. ``fastest``: the one with the shortest time to the first token first. ``cheapest``: by their prices.
    ``affinity``: requests of one conversation go to the same target and key while these are well.

    ``fallbacks`` are other models, the first one that serves the reason first. ``hedge_after_ms``: after this time without any
    output the next target is called too, and the first one with output answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Annotated[list[Annotated[RouteTarget, BeforeValidator(_as_target)]], Field(min_length=1, max_length=100)]
    strategy: Strategy = "priority"
    affinity: StrictBool = False
    fallbacks: Annotated[list[RouteFallback], Field(max_length=20)] = []
    hedge_after_ms: Annotated[int, Field(ge=1, le=600_000)] | None = None

    @property
    def rules(self) -> list[RouteTarget | RouteFallback]:
        """The targets and the fallbacks, in the order of the alias that each route is too."""
        return [*self.targets, *self.fallbacks]

    @model_validator(mode="after")
    def _check_fallbacks(self) -> "Route":
        names = Counter(rule.model for rule in self.rules)
        if twice := next((rule.model for rule in self.fallbacks if names[rule.model] > 1), None):
            raise ValueError(f"{twice!r} must be a target or one fallback, not both or twice: a fallback is another model")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "Route":
        """Refuse weights that nothing uses."""
        has_weights = any(target.weight != 1 for target in self.targets)
        if has_weights and not self.affinity and self.strategy not in ("weighted", "least_busy"):
            raise ValueError(
                f"weights have no effect with the strategy {self.strategy}: set strategy to weighted, or leave them out"
            )
        return self
