"""What does a generation cost?

Prices come from the installed price list of genai-prices (it is never downloaded), unless the settings override them. An
unknown price is None, because a cost of 0 would be a false statement.
Source: https://github.com/pydantic/genai-prices
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from common.canonical.events import COUNTS, PAID_CALLS, Usage

if TYPE_CHECKING:
    import genai_prices

# Our provider id to its name in the list. A provider that is not here has its own models and no known prices.
_LISTED_AS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google-ai-studio": "google",
    "mistral": "mistral",
    "groq": "groq",
    "grok": "x-ai",
    "deepseek": "deepseek",
    "cerebras": "cerebras",
    "perplexity": "perplexity",
    "azure-openai": "azure",
    "cohere": "cohere",
    "workers-ai": "cloudflare",
}
_MTOK = 1_000_000
_STANDARD_TIERS = frozenset(("", "auto", "default", "standard", "on_demand"))
# Prices of tiers that the list does not have, as a factor of the standard price. A tier that is in neither has no known price.
# Sources, read on 2026-11-29: https://console.groq.com/docs/flex-processing ("same pricing as on-demand"),
# https://platform.claude.com/docs/en/manage-claude/data-residency (all token prices, models from Claude 4.6 on).
_TIER_FACTORS = {("groq", "flex"): Decimal(1), ("anthropic", "us"): Decimal("1.1")}
_LISTED_CALLS = frozenset(("web_searches", "social_searches", "storage_searches", "code_executions"))


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars. ``input_usd`` includes the cost of reading and writing the vendor's cache, and fees per request."""

    input_usd: Decimal
    output_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        return self.input_usd + self.output_usd

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.input_usd + other.input_usd, self.output_usd + other.output_usd)

    def to_dict(self) -> dict[str, str]:
        """Return the exact amounts as text."""
        return {name: f"{getattr(self, name):f}" for name in ("input_usd", "output_usd", "total_usd")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, str] | None) -> "Cost | None":
        """Read what ``to_dict`` wrote; None for anything else."""
        try:
            cost = cls(Decimal(fields["input_usd"]), Decimal(fields["output_usd"])) if fields else None
        except (ArithmeticError, KeyError, TypeError, ValueError):
            return None
        return cost if cost and cost.total_usd.is_finite() else None


NO_COST = Cost(Decimal(0), Decimal(0))

_Rate = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class Price(BaseModel):
    """US dollars per million tokens, and per thousand web searches.

    Cache reads and writes default to the input price, audio defaults to the price of other tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_usd_per_mtok: _Rate
    output_usd_per_mtok: _Rate
    cache_read_usd_per_mtok: _Rate | None = None
    cache_write_usd_per_mtok: _Rate | None = None
    cache_write_1h_usd_per_mtok: _Rate | None = None
    input_audio_usd_per_mtok: _Rate | None = None
    output_audio_usd_per_mtok: _Rate | None = None
    web_searches_usd_per_k: _Rate | None = None

    def cost_of(self, usage: Usage) -> Cost:
        details = usage.details
        input_rate, output_rate = self.input_usd_per_mtok, self.output_usd_per_mtok
        write_rate = _rate_or(self.cache_write_usd_per_mtok, input_rate)
        write_1h_tokens, audio_in_tokens, audio_out_tokens = (details.get(name, 0) for name in _PRICED_PARTS)
        text_tokens = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens - audio_in_tokens)
        input_usd = (
            text_tokens * input_rate
            + audio_in_tokens * _rate_or(self.input_audio_usd_per_mtok, input_rate)
            + usage.cache_read_tokens * _rate_or(self.cache_read_usd_per_mtok, input_rate)
            + (usage.cache_write_tokens - write_1h_tokens) * write_rate
            + write_1h_tokens * _rate_or(self.cache_write_1h_usd_per_mtok, write_rate)
        )
        audio_out_rate = _rate_or(self.output_audio_usd_per_mtok, output_rate)
        output_usd = (usage.output_tokens - audio_out_tokens) * output_rate + audio_out_tokens * audio_out_rate
        searches_usd = details.get("web_searches", 0) * _rate_or(self.web_searches_usd_per_k, Decimal(0)) / 1000
        return Cost(input_usd / _MTOK + searches_usd, output_usd / _MTOK)


_PRICED_PARTS = ("cache_write_1h_tokens", "input_audio_tokens", "output_audio_tokens")


def _rate_or(rate: Decimal | None, default: Decimal) -> Decimal:
    return default if rate is None else rate


def calculate_cost(usage: Usage, provider: str, model: str, overrides: Mapping[str, Price]) -> Cost | None:
    """Return what ``usage`` costs at a provider; ``overrides`` are prices by ``provider/model``.

    The price is that of the model that the upstream named, if it is known. Else it is that of the requested ``model``: the
    upstream may name an alias, a deployment, or a substitute.
    """
    names = dict.fromkeys(name for name in (usage.model, model) if name)
    for name in names:
        if price := _override_price(provider, name, overrides):
            return price.cost_of(usage)
    if listed_provider := _LISTED_AS.get(provider):
        for name in names:
            if _is_listed(listed_provider, name):
                return _listed_cost(usage, listed_provider, name)
    return None


def has_known_price(provider: str, model: str, overrides: Mapping[str, Price]) -> bool:
    """Whether a model's tokens have a known price at the default service tier."""
    return _override_price(provider, model, overrides) is not None or _is_priced(provider, model)


def _override_price(provider: str, model: str, overrides: Mapping[str, Price]) -> Price | None:
    """Return the price in the settings. Case and surrounding spaces do not matter: some servers accept such spellings for the
    same model, and no spelling must make it free."""
    if price := overrides.get(f"{provider}/{model}"):
        return price
    folded = f"{provider}/{model.strip()}".casefold()
    return next((price for name, price in overrides.items() if name.casefold() == folded), None)


@lru_cache(maxsize=4096)
def _is_priced(provider: str, model: str) -> bool:
    return calculate_cost(Usage(), provider, model, {}) is not None


def _listed_cost(usage: Usage, provider: str, model: str) -> Cost | None:
    import genai_prices

    factor = _TIER_FACTORS.get((provider, usage.service_tier))
    tier = "" if factor or usage.service_tier in _STANDARD_TIERS else usage.service_tier
    # The list has two names for it: "service_tier" for OpenAI and Google, "speed" for Anthropic.
    context = {"service_tier": tier, "speed": tier} if tier else None
    try:
        calculation = genai_prices.calc_price(_counts(usage), model, provider_id=provider, price_context=context)
    except ValueError:  # Impossible counts, which some servers report.
        return None
    rates, paid_calls = calculation.model_price, [name for name in PAID_CALLS if usage.details.get(name)]
    if rates.input_mtok is None or rates.output_mtok is None:
        return None  # Listed, but not per token: the missing rate would count as 0.
    if tier and rates == calculation.model.get_prices(datetime.now(UTC)):
        return None  # The list has no separate price for this tier, but the vendor has one.
    if any(_call_rate(rates, name) is None for name in paid_calls):
        return None
    if usage.details.get("cache_write_1h_tokens") and rates.cache_write_mtok is not None and rates.cache_write_1h_mtok is None:
        return None
    cost = Cost(calculation.total_price - calculation.output_price, calculation.output_price)
    if factor in (None, 1):
        return cost
    # The vendor's factor applies to tokens only.
    return None if paid_calls else Cost(cost.input_usd * factor, cost.output_usd * factor)


def _counts(usage: Usage) -> "genai_prices.Usage":
    import genai_prices

    counts = {name: count for name in COUNTS if (count := getattr(usage, name))} | usage.details
    counts["output_reasoning_tokens"] = counts.pop("reasoning_tokens", 0)
    for name in ("audio", "image", "video"):
        # Vendors rarely report how many tokens of a modality were cached, but the list needs it: assume the minimum.
        key, part = f"cache_{name}_read_tokens", counts.get(f"input_{name}_tokens")
        if part and key not in counts:
            counts[key] = max(0, usage.cache_read_tokens + part - usage.input_tokens)
    counts.pop("image_generations", None)  # The list has no price for it.
    return genai_prices.Usage(**counts)


def _call_rate(rates: Any, name: str) -> Any:
    return getattr(rates, f"{name}_kcount", None) if name in _LISTED_CALLS else None


@lru_cache(maxsize=4096)
def _is_listed(provider: str, model: str) -> bool:
    """Cached, because genai-prices searches its whole list for every unknown model."""
    # Imported here: it takes a quarter of a second. See `load`.
    from genai_prices.data_snapshot import get_snapshot

    try:
        get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return False
    return True


def load() -> None:
    """Load the price list now, so that no generation waits for it."""
    calculate_cost(Usage(), "openai", "gpt-4o", {})
