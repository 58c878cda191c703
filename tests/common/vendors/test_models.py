"""Is each row of the table of models one that can be used, and does a later row win?"""

import re

import pytest
from pydantic import ValidationError

from common.config.settings import Settings
from common.vendors.models import MODELS, UNKNOWN, ModelRow, ModelTable
from common.vendors.table import VENDORS


@pytest.mark.parametrize("row", MODELS.rows, ids=lambda row: f"{row.vendors[0]}:{row.models}")
def test_each_row_is_of_a_known_vendor_and_says_where_it_comes_from(row):
    assert set(row.vendors) <= set(VENDORS)
    assert row.source.startswith("https://")
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", row.date)
    assert row.facts
    for wire in filter(None, (row.wire, row.wire_with_tools)):
        assert all(wire in VENDORS[vendor].wires for vendor in row.vendors)


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
