"""A client that wants to see the reasoning sees it, from every vendor that hides it; nobody else has it summarised.

Also: earlier reasoning comes back to a vendor that checks what stood before it, without a refusal.
"""

from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from common.canonical.generation import GenerationRequest, Message, Reasoning, ReasoningPart, Role, TextPart, ToolChoice
from common.canonical.job import Job, Policy
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.dialects.base import ReplyInfo
from common.vendors.models import MODELS
from tests.support.upstreams.strict import refusal
from workers.attempt.prepare import prepare_request
from workers.providers import WIRES
from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import Deployment, UpstreamRequest
from workers.upstream.deployments import deployments

HIDING = [
    "openai/gpt-5",
    "openai/gpt-5.6",
    "azure-openai/gpt-5.6",
    "anthropic/claude-opus-4-8",
    "google-ai-studio/gemini-2.5-pro",
    "grok/grok-4.6",
]
SETTINGS = Settings(
    azure_resource="r",
    providers={name: ProviderSettings(api_keys=(SecretStr("k"),)) for name in {target.partition("/")[0] for target in HIDING}},
)
ASKED = [{"role": "user", "content": "hi"}]
# For each dialect: a request that wants to see the reasoning, and one that wants reasoning alone.
WISHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "anthropic-messages": (
        {"messages": ASKED, "max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 4000}},
        {
            "messages": ASKED,
            "max_tokens": 9000,
            "thinking": {"type": "adaptive", "display": "omitted"},
            "output_config": {"effort": "low"},
        },
    ),
    "openai-responses": (
        {"input": "hi", "reasoning": {"effort": "low", "summary": "auto"}},
        {"input": "hi", "reasoning": {"effort": "low"}},
    ),
}


def sent(dialect: str, target: str, fields: dict[str, Any]) -> tuple[UpstreamRequest, dict[str, Any], Deployment]:
    body = {"model": target, "stream": True, **fields}
    job = Job("gen_a", "req_1", dialect, target, True, Policy.STOP, grace_s=0, created_s=1, body=orjson.dumps(body))
    deployment = deployments(job, SETTINGS)[0]
    request, _ = prepare_request(job, WIRES[deployment.wire], deployment, ReplyInfo("gen_a", target, 1, body=body))
    return request, orjson.loads(request.body), deployment


def asks_to_show(body: dict[str, Any]) -> bool:
    config = body.get("generationConfig", {}).get("thinkingConfig", {})
    shown = [body.get("reasoning", {}).get("summary"), body.get("thinking", {}).get("display") == "summarized"]
    return any([*shown, config.get("includeThoughts")])


@pytest.mark.parametrize("target", HIDING)
@pytest.mark.parametrize("dialect", WISHES)
def test_whoever_wants_to_see_it_does_and_nobody_else(dialect: str, target: str) -> None:
    if (dialect, target.partition("/")[0]) == ("anthropic-messages", "anthropic"):
        return  # Its own client, whose body passes unchanged.
    wants, wants_not = WISHES[dialect]

    shown, hidden = sent(dialect, target, wants)[1], sent(dialect, target, wants_not)[1]

    assert (asks_to_show(shown), asks_to_show(hidden)) == (True, False)


@pytest.mark.parametrize("target", ["anthropic/claude-opus-4-8", "google-ai-studio/gemini-2.5-pro"])
@pytest.mark.parametrize(("effort", "is_shown"), [("low", True), ("none", False)])
def test_an_effort_of_chat_completions_is_shown_by_other_vendors(target: str, effort: str, is_shown: bool) -> None:
    assert asks_to_show(sent("openai-chat", target, {"messages": ASKED, "reasoning_effort": effort})[1]) is is_shown


@pytest.mark.parametrize("target", HIDING)
def test_formats_without_reasoning_do_not_ask_for_it(target: str) -> None:
    provider = target.partition("/")[0]
    fields = {"provider": provider, "messages": ASKED, "reasoning_effort": "low"}
    request = sent("unified", target, fields)

    assert not asks_to_show(request[1])


def test_a_request_that_responses_cannot_express_stays_on_the_other_wire() -> None:
    _, body, deployment = sent("anthropic-messages", "openai/gpt-5", WISHES["anthropic-messages"][0] | {"stop_sequences": []})
    assert deployment.wire == "openai-responses"
    assert "summary" in body["reasoning"]

    facts = {"stop_sequences": ["X"], "model": "openai/gpt-5"}
    job_body = WISHES["anthropic-messages"][0] | facts
    job = Job(
        "gen_a",
        "r",
        "anthropic-messages",
        "openai/gpt-5",
        True,
        Policy.STOP,
        grace_s=0,
        created_s=1,
        body=orjson.dumps(job_body),
    )
    assert deployments(job, SETTINGS)[0].wire == "openai-chat"


def test_xai_gets_its_reasoning_back_from_clients_of_another_family() -> None:
    thinking = {"type": "thinking", "thinking": "t", "signature": "openai-responses:U0VBTEVE"}
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "done"}
    history = [*ASKED, {"role": "assistant", "content": [thinking, call]}, {"role": "user", "content": [result]}]

    wishes = {**WISHES["anthropic-messages"][0], "messages": history}
    request, body, deployment = sent("anthropic-messages", "grok/grok-4.6", wishes)

    assert deployment.wire == "openai-responses"
    assert [item.get("encrypted_content") for item in body["input"]] == [None, "U0VBTEVE", None, None]
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body["store"] is False
    assert refusal("grok", "/v1/responses", request.headers, body) is None


# Reasoning that is bound to what stood before it

BOUND = "claude-sonnet-5-5"
HISTORY = [
    Message(Role.USER, [TextPart("q")]),
    Message(Role.ASSISTANT, [ReasoningPart("t", "c2ln"), TextPart("a")]),
    Message(Role.USER, [TextPart("more")]),
]


def build(model: str, messages: list[Message], **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    deployment = Deployment("anthropic", "http://h", "k", model, facts=MODELS.facts("anthropic", model))
    request = ANTHROPIC.build_request(GenerationRequest("m", messages, **fields), deployment)
    body = orjson.loads(request.body)
    assert refusal("anthropic", "/v1/messages", request.headers, body) is None
    return body, request.headers


@pytest.mark.parametrize("reasoning", [None, Reasoning(effort="low")])
def test_thoughts_before_which_something_changed_are_dropped_instead_of_refused(reasoning: Reasoning | None) -> None:
    body, headers = build(BOUND, HISTORY, reasoning=reasoning)

    assert body["thinking"]["type"] == "adaptive"
    assert body["thinking"]["block_binding"] == {"prefix_mismatch_behavior": "drop_block"}
    assert headers["anthropic-beta"] == "thinking-binding-controls-2026-08-01"
    assert body["messages"][1]["content"][0] == {"type": "thinking", "thinking": "t", "signature": "c2ln"}


def test_without_thinking_they_are_left_out() -> None:
    body, headers = build(BOUND, HISTORY, reasoning=Reasoning(enabled=False))

    assert body["thinking"] == {"type": "between_tools"}
    assert body["messages"][1]["content"] == [{"type": "text", "text": "a"}]
    assert "anthropic-beta" not in headers


@pytest.mark.parametrize(("model", "messages"), [("claude-sonnet-5", HISTORY), (BOUND, HISTORY[:1])])
def test_who_does_not_check_or_has_no_thoughts_is_told_nothing(model: str, messages: list[Message]) -> None:
    body, headers = build(model, messages, tool_choice=ToolChoice("auto"))

    assert "block_binding" not in body.get("thinking", {})
    assert "anthropic-beta" not in headers


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5.6"])
def test_a_model_that_reasons_anyway_gives_its_sealed_reasoning(model: str) -> None:
    facts = MODELS.facts("openai", model)
    deployment = Deployment("openai", "http://h", "k", model, facts=facts)

    body = orjson.loads(WIRES["openai-responses"].build_request(GenerationRequest("m", HISTORY), deployment).body)

    assert body["include"] == ["reasoning.encrypted_content"]
