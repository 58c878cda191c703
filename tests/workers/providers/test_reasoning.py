"""Which words a wish for reasoning becomes, for each kind of model in the table."""

from typing import Any

import orjson
import pytest

from common.canonical.generation import Reasoning
from common.dialects import DIALECTS
from common.vendors.models import MODELS, UNKNOWN, ModelFacts
from workers.providers import WIRES
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE
from workers.providers.openai_responses.wire import OPENAI_RESPONSES
from workers.providers.shared.reasoning import ReasoningWords, reasoning_words

OFF = Reasoning(enabled=False)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (ModelFacts(reasoning="never"), ReasoningWords()),
        (ModelFacts(reasoning="on_request"), ReasoningWords()),
        (ModelFacts(reasoning="by_default", reasoning_off="effort"), ReasoningWords(effort="none")),
        (ModelFacts(reasoning="by_default", reasoning_off="thinking"), ReasoningWords(thinking="disabled")),
        (ModelFacts(reasoning="by_default", reasoning_off="between_tools"), ReasoningWords(thinking="between_tools")),
        (ModelFacts(reasoning="by_default", reasoning_off="budget"), ReasoningWords(budget_tokens=0)),
        (
            ModelFacts(reasoning="always", efforts=("minimal", "low")),
            ReasoningWords(effort="minimal", dropped=("reasoning",)),
        ),
        (ModelFacts(reasoning="always", budget_tokens_min=128), ReasoningWords(budget_tokens=128, dropped=("reasoning",))),
        (ModelFacts(reasoning="always", efforts=("default",)), ReasoningWords(dropped=("reasoning",))),
        (UNKNOWN, ReasoningWords(dropped=("reasoning",))),
    ],
)
def test_off_is_off_or_named(facts: ModelFacts, words: ReasoningWords) -> None:
    assert reasoning_words(OFF, facts) == words


@pytest.mark.parametrize(
    ("asked", "efforts", "sent"),
    [
        ("low", ("low", "high"), "low"),
        ("medium", ("low", "high", "max"), "high"),  # As DeepSeek maps them.
        ("xhigh", ("low", "high", "max"), "high"),
        ("minimal", ("none", "low", "medium"), "low"),
        ("max", ("none", "low", "medium", "high", "xhigh"), "xhigh"),
        ("low", ("none", "high"), "high"),
        ("medium", ("none", "default"), "default"),
        ("ultra", ("low", "medium", "high"), "medium"),
        ("xhigh", None, "xhigh"),
        ("low", ("none",), None),
        ("low", (), None),
    ],
)
def test_the_nearest_effort_is_sent_and_another_one_is_named(asked: str, efforts: tuple[str, ...] | None, sent: str) -> None:
    words = reasoning_words(Reasoning(effort=asked), ModelFacts(efforts=efforts))

    assert (words.effort, words.dropped) == (sent, () if sent == asked else ("reasoning",))


@pytest.mark.parametrize(
    ("budget_tokens", "efforts", "effort"),
    [
        (500, None, "low"),
        (4000, None, "medium"),
        (31_999, None, "high"),
        (31_999, ("low", "high", "max"), "max"),
        (4000, ("none", "default"), "default"),
    ],
)
def test_a_budget_becomes_an_effort(budget_tokens: int, efforts: tuple[str, ...] | None, effort: str) -> None:
    words = reasoning_words(Reasoning(budget_tokens=budget_tokens), ModelFacts(efforts=efforts))

    assert (words.effort, words.dropped) == (effort, ())


def test_an_effort_becomes_a_budget_within_the_models_limits() -> None:
    facts = ModelFacts(reasoning_on="budget", budget_tokens_min=1024, budget_tokens_max=20_000)

    assert reasoning_words(Reasoning(effort="low"), facts).budget_tokens == 2048
    assert reasoning_words(Reasoning(effort="max"), facts).budget_tokens == 20_000
    assert reasoning_words(Reasoning(budget_tokens=5), facts).budget_tokens == 1024
    assert reasoning_words(Reasoning(), facts).budget_tokens is None


def test_a_hint_goes_only_to_models_that_are_known_to_take_an_effort() -> None:
    hint = Reasoning(effort="high", effort_is_hint=True)

    assert reasoning_words(hint, UNKNOWN) == ReasoningWords(is_on=True, is_shown=True, dropped=("reasoning",))
    assert reasoning_words(hint, ModelFacts(efforts=("low", "high"))).effort == "high"
    assert reasoning_words(hint, ModelFacts(reasoning="never")).dropped == ("reasoning",)


# What the wires send


def build(vendor: str, model: str, wire: str = "openai-chat", dialect: str = "openai-chat", **fields: Any) -> UpstreamRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    deployment = Deployment(vendor, "http://h", "k", model, facts=MODELS.facts(vendor, model))
    return WIRES[wire].build_request(DIALECTS[dialect].parse(body), deployment)


def send(vendor: str, model: str, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    request = build(vendor, model, **fields)
    return orjson.loads(request.body), request.dropped


def pass_on(vendor: str, model: str, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    deployment = Deployment(vendor, "http://h", "k", model, facts=MODELS.facts(vendor, model))
    request = OPENAI_COMPATIBLE.pass_request(body, {}, deployment)
    return orjson.loads(request.body), request.dropped


@pytest.mark.parametrize("sent_by", [send, pass_on])
def test_deepseek_is_told_to_stop_thinking(sent_by: Any) -> None:
    body, dropped = sent_by("deepseek", "deepseek-v4-pro", reasoning_effort="none")

    assert body["thinking"] == {"type": "disabled"}
    assert "reasoning_effort" not in body
    assert dropped == []


@pytest.mark.parametrize("sent_by", [send, pass_on])
def test_a_forced_call_of_deepseek_goes_without_thinking(sent_by: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]

    body, dropped = sent_by("deepseek", "deepseek-v4-pro", tools=tools, tool_choice="required")

    assert (body["thinking"], body["tool_choice"], dropped) == ({"type": "disabled"}, "required", [])


def test_who_speaks_of_thinking_itself_is_understood() -> None:
    body, dropped = pass_on("deepseek", "deepseek-v4-pro", thinking={"type": "enabled"}, reasoning_effort="medium")

    assert (body["thinking"], body["reasoning_effort"], dropped) == ({"type": "enabled"}, "medium", [])


def test_sampling_is_left_out_only_while_the_model_reasons() -> None:
    assert send("openai", "gpt-5.6", temperature=0.5)[1] == ["temperature"]
    assert send("openai", "gpt-5.6", temperature=0.5, reasoning_effort="none")[1] == []
    assert send("openai", "gpt-5.6", wire="openai-responses", temperature=0.5)[1] == ["temperature"]


def test_openai_itself_answers_its_clients_in_its_own_words() -> None:
    body, dropped = pass_on("openai", "gpt-5.6", reasoning_effort="minimal", temperature=0.5, stop="x")

    assert (body["reasoning_effort"], body["temperature"], body["stop"], dropped) == ("minimal", 0.5, "x", [])


# Thoughts on their way back

CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
TURN: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "reasoning_content": "T1", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c", "content": "r"},
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "that"},
    {"role": "user", "content": "more"},
]


def thoughts(body: dict[str, Any], name: str) -> list[Any]:
    return [message.get(name) for message in body["messages"] if message["role"] == "assistant"]


@pytest.mark.parametrize("sent_by", [send, pass_on])
def test_all_messages_of_a_turn_with_calls_bring_their_thought_back(sent_by: Any) -> None:
    body, _ = sent_by("deepseek", "deepseek-v4-pro", messages=TURN)

    assert thoughts(body, "reasoning_content") == ["T1", "", None]


@pytest.mark.parametrize("sent_by", [send, pass_on])
def test_groq_gets_them_in_its_own_field(sent_by: Any) -> None:
    body, dropped = sent_by("groq", "openai/gpt-oss-120b", messages=TURN)

    assert thoughts(body, "reasoning")[0] == "T1"
    assert thoughts(body, "reasoning_content") == [None, None, None]
    assert dropped == []


def test_models_that_never_see_their_thoughts_get_none() -> None:
    body, _ = send("openai", "gpt-5", messages=TURN)

    assert thoughts(body, "reasoning_content") == thoughts(body, "reasoning") == [None, None, None]


@pytest.mark.parametrize("vendor", ["deepseek", "groq", "vllm"])
def test_a_conversation_keeps_its_prefix(vendor: str) -> None:
    model = {"groq": "openai/gpt-oss-120b"}.get(vendor, "m")
    bodies = [send(vendor, model, messages=TURN[:length])[0]["messages"] for length in (3, 5, 7)]

    assert bodies[1][:3] == bodies[0]
    assert bodies[2][:5] == bodies[1]


def test_the_responses_of_another_vendor_get_its_efforts() -> None:
    body = {"model": "m", "input": "x", "reasoning": {"effort": "minimal", "summary": "auto"}}
    deployment = Deployment("grok", "http://h", "k", "grok-4.3", facts=MODELS.facts("grok", "grok-4.3"))

    request = OPENAI_RESPONSES.pass_request(body, {}, deployment)

    assert orjson.loads(request.body)["reasoning"] == {"effort": "low", "summary": "auto"}
    assert request.dropped == ["reasoning.effort"]


def test_models_of_a_known_maker_keep_their_facts_at_a_server_of_ones_own() -> None:
    assert MODELS.facts("lab", "claude-sonnet-5", "anthropic") == MODELS.facts("anthropic", "claude-sonnet-5")
    assert MODELS.facts("lab", "claude-sonnet-5") == UNKNOWN
