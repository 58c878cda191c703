"""What does a generation cost?

By the price list of genai-prices that is installed (it is never fetched), unless the settings say otherwise. A price that
is not known is None: a cost of 0 would be a claim.
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

# What the list calls a provider of ours. One that is not here has models of its own, and no known prices.
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
# What tiers cost that the list does not have, as a factor of the standard price. What is in neither has no known price.
# Sources, of 2026-11-29: https://console.groq.com/docs/flex-processing ("same pricing as on-demand"),
# https://platform.claude.com/docs/en/manage-claude/data-residency (all token prices, models from Claude 4.6 on).
_TIER_FACTORS = {("groq", "flex"): Decimal(1), ("anthropic", "us"): Decimal("1.1")}
_LISTED_CALLS = frozenset(("web_searches", "social_searches", "storage_searches", "code_executions"))


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars. ``input_usd`` includes what reading and writing the vendor's cache costs, and a fee per request."""

    input_usd: Decimal
    output_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        return self.input_usd + self.output_usd

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.input_usd + other.input_usd, self.output_usd + other.output_usd)

    def to_dict(self) -> dict[str, str]:
        """Return the amounts as text, exactly."""
        return {name: f"{getattr(self, name):f}" for name in ("input_usd", "output_usd", "total_usd")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, str] | None) -> "Cost | None":
        """Return what ``to_dict`` gave; None for anything else."""
        try:
            found = cls(Decimal(fields["input_usd"]), Decimal(fields["output_usd"])) if fields else None
        except (ArithmeticError, KeyError, TypeError, ValueError):
            return None
        return found if found and found.total_usd.is_finite() else None


_Rate = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class Price(BaseModel):
    """US dollars per million tokens, and per thousand searches of the web.

    Reading and writing a cache costs what input does, audio what other tokens do, where nothing else is said.
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
        plain, output = self.input_usd_per_mtok, self.output_usd_per_mtok
        write = _rate_or(self.cache_write_usd_per_mtok, plain)
        written_1h, heard, spoken = (details.get(name, 0) for name in _OWN_PARTS)
        text = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens - heard)
        input_usd = (
            text * plain
            + heard * _rate_or(self.input_audio_usd_per_mtok, plain)
            + usage.cache_read_tokens * _rate_or(self.cache_read_usd_per_mtok, plain)
            + (usage.cache_write_tokens - written_1h) * write
            + written_1h * _rate_or(self.cache_write_1h_usd_per_mtok, write)
        )
        output_usd = (usage.output_tokens - spoken) * output + spoken * _rate_or(self.output_audio_usd_per_mtok, output)
        searches_usd = details.get("web_searches", 0) * _rate_or(self.web_searches_usd_per_k, Decimal(0)) / 1000
        return Cost(input_usd / _MTOK + searches_usd, output_usd / _MTOK)


_OWN_PARTS = ("cache_write_1h_tokens", "input_audio_tokens", "output_audio_tokens")


def _rate_or(rate: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if rate is None else rate


def calculate_cost(usage: Usage, provider: str, model: str, overrides: Mapping[str, Price]) -> Cost | None:
    """Return what ``usage`` costs at a provider; ``overrides`` are prices by ``provider/model``.

    The model is the one that the upstream named, if its price is known, else ``model``, the one that was asked for: an
    alias, a deployment's name, or what answered instead of it.
    """
    names = dict.fromkeys(name for name in (usage.model, model) if name)
    for name in names:
        if own := _own_price(provider, name, overrides):
            return own.cost_of(usage)
    if listed := _LISTED_AS.get(provider):
        for name in names:
            if _is_listed(listed, name):
                return _listed_cost(usage, listed, name)
    return None


def has_known_price(provider: str, model: str, overrides: Mapping[str, Price]) -> bool:
    """Whether a model's tokens have a price, served as it is by default."""
    return _own_price(provider, model, overrides) is not None or _is_priced(provider, model)


def _own_price(provider: str, model: str, overrides: Mapping[str, Price]) -> Price | None:
    """Return the settings' price. Servers that take a name in other letters, or with spaces around it, mean the same model, and
    no spelling makes it free."""
    if found := overrides.get(f"{provider}/{model}"):
        return found
    folded = f"{provider}/{model.strip()}".casefold()
    return next((own for name, own in overrides.items() if name.casefold() == folded), None)


@lru_cache(maxsize=4096)
def _is_priced(provider: str, model: str) -> bool:
    return calculate_cost(Usage(1, 1), provider, model, {}) is not None


def _listed_cost(usage: Usage, provider: str, model: str) -> Cost | None:
    import genai_prices

    factor = _TIER_FACTORS.get((provider, usage.service_tier))
    tier = "" if factor or usage.service_tier in _STANDARD_TIERS else usage.service_tier
    # The list's words for it: OpenAI's and Google's tiers, Anthropic's speed.
    context = {"service_tier": tier, "speed": tier} if tier else None
    try:
        found = genai_prices.calc_price(_counts(usage), model, provider_id=provider, price_context=context)
    except ValueError:  # Figures that cannot be, which some servers report.
        return None
    rates, calls = found.model_price, [name for name in PAID_CALLS if usage.details.get(name)]
    if rates.input_mtok is None or rates.output_mtok is None:
        return None  # Listed, but not by the token: the rate that is missing would count as 0.
    if tier and rates == found.model.get_prices(datetime.now(UTC)):
        return None  # The list has no other price for this tier, and it does cost something else.
    if any(_rate_of(rates, name) is None for name in calls):
        return None
    if usage.details.get("cache_write_1h_tokens") and rates.cache_write_mtok is not None and rates.cache_write_1h_mtok is None:
        return None
    cost = Cost(found.total_price - found.output_price, found.output_price)
    if factor in (None, 1):
        return cost
    return None if calls else Cost(cost.input_usd * factor, cost.output_usd * factor)  # Of tokens alone, says the vendor.


def _counts(usage: Usage) -> "genai_prices.Usage":
    import genai_prices

    counts = {name: count for name in COUNTS if (count := getattr(usage, name))} | usage.details
    counts["output_reasoning_tokens"] = counts.pop("reasoning_tokens", 0)
    for name in ("audio", "image", "video"):
        # What of a modality was cached is rarely told, and the list must be: as little as the figures allow.
        key, part = f"cache_{name}_read_tokens", counts.get(f"input_{name}_tokens")
        if part and key not in counts:
            counts[key] = max(0, usage.cache_read_tokens + part - usage.input_tokens)
    counts.pop("image_generations", None)  # The list has no word for it.
    return genai_prices.Usage(**counts)


def _rate_of(rates: Any, name: str) -> Any:
    return getattr(rates, f"{name}_kcount", None) if name in _LISTED_CALLS else None


@lru_cache(maxsize=4096)
def _is_listed(provider: str, model: str) -> bool:
    """genai-prices remembers what it has found, and goes through its whole list for what it has not."""
    # Here: it takes a quarter of a second, and the API needs none of it. See `load`.
    from genai_prices.data_snapshot import get_snapshot

    try:
        get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return False
    return True


def load() -> None:
    """Read the price list now, so that no generation waits for it."""
    calculate_cost(Usage(), "openai", "gpt-4o", {})
