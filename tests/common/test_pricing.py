"""Does a generation cost what its vendor's list says?

The listed prices are those of models whose price will not change any more, by the vendors' pages of 2025.
"""

import socket
import subprocess
import sys
from decimal import Decimal

import pytest
from pydantic import ValidationError

from common.events import Usage
from common.pricing import Cost, Price, price
from common.settings import Settings
from common.vendors import VENDORS

MTOK = 1_000_000


def test_cached_tokens_are_a_part_of_the_input_with_a_price_of_their_own() -> None:
    plain = price(Usage(1000, 0), "anthropic", "claude-sonnet-4-20250514", {})
    cached = price(Usage(1000, 0, cache_read_tokens=400, cache_write_tokens=100), "anthropic", "claude-sonnet-4-20250514", {})

    assert plain == Cost(Decimal("0.003"), Decimal(0))  # 3 dollars; reading 0.30, writing 3.75.
    assert cached == Cost(Decimal("0.0015") + Decimal("0.00012") + Decimal("0.000375"), Decimal(0))


def test_reasoning_is_a_part_of_the_output() -> None:
    with_reasoning = price(Usage(0, 1000, reasoning_tokens=900), "openai", "gpt-4o-2024-11-20", {})

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
    cost = price(Usage(MTOK, MTOK), provider, model, {})

    assert cost
    assert 0 < cost.total_usd < 100


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("openai", "no-such-model", Usage(1, 1)),
        ("demo", "gpt-4o", Usage(1, 1)),
        ("a-provider-of-my-own", "gpt-4o", Usage(1, 1)),
        ("openai", "whisper-1", Usage(1, 1)),  # Listed, but not by the token.
        ("openai", "gpt-4o", Usage(10, 1, cache_read_tokens=161)),  # As a server was seen to report.
    ],
)
def test_what_is_not_known_is_none(provider: str, model: str, usage: Usage) -> None:
    assert price(usage, provider, model, {}) is None


def test_settings_come_before_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    own = '{"input_usd_per_mtok": 0.1, "output_usd_per_mtok": "0.3", "cache_read_usd_per_mtok": 0}'
    monkeypatch.setenv("SLUICE_PRICES", f'{{"demo/m": {own}}}')

    prices = Settings().prices
    usage = Usage(3 * MTOK, MTOK, cache_read_tokens=MTOK, cache_write_tokens=MTOK)

    # Writing has no price of its own, so it costs what input does.
    assert price(usage, "demo", "m", prices) == Cost(Decimal("0.2"), Decimal("0.3"))
    assert price(usage, "demo", "other", prices) is None


@pytest.mark.parametrize("wrong", [{"output_usd_per_mtok": 1}, {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}])
def test_prices_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(wrong)


def test_list_is_read_when_first_asked_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, common.dialects, common.settings; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert price(Usage(1, 1), "openai", "gpt-4o-mini", {})
