"""What is sent to the Claude models that think by effort: no budget, and none of the sampling that they refuse."""

from typing import Any

import orjson
import pytest

from common.canonical.generation import GenerationRequest, Message, Reasoning, ResponseFormat, Role, TextPart, Tool, ToolChoice
from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import Deployment


def build(model: str, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    request = GenerationRequest("m", [Message(Role.USER, [TextPart("x")])], **fields)
    built = ANTHROPIC.build_request(request, Deployment("anthropic", "http://h", "k", model))
    return orjson.loads(built.body), built.dropped


@pytest.mark.parametrize(
    "model", ["claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5", "claude-opus-4-7", "claude-mythos-5"]
)
def test_sampling_is_left_out_and_named(model):
    body, dropped = build(model, temperature=0.7, top_p=0.9, top_k=5)

    assert {"temperature", "top_p", "top_k", "thinking"}.isdisjoint(body)
    assert dropped == ["temperature", "top_p", "top_k"]
    assert body["max_tokens"] == 32_000  # Thinking is part of it.


@pytest.mark.parametrize(
    "model",
    ["claude-sonnet-4-5", "claude-sonnet-4-6", "claude-opus-4-1", "claude-sonnet-4-20250514", "claude-3-haiku-20240307"],
)
def test_models_before_them_keep_their_temperature(model):
    body, dropped = build(model, temperature=0.7)

    assert (body["temperature"], body["max_tokens"], dropped) == (0.7, 4096, [])


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        (Reasoning(), None),
        (Reasoning(effort="minimal"), "low"),
        (Reasoning(effort="xhigh"), "xhigh"),
        (Reasoning(budget_tokens=1024), "low"),
        (Reasoning(budget_tokens=16_384), "high"),
        (Reasoning(budget_tokens=100_000), "max"),
    ],
)
def test_an_effort_or_a_budget_becomes_an_effort(reasoning, effort):
    body, dropped = build("claude-sonnet-5-5", reasoning=reasoning, response_format=ResponseFormat({"type": "object"}))

    assert body["thinking"] == {"type": "adaptive"}
    assert body["output_config"].get("effort") == effort
    assert "format" in body["output_config"]
    assert dropped == []


def test_a_forced_call_goes_without_thinking():
    forced = {"tools": [Tool("f")], "tool_choice": ToolChoice("required")}

    body, dropped = build("claude-sonnet-5-5", reasoning=Reasoning(effort="high"), **forced)

    assert {"thinking", "output_config"}.isdisjoint(body)
    assert dropped == ["reasoning"]
