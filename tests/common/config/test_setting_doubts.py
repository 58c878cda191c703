"""What is told of settings that can hardly be meant so?"""

import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.config.compose_variables import COMPOSE_VARIABLES
from common.config.groups.models import ProviderSettings
from common.config.setting_doubts import find_doubts, log_doubts
from common.config.settings import Settings

PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
OPENAI = {"providers": {"openai": ProviderSettings(api_keys=("k",))}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("SLUICE_"):
            monkeypatch.delenv(name)
    return tmp_path


def told(**settings: Any) -> list[str]:
    return [f"{doubt.problem} {doubt.mend}" for doubt in find_doubts(Settings(**{**OPENAI, **settings}))]


def test_good_settings_are_in_no_doubt():
    good: dict[str, Any] = {
        "aliases": {"fast": ["openai/gpt-5"]},
        "default_provider": "openai",
        "prices": {"openai/gpt-5": PRICE},
        "guardrails": {"patterns": "block"},
        "guardrail_patterns_in": ("x",),
        "guardrails_by_model": {"openai/*": {"pii": "block"}, "*": {"size": "log"}},
        "cache_models": {"openai/gpt-*": {"ttl_s": 60}, "fast": {"ttl_s": 0}, "*": {"policy": "all"}},
        "cache_dialects": {"unified": {"ttl_s": 60}},
        "tenants": {"acme": {"models": ["gpt-*", "openai/*", "*/x"], "providers": ["open*"], "dialects": ["openai-chat"]}},
    }

    assert told(**good) == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SLUICE_API_KEY", "SLUICE_API_KEYS"),
        ("SLUICE_GUARDRAIL", "SLUICE_GUARDRAILS"),
        ("sluice_prot", "SLUICE_PORT"),
        ("SLUICE_PUBLISCH", "SLUICE_PUBLISH"),
    ],
)
def test_a_name_like_one_of_ours_is_told_with_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch, name: str, near: str):
    monkeypatch.setenv(name, "value")

    (doubt,) = find_doubts(Settings(**OPENAI))

    assert name in doubt.problem
    assert near in doubt.mend
    assert doubt.is_fault
    assert "value" not in repr(doubt)


def test_a_name_like_none_of_ours_may_be_somebody_else_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_COLOUR_OF_THE_BOATHOUSE", "red")

    (doubt,) = find_doubts(Settings(**OPENAI))

    assert not doubt.is_fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLUICE_SERVICE_HOST", "10.0.0.1"),
        ("SLUICE_API_SERVICE_PORT_HTTP", "80"),
        ("SLUICE_API_PORT", "tcp://10.0.0.1:80"),
        ("SLUICE_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_kubernetes_sets_is_nobody_s_mistake(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)

    assert told() == []


@pytest.mark.parametrize("name", sorted(COMPOSE_VARIABLES))
def test_what_compose_reads_from_the_same_file_is_in_no_doubt(elsewhere: Path, name: str):
    (elsewhere / ".env").write_text(f"{name}=1\n")

    assert told() == []


def test_a_name_in_the_env_file_is_told_too(elsewhere: Path):
    (elsewhere / ".env").write_text("SLUICE_LIMIT={}\nOTHER=1\n")

    (said,) = told()

    assert f"SLUICE_LIMIT in {elsewhere}/.env" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aliases": {"fast": ["opnai/gpt-5"]}}, ["SLUICE_ALIASES", "'fast'", "'opnai/gpt-5'"]),
        ({"aliases": {"fast": ["openai/gpt-5", "anthropic/x"]}}, ["SLUICE_ALIASES", "ANTHROPIC_API_KEY"]),
        ({"aliases": {"fast": ["openai/*"]}}, ["SLUICE_ALIASES", "a pattern"]),
        (
            {
                "routes": {
                    "r": {"targets": ["openai/gpt-5"], "fallbacks": [{"model": "openai/gpt-4o", "when": ["context_overflow"]}]}
                }
            },
            ["SLUICE_ROUTES", "'openai/gpt-4o'", "no larger context window", "128,000"],
        ),
        ({"model_map": {"gpt-4": "claude-opus-4-1"}}, ["SLUICE_MODEL_MAP", "'gpt-4'", "ANTHROPIC_API_KEY"]),
        ({"default_provider": "opnai"}, ["SLUICE_DEFAULT_PROVIDER", "Did you mean openai?"]),
        ({"default_provider": "mistral"}, ["SLUICE_DEFAULT_PROVIDER", "MISTRAL_API_KEY"]),
        ({"prices": {"gpt-5": PRICE}}, ["SLUICE_PRICES", "provider/model"]),
        ({"prices": {"opnai/gpt-5": PRICE}}, ["SLUICE_PRICES", "Did you mean openai?"]),
        ({"guardrails_by_model": {"opnai/*": {"pii": "block"}}}, ["SLUICE_GUARDRAILS_BY_MODEL", "Did you mean openai?"]),
        ({"cache_models": {"opnai/*": {"ttl_s": 60}}}, ["SLUICE_CACHE_MODELS", "Did you mean openai?"]),
        ({"guardrails": {"patterns": "block"}}, ["'patterns'", "SLUICE_GUARDRAIL_PATTERNS_IN"]),
        ({"tenants": {"a": {"guardrails": {"custom": "log"}}}}, ["'custom'", "SLUICE_GUARDRAIL_PLUGIN"]),
        ({"tenants": {"a": {"providers": ["opnai"]}}}, ["SLUICE_TENANTS", "Did you mean openai?"]),
        ({"tenants": {"a": {"models": ["opnai/*"]}}}, ["SLUICE_TENANTS", "'opnai'"]),
        ({"tenants": {"a": {"dialects": ["openai"]}}}, ["SLUICE_TENANTS", "openai-chat"]),
        ({"providers": {"openai": {"limits": {"requests": 5}}}}, ["'openai'", "OPENAI_API_KEY"]),
        ({"providers": {"openai": {"api_keys": "k", "base_url": "http://localhost:8080/v1"}}}, ["own address"]),
        ({"providers": {"openai": {"api_keys": "your_openai_api_key_here"}}}, ["'openai'", "placeholder", "refuses"]),
    ],
)
def test_what_leads_nowhere_is_told(settings: dict[str, Any], words: list[str]):
    (said,) = told(**settings)

    assert all(word in said for word in words), said


def test_a_process_logs_them_when_it_starts():
    with capture_logs() as logs:
        log_doubts(Settings(**OPENAI, default_provider="opnai"))

    (line,) = logs
    assert (line["event"], line["log_level"]) == ("setting_in_doubt", "warning")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
        ("ANTROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        ("GROQ_APIKEY", "GROQ_API_KEY"),
        ("mistral_api_key", "MISTRAL_API_KEY"),
        ("GEMINI_API_KEYS", "GEMINI_API_KEY"),
        ("COHERE_API_BASE", "COHERE_BASE_URL"),
        ("VLLM_URL", "VLLM_BASE_URL"),
    ],
)
def test_a_name_that_is_nearly_a_provider_s_variable_is_told(elsewhere: Path, name: str, near: str):
    (elsewhere / ".env").write_text(f"{name}=value\n")

    assert told() == [f"{name} in {elsewhere}/.env has no effect: there is no such variable. Did you mean {near}?"]


@pytest.mark.parametrize(
    "name",
    ["ANTHROPIC_MODEL", "ANTHROPIC_AUTH_TOKEN", "OPENAI_ORG_ID", "OPENROUTER_API_KEY", "ZAI_API_KEY", "DEMO_URL", "API_KEY"],
)
def test_a_variable_of_another_program_is_in_no_doubt(elsewhere: Path, name: str):
    (elsewhere / ".env").write_text(f"{name}=value\n")

    assert told() == []


def test_a_near_name_in_the_environment_may_be_another_program_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_KEY", "value")

    (doubt,) = find_doubts(Settings(**OPENAI))

    assert not doubt.is_fault
