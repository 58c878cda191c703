"""Does a generation cost what its vendor's list says?

The listed prices are those of models whose price will not change any more, by the vendors' pages of 2025.
"""

import socket
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.canonical.events import FIGURE_MAX, Usage
from common.config.model_routes import resolve
from common.config.settings import Settings
from common.metering.attempt_cost import NANO_MAX, nano_usd
from common.metering.pricing import Cost, Price, calculate_cost, has_known_price, load
from common.vendors.table import VENDORS

MTOK = 1_000_000


def test_cached_tokens_are_a_part_of_the_input_with_a_price_of_their_own() -> None:
    plain = calculate_cost(Usage(1000, 0), "anthropic", "claude-sonnet-4-20250514", {})
    cached = calculate_cost(
        Usage(1000, 0, cache_read_tokens=400, cache_write_tokens=100), "anthropic", "claude-sonnet-4-20250514", {}
    )

    assert plain == Cost(Decimal("0.003"), Decimal(0))  # 3 dollars; reading 0.30, writing 3.75.
    assert cached == Cost(Decimal("0.0015") + Decimal("0.00012") + Decimal("0.000375"), Decimal(0))


def test_reasoning_is_a_part_of_the_output() -> None:
    with_reasoning = calculate_cost(Usage(0, 1000, reasoning_tokens=900), "openai", "gpt-4o-2024-11-20", {})

    assert with_reasoning == Cost(Decimal(0), Decimal("0.01"))


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o"),
        ("anthropic", "claude-sonnet-4-5"),
        ("google-ai-studio", "gemini-2.5-flash"),
        ("mistral", "mistral-large-latest"),
        ("groq", "llama-3.3-70b-versatile"),
        ("grok", "grok-4"),
        ("deepseek", "deepseek-chat"),
        ("cerebras", "llama3.1-8b"),
        ("perplexity", "sonar"),
        ("azure-openai", "gpt-4o"),
        ("cohere", "command-r-plus"),
        ("workers-ai", "@cf/meta/llama-3.3-70b-instruct-fp8-fast"),
    ],
)
def test_every_listed_vendor_is_found_under_its_name(provider: str, model: str) -> None:
    assert provider in VENDORS
    cost = calculate_cost(Usage(MTOK, MTOK), provider, model, {})

    assert cost
    assert 0 < cost.total_usd < 100


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("openai", "no-such-model", Usage(1, 1)),
        ("demo", "gpt-4o", Usage(1, 1)),
        ("a-provider-of-my-own", "gpt-4o", Usage(1, 1)),
        ("openai", "whisper-1", Usage(1, 1)),  # Listed, but not by the token,
        ("openai", "text-embedding-3-small", Usage(1, 1)),  # or not all of its tokens.
        ("openai", "gpt-4o", Usage(10, 1, cache_read_tokens=161)),  # As a server was seen to report.
    ],
)
def test_what_is_not_known_is_none(provider: str, model: str, usage: Usage) -> None:
    assert calculate_cost(usage, provider, model, {}) is None


def test_settings_come_before_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    own = '{"input_usd_per_mtok": 0.1, "output_usd_per_mtok": "0.3", "cache_read_usd_per_mtok": 0}'
    monkeypatch.setenv("SLUICE_PRICES", f'{{"demo/m": {own}}}')

    prices = Settings().prices
    usage = Usage(3 * MTOK, MTOK, cache_read_tokens=MTOK, cache_write_tokens=MTOK)

    # Writing has no price of its own, so it costs what input does.
    assert calculate_cost(usage, "demo", "m", prices) == Cost(Decimal("0.2"), Decimal("0.3"))
    assert calculate_cost(usage, "demo", "other", prices) is None


@pytest.mark.parametrize("wrong", [{"output_usd_per_mtok": 1}, {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}])
def test_prices_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(wrong)


def test_a_list_that_is_loaded_is_there_for_the_first_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []
    monkeypatch.setattr("common.metering.pricing.calculate_cost", lambda *asked: costs.append(calculate_cost(*asked)))

    load()

    assert costs == [Cost(Decimal(0), Decimal(0))]  # Of a model that is on the list, by which it was searched.


def test_list_is_read_when_first_asked_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, common.dialects, common.config.settings; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert calculate_cost(Usage(1, 1), "openai", "gpt-4o-mini", {})


@pytest.mark.parametrize(
    ("provider", "model", "usage", "usd"),
    [
        # Anthropic: https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing, a search is a cent.
        ("anthropic", "claude-haiku-4-5", Usage(MTOK, 0, 0, MTOK), "1.25"),
        ("anthropic", "claude-haiku-4-5", Usage(MTOK, 0, 0, MTOK, details={"cache_write_1h_tokens": MTOK}), "2"),
        ("anthropic", "claude-haiku-4-5", Usage(0, 0, details={"web_searches": 10}), "0.1"),
        # Data residency: https://platform.claude.com/docs/en/manage-claude/data-residency
        ("anthropic", "claude-opus-4-6", Usage(MTOK, MTOK, service_tier="us"), "33"),
        # OpenAI: https://openai.com/api/priority-processing, https://platform.openai.com/docs/guides/flex-processing
        ("openai", "gpt-5", Usage(MTOK, 0, service_tier="default"), "1.25"),
        ("openai", "gpt-5", Usage(MTOK, 0, service_tier="priority"), "2.5"),
        ("openai", "gpt-5", Usage(MTOK, 0, service_tier="flex"), "0.625"),
        ("openai", "gpt-audio", Usage(MTOK, MTOK, details={"input_audio_tokens": MTOK, "output_audio_tokens": MTOK}), "96"),
        ("openai", "gpt-audio", Usage(MTOK, MTOK), "12.5"),
        ("openai", "gpt-5", Usage(MTOK, 0, model="gpt-5-pro"), "15"),
        ("openai", "gpt-5", Usage(MTOK, 0, model="named-by-nobody"), "1.25"),
        ("azure-openai", "our-deployment", Usage(MTOK, 0, model="gpt-4o-2024-11-20"), "2.5"),
        ("groq", "llama-3.3-70b-versatile", Usage(MTOK, 0, service_tier="flex"), "0.59"),
        # Google: audio of the prompt, what of it was cached, an image that was drawn.
        ("google-ai-studio", "gemini-2.5-flash", Usage(MTOK, 0, details={"input_audio_tokens": MTOK}), "1"),
        ("google-ai-studio", "gemini-2.5-flash-image", Usage(0, MTOK, details={"output_image_tokens": MTOK}), "30"),
        ("perplexity", "sonar-deep-research", Usage(0, MTOK, reasoning_tokens=MTOK, details={"web_searches": 1000}), "8"),
    ],
)
def test_what_else_the_price_depends_on_is_priced(provider: str, model: str, usage: Usage, usd: str) -> None:
    cost = calculate_cost(usage, provider, model, {})

    assert cost and cost.total_usd == Decimal(usd)


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("openai", "gpt-4o", Usage(1, 1, service_tier="flex")),  # A tier that the list has no price for,
        ("openai", "gpt-5", Usage(1, 1, service_tier="scale")),  # or nobody has.
        ("azure-openai", "gpt-5", Usage(1, 1, service_tier="priority")),
        ("anthropic", "claude-haiku-4-5", Usage(1, 1, service_tier="priority+us")),
        ("anthropic", "claude-opus-4-6", Usage(1, 1, service_tier="us", details={"web_searches": 1})),
        ("openai", "gpt-5", Usage(1, 1, details={"code_executions": 1})),
        ("openai", "gpt-5", Usage(1, 1, details={"image_generations": 1})),
        ("google-ai-studio", "claude-3-haiku", Usage(9, 1, 0, 9, details={"cache_write_1h_tokens": 9})),
    ],
)
def test_what_the_list_cannot_price_has_no_price_and_never_a_lower_one(provider: str, model: str, usage: Usage) -> None:
    assert calculate_cost(Usage(1, 1), provider, model, {})
    assert calculate_cost(usage, provider, model, {}) is None


@pytest.mark.parametrize("name", ["anthropic/claude-sonnet-4", "anthropic/claude-sonnet-4-20250514"])
def test_a_price_is_found_by_every_name_of_its_model(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SLUICE_PRICES", f'{{"{name}": {{"input_usd_per_mtok": 7, "output_usd_per_mtok": 7}}}}')
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    settings = Settings()
    (target,) = resolve("claude-sonnet-4", settings)

    assert calculate_cost(Usage(MTOK, 0), target.provider, target.model, settings.prices) == Cost(Decimal(7), Decimal(0))


def test_a_price_is_found_by_every_name_of_its_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_PRICES", '{"google/gemini-x": {"input_usd_per_mtok": 7, "output_usd_per_mtok": 7}}')

    assert has_known_price("google-ai-studio", "gemini-x", Settings().prices)


@pytest.mark.parametrize("asked", ["Big", "BIG", "big ", " big"])
def test_no_spelling_of_a_model_takes_it_out_of_the_settings_prices(asked: str) -> None:
    overrides = {
        "lab/big": Price(input_usd_per_mtok=Decimal(2), output_usd_per_mtok=Decimal(2)),
        "lab/Small": Price(input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1)),
    }

    assert calculate_cost(Usage(MTOK, 0), "lab", asked, overrides) == Cost(Decimal(2), Decimal(0))
    assert calculate_cost(Usage(MTOK, 0), "lab", "small", overrides) == Cost(Decimal(1), Decimal(0))
    assert has_known_price("lab", asked, overrides)
    assert calculate_cost(Usage(MTOK, 0), "lab", "biggest", overrides) is None


def test_own_prices_tell_parts_apart() -> None:
    own = Price(
        input_usd_per_mtok=1,
        output_usd_per_mtok=2,
        cache_write_usd_per_mtok=3,
        cache_write_1h_usd_per_mtok=4,
        input_audio_usd_per_mtok=5,
        output_audio_usd_per_mtok=6,
        web_searches_usd_per_k=7,
    )
    details = {"cache_write_1h_tokens": MTOK, "input_audio_tokens": MTOK, "output_audio_tokens": MTOK, "web_searches": 1000}

    assert own.cost_of(Usage(4 * MTOK, 2 * MTOK, 0, 2 * MTOK, details=details)) == Cost(
        Decimal(1 + 3 + 4 + 5 + 7), Decimal(2 + 6)
    )


@given(st.builds(Usage, *[st.integers(0, FIGURE_MAX)] * 5))
def test_no_figure_that_is_believed_costs_more_than_a_counter_takes(usage: Usage) -> None:
    dearest = Price(input_usd_per_mtok=1_000_000, output_usd_per_mtok=1_000_000)
    for cost in (calculate_cost(usage, "openai", "gpt-5.5-pro", {}), dearest.cost_of(usage)):
        assert cost is None or 0 <= nano_usd(cost.total_usd) <= NANO_MAX


def test_a_tier_s_factor_is_on_both_sides() -> None:
    cost = calculate_cost(Usage(MTOK, MTOK, service_tier="us"), "anthropic", "claude-opus-4-6", {})

    assert cost == Cost(Decimal("5.5"), Decimal("27.5"))


@pytest.mark.parametrize(
    "fields", [None, {}, {"input_usd": "x", "output_usd": "1"}, {"input_usd": "NaN", "output_usd": "1"}, 5]
)
def test_a_cost_that_is_none_of_ours_is_not_known(fields: Any) -> None:
    assert Cost.from_dict(fields) is None
