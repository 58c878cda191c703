"""What is sent to the Claude models that think by effort: no budget, and none of the sampling that they refuse."""

from typing import Any

import orjson
import pytest

from common.canonical.generation import GenerationRequest, Message, Reasoning, ResponseFormat, Role, TextPart, Tool, ToolChoice
from common.vendors.models import MODELS
from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import Deployment

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}


def build(model: str, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    request = GenerationRequest("m", [Message(Role.USER, [TextPart("x")])], **fields)
    facts = MODELS.facts("anthropic", model)
    built = ANTHROPIC.build_request(request, Deployment("anthropic", "http://h", "k", model, facts=facts))
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
    ["claude-sonnet-4-5", "claude-opus-4-1", "claude-sonnet-4-20250514", "claude-3-haiku-20240307"],
)
def test_models_before_them_keep_their_temperature(model):
    body, dropped = build(model, temperature=0.7)

    assert (body["temperature"], body["max_tokens"], dropped) == (0.7, 4096, [])


@pytest.mark.parametrize(
    ("reasoning", "effort", "named"),
    [
        (Reasoning(), None, []),
        (Reasoning(effort="minimal"), "low", ["reasoning"]),
        (Reasoning(effort="xhigh"), "xhigh", []),
        (Reasoning(budget_tokens=1024), "low", []),
        (Reasoning(budget_tokens=16_384), "high", []),
        (Reasoning(budget_tokens=100_000), "max", []),
    ],
)
def test_an_effort_or_a_budget_becomes_an_effort(reasoning, effort, named):
    body, dropped = build("claude-sonnet-5-5", reasoning=reasoning, response_format=ResponseFormat(SCHEMA))

    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}  # Otherwise it would be hidden.
    assert body["output_config"].get("effort") == effort
    assert "format" in body["output_config"]
    assert dropped == named


FORCED: dict[str, Any] = {"tools": [Tool("f")], "tool_choice": ToolChoice("required")}


@pytest.mark.parametrize(("reasoning", "named"), [(Reasoning(effort="high"), ["reasoning"]), (None, [])])
def test_a_forced_call_goes_without_thinking(reasoning, named):
    body, dropped = build("claude-sonnet-5", reasoning=reasoning, **FORCED)

    assert (body["thinking"], body["tool_choice"]) == ({"type": "disabled"}, {"type": "any"})
    assert "output_config" not in body
    assert dropped == named


def test_a_model_that_refuses_forced_calls_may_choose():
    body, dropped = build("claude-sonnet-5-5", reasoning=Reasoning(effort="high"), **FORCED)

    assert (body["thinking"]["type"], body["tool_choice"]) == ("adaptive", {"type": "auto"})
    assert dropped == ["tool_choice"]


@pytest.mark.parametrize(
    ("model", "thinking", "effort", "named"),
    [
        ("claude-sonnet-4-5", None, None, []),  # Thinks only when asked.
        ("claude-sonnet-5", {"type": "disabled"}, None, []),
        ("claude-sonnet-5-5", {"type": "between_tools"}, None, []),
        ("claude-opus-5-5", None, "low", ["reasoning"]),
    ],
)
def test_thinking_is_switched_off_as_far_as_the_model_can(model, thinking, effort, named):
    body, dropped = build(model, reasoning=Reasoning(enabled=False))

    assert (body.get("thinking"), body.get("output_config", {}).get("effort"), dropped) == (thinking, effort, named)
