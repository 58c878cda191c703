"""What does a generation cost?

By the price list of genai-prices that is installed (it is never fetched), unless the settings say otherwise. A price that
is not known is None: a cost of 0 would be a claim.
Source: https://github.com/pydantic/genai-prices
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from common.events import Usage

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


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars. ``input_usd`` includes what reading and writing the vendor's cache costs, and a fee per request."""

    input_usd: Decimal
    output_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        return self.input_usd + self.output_usd


class Price(BaseModel):
    """US dollars per million tokens; reading and writing a cache costs what input does, where nothing else is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_usd_per_mtok: Decimal = Field(ge=0)
    output_usd_per_mtok: Decimal = Field(ge=0)
    cache_read_usd_per_mtok: Decimal | None = Field(None, ge=0)
    cache_write_usd_per_mtok: Decimal | None = Field(None, ge=0)

    def of(self, usage: Usage) -> Cost:
        read, write = self.cache_read_usd_per_mtok, self.cache_write_usd_per_mtok
        input_usd = (
            max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens) * self.input_usd_per_mtok
            + usage.cache_read_tokens * (self.input_usd_per_mtok if read is None else read)
            + usage.cache_write_tokens * (self.input_usd_per_mtok if write is None else write)
        )
        return Cost(input_usd / _MTOK, usage.output_tokens * self.output_usd_per_mtok / _MTOK)


def price(usage: Usage, provider: str, model: str, overrides: Mapping[str, Price]) -> Cost | None:
    """Return what ``usage`` costs at a provider's own model; ``overrides`` are prices by ``provider/model``."""
    if own := overrides.get(f"{provider}/{model}"):
        return own.of(usage)
    listed = _LISTED_AS.get(provider)
    return _listed_cost(usage, listed, model) if listed else None


def _listed_cost(usage: Usage, provider: str, model: str) -> Cost | None:
    if not _is_listed(provider, model):
        return None
    import genai_prices

    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        found = genai_prices.calc_price(counts, model, provider_id=provider)
    except ValueError:  # Figures that cannot be, which some servers report.
        return None
    if found.model_price.input_mtok is None or found.model_price.output_mtok is None:
        return None  # Listed, but not by the token: the rate that is missing would count as 0.
    return Cost(found.total_price - found.output_price, found.output_price)


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
    _listed_cost(Usage(), "openai", "gpt-4o")
