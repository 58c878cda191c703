"""Is each row of the table of models one that can be used, and does a later row win?"""

import re

import pytest
from pydantic import ValidationError

from common.config.settings import Settings
from common.vendors.models import MODELS, UNKNOWN, ModelRow, ModelTable
from common.vendors.table import VENDORS
from tests.support.sources import expressions


@pytest.mark.parametrize("row", MODELS.rows, ids=lambda row: f"{row.vendors[0]}:{row.models}")
def test_each_row_is_of_a_known_vendor_and_says_where_it_comes_from(row):
    assert set(row.vendors) <= set(VENDORS)
    assert row.source.startswith("https://")
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", row.date)
    assert row.facts
    for wire in filter(None, (row.wire, row.wire_with_tools)):
        assert all(wire in VENDORS[vendor].wires for vendor in row.vendors)


@pytest.mark.parametrize(
    ("vendor", "model", "expected"),
    [
        ("openai", "gpt-4o-mini", {"reasoning": "never", "efforts": (), "refused_fields": frozenset()}),
        ("openai", "gpt-5-chat-latest", {"reasoning": "never", "refused_fields": frozenset()}),
        ("openai", "gpt-5-mini", {"reasoning": "always", "efforts": ("minimal", "low", "medium", "high")}),
        ("openai", "gpt-5.1", {"reasoning": "on_request", "reasoning_off": "effort"}),
        ("openai", "gpt-5.1-codex-max", {"reasoning": "always", "wire": "openai-responses"}),
        ("openai", "gpt-5.6-sol", {"reasoning": "by_default", "reasoning_off": "effort"}),
        ("azure-openai", "gpt-6-astra", {"reasoning": "always", "reasoning_off": "none"}),
        ("anthropic", "claude-3-5-haiku-20241022", {"reasoning": "never", "prefill": True, "json_schema": False}),
        ("anthropic", "claude-sonnet-4-20250514", {"reasoning_on": "budget", "prefill": True, "json_schema": False}),
        ("anthropic", "claude-haiku-4-5-20251001", {"reasoning_on": "budget", "prefill": True, "json_schema": True}),
        ("anthropic", "claude-opus-4-6", {"reasoning_on": "adaptive", "prefill": False, "reasoning_is_hidden": False}),
        ("anthropic", "claude-opus-4-8", {"reasoning": "on_request", "reasoning_is_hidden": True}),
        ("anthropic", "claude-sonnet-5", {"reasoning": "by_default", "reasoning_off": "thinking", "forced_tool_choice": True}),
        ("anthropic", "claude-sonnet-5-5", {"reasoning_off": "between_tools", "forced_tool_choice": False}),
        ("anthropic", "claude-opus-5-5", {"reasoning": "always", "reasoning_off": "none", "forced_tool_choice": False}),
        ("google-ai-studio", "gemini-2.5-flash", {"reasoning_off": "budget", "reasoning_on": "budget"}),
        ("google-ai-studio", "gemini-flash-latest", {"reasoning": "always", "reasoning_on": "effort"}),
        ("mistral", "mistral-small-latest", {"efforts": ("none", "high"), "reasoning_off": "effort"}),
        ("mistral", "codestral-latest", {"efforts": (), "user_after_tool": False, "reads": {"pdf"}}),
        ("mistral", "mistral-medium-latest", {"efforts": ("none", "high"), "reads": {"image", "pdf"}}),
        ("mistral", "zai-glm-5-3", {"reasoning": "always", "efforts": ("low", "high", "max")}),
        ("openai", "gpt-6.1-sol", {"reasoning": "always", "reasoning_off": "none"}),
        ("openai", "gpt-6.1-terra", {"reasoning": "by_default", "reasoning_off": "effort"}),
        ("deepseek", "deepseek-v4-flash", {"reasoning_off": "thinking", "reasoning_returns": "with_tool_calls"}),
        ("groq", "qwen/qwen3-32b", {"efforts": ("none", "default"), "reasoning_off": "effort"}),
        ("groq", "openai/gpt-oss-120b", {"reasoning": "always", "efforts": ("low", "medium", "high")}),
        ("groq", "llama-3.3-70b-versatile", {"reasoning": "never", "reasoning_field": None}),
        ("google-ai-studio", "gemini-3.8-flash", {"reasoning": "always", "efforts": ("low", "medium", "high")}),
        ("google-ai-studio", "gemini-2.5-flash-image", {"makes_images": True, "tools": False}),
        ("grok", "grok-4-0709", {"reasoning": "always", "efforts": (), "successor": "grok-4.3"}),
        ("grok", "grok-4.20-0309-non-reasoning", {"reasoning": "never", "efforts": ()}),
        ("grok", "grok-4.3", {"reasoning": "by_default", "reasoning_off": "effort"}),
        ("grok", "grok-4.6", {"reasoning": "always", "efforts": ("low", "medium", "high", "xhigh")}),
        ("google-ai-studio", "gemini-2.0-flash", {"reasoning": "never", "refused_fields": frozenset()}),
        ("google-ai-studio", "gemini-2.5-pro", {"refused_fields": frozenset({"presence_penalty", "frequency_penalty"})}),
        ("cerebras", "gpt-oss-120b", {"reasoning": "always", "efforts": ("low", "medium", "high"), "developer_role": False}),
        ("perplexity", "sonar-pro", {"wire": "openai-chat", "tools": False, "successor": "perplexity/sonar"}),
        ("perplexity", "perplexity/sonar", {"retires": None, "forced_tool_choice": False}),
        ("cohere", "command-a-03-2025", {"reasoning": "never", "forced_tool_choice": True}),
        ("cohere", "command-r-plus-08-2024", {"reasoning": "never", "forced_tool_choice": False}),
        ("cohere", "command-a-reasoning-08-2025", {"reasoning": "by_default", "reasoning_off": "thinking"}),
        ("vllm", "Qwen/Qwen3.6-27B", {"reasoning": "by_default", "system_position": "first", "developer_role": False}),
        ("vllm", "Qwen/Qwen3-30B-A3B-Instruct-2507", {"reasoning": None}),
        ("anthropic", "claude-opus-4-8", {"system_position": "after_user"}),
        ("anthropic", "claude-sonnet-5", {"system_position": "leading"}),
        ("anthropic", "claude-haiku-5-5", {"system_position": "after_user", "reasoning_off": "thinking"}),
        ("deepseek", "deepseek-flash", {"reads": frozenset({"image"}), "json_schema": False}),
        ("deepseek", "deepseek-v4-pro", {"reads": frozenset(), "forced_tool_choice_while_reasoning": False}),
        ("ollama", "llama3.1:8b", {"reasoning": "never", "efforts": ()}),
        ("ollama", "gpt-oss:20b", {"reasoning": "always", "reasoning_off": "none", "reasoning_field": "reasoning"}),
        ("llama-cpp", "gemma-4-31b", {"reasoning": "on_request", "reasoning_field": "reasoning_content"}),
        ("anthropic", "claude-sonnet-5", {"reasoning_is_bound": False}),
        ("anthropic", "claude-fable-5-2", {"reasoning_is_bound": True, "reasoning": "always"}),
        ("cerebras", "qwen-3.8-27b", {"reasoning_field": "reasoning", "tools_strict_alike": True}),
        ("google-ai-studio", "gemini-4-argon", {"output_tokens_max_unstreamed": 32_768, "output_tokens_max": 65_536}),
        ("grok", "grok-4.7", {"tool_names_reserved": frozenset({"tool_search", "web_search"})}),
        ("groq", "qwen/qwen3.8-27b", {"json_schema": True, "json_schema_with_tools": False}),
        ("openai", "gpt-4o", {"tool_names_reserved": frozenset()}),
        ("openai", "o4-mini", {"tool_names_reserved": frozenset({"python"})}),
        ("workers-ai", "@cf/google/gemma-4-26b-a4b-it", {"reasoning": "on_request", "efforts": ("none", "high")}),
    ],
)
def test_what_is_known_of_a_model(vendor, model, expected):
    facts = MODELS.facts(vendor, model)

    assert {name: getattr(facts, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("vendor", "model", "retires", "successor"),
    [
        ("openai", "gpt-4o", "2027-01-14", "gpt-6-luna"),
        ("openai", "gpt-4o-mini-2024-07-18", "2027-01-14", "gpt-6-luna"),
        ("openai", "gpt-4o-2024-05-13", "2026-10-23", "gpt-5.6-sol"),
        ("openai", "gpt-4-turbo-2024-04-09", "2026-10-23", "gpt-5.6-sol"),
        ("openai", "o3", "2026-12-11", "gpt-6.1-sol"),
        ("openai", "gpt-5-2025-08-07", "2026-12-11", "gpt-6.1-sol"),
        ("openai", "gpt-5.1-codex-mini", "2026-07-23", "gpt-5.6-terra"),
        ("openai", "gpt-5.6-sol", None, None),
        ("azure-openai", "gpt-4o", None, None),
        ("anthropic", "claude-sonnet-4-20250514", "2026-06-15", "claude-sonnet-4-6"),
        ("anthropic", "claude-sonnet-4-5", "2026-11-30", "claude-sonnet-5-5"),
        ("anthropic", "claude-haiku-4-5", None, None),
        ("groq", "llama-3.3-70b-versatile", "2026-08-16", "openai/gpt-oss-120b"),
        ("mistral", "mistral-large-2411", "2026-05-31", "mistral-medium-3-5"),
        ("grok", "grok-build-0.1", "2026-11-19", None),
        ("anthropic", "claude-opus-4-5-20251101", "2027-01-22", "claude-opus-5-5"),
        ("anthropic", "claude-opus-5-5", None, None),
        ("google-ai-studio", "gemini-2.5-flash", "2026-12-01", "gemini-3.5-flash-lite"),
        ("google-ai-studio", "gemini-2.5-flash-lite", None, None),
    ],
)
def test_when_a_model_retires_and_what_follows_it(vendor, model, retires, successor):
    facts = MODELS.facts(vendor, model)

    assert (facts.retires, facts.successor) == (retires, successor)


@pytest.mark.parametrize("vendor", sorted({vendor for row in MODELS.rows for vendor in row.vendors}))
def test_what_switches_reasoning_off_is_among_what_the_model_takes(vendor):
    """A model that the effort `none` switches off takes that word, and one that always reasons has no switch."""
    models = ["gpt-5.1", "gpt-5.6", "gpt-6-astra", "claude-opus-5-5", "mistral-small-latest", "qwen/qwen3-32b", "grok-4.3", "x"]
    for model in models:
        facts = MODELS.facts(vendor, model)
        if facts.reasoning_off == "effort" and facts.efforts is not None:
            assert "none" in facts.efforts
        if facts.reasoning == "always":
            assert facts.reasoning_off == "none"


def test_no_name_stalls_a_pattern():
    """Names have at most 200 characters, so this is about a pattern that takes longer than they are long."""
    for pattern in {row.models for row in MODELS.rows} | {row.tool_name_pattern or "" for row in MODELS.rows}:
        for text in expressions.hostile(pattern, 0, 1 << 12):
            re.match(pattern, text)
            re.fullmatch(pattern, text)


def test_later_rows_win_for_the_facts_that_they_name():
    general = ModelRow(vendors=("vllm",), context_tokens=8_000, forced_tool_choice=False)
    special = ModelRow(vendors=("vllm", "ollama"), models="qwen3", context_tokens=32_000)

    facts = ModelTable([general, special]).facts("vllm", "qwen3-8b")

    assert (facts.context_tokens, facts.forced_tool_choice) == (32_000, False)


@pytest.mark.parametrize(("vendor", "model"), [("vllm", "other"), ("groq", "qwen3-8b"), ("vllm", "qwen3" + "x" * 200)])
def test_a_model_that_no_row_matches_is_unknown(vendor, model):
    assert ModelTable([ModelRow(vendors=("vllm",), models="qwen3", context_tokens=1)]).facts(vendor, model) == UNKNOWN


def test_the_settings_correct_the_table():
    row = {"vendors": ["openai"], "models": "gpt-5\\.4", "wire_with_tools": None}

    assert MODELS.facts("openai", "gpt-5.4").wire_with_tools == "openai-responses"
    assert Settings(model_facts=[row]).model_table.facts("openai", "gpt-5.4").wire_with_tools is None


@pytest.mark.parametrize("row", [{"vendors": ["openai"], "models": "("}, {"vendors": []}, {"vendors": ["x"], "colour": 1}])
def test_a_row_that_cannot_be_read_stops_the_start(row):
    with pytest.raises(ValidationError, match="model_facts"):
        Settings(model_facts=[row])
