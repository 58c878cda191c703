import re

import pytest

from common.vendors.model_names import CLAUDE_FOR_OPENAI, MODEL_NAMES
from common.vendors.models import MODELS
from common.vendors.table import VENDOR_IDS, VENDORS
from workers.providers import WIRES


def test_ids_and_aliases_are_those_that_are_promised():
    assert {
        "openai": "openai",
        "anthropic": "anthropic",
        "google-ai-studio": "google-ai-studio",
        "google": "google-ai-studio",
        "gemini": "google-ai-studio",
        "mistral": "mistral",
        "groq": "groq",
        "grok": "grok",
        "xai": "grok",
        "deepseek": "deepseek",
        "cerebras": "cerebras",
        "perplexity": "perplexity",
        "azure-openai": "azure-openai",
        "azure": "azure-openai",
        "cohere": "cohere",
        "workers-ai": "workers-ai",
        "cloudflare": "workers-ai",
        "demo": "demo",
    }.items() <= VENDOR_IDS.items()


@pytest.mark.parametrize("vendor", VENDORS.values(), ids=lambda vendor: vendor.id)
def test_a_row_names_wires_that_are_spoken(vendor):
    assert set(vendor.wires) <= set(WIRES)
    assert set(vendor.paths) | set(vendor.gateway) <= set(vendor.wires)
    assert re.fullmatch(r"[A-Z_]+", vendor.env)


def test_names_and_variables_are_nobody_else_s():
    names = [name for vendor in VENDORS.values() for name in (vendor.id, *vendor.aliases)]

    assert len(set(names)) == len(names)
    assert len({vendor.env for vendor in VENDORS.values()}) == len(VENDORS)
    assert set(MODEL_NAMES) <= set(VENDORS)


@pytest.mark.parametrize(
    ("dialect", "model", "wire"),
    [
        ("openai-chat", "gpt-5", "openai-chat"),
        ("openai-responses", "gpt-5", "openai-responses"),
        ("anthropic-messages", "gpt-5", "openai-chat"),
        ("openai-chat", "o3-pro", "openai-responses"),
        ("agentary", "gpt-5.1-codex-mini", "openai-responses"),
    ],
)
def test_the_wire_is_the_client_s_own_where_there_is_one(dialect, model, wire):
    assert VENDORS["openai"].wire_for(dialect, MODELS.facts("openai", model).wire) == wire


def test_the_model_map_leads_to_models_that_are_known():
    assert {target.partition("/")[2] for target in CLAUDE_FOR_OPENAI.values()} <= set(MODEL_NAMES["anthropic"])
