"""Does each vendor accept what Sluice sends to it? The strict judge refuses what the vendor's own pages say is refused.

A combination of a dialect, a model and a wish passes if the judge accepts the request; if Sluice itself refused it with a 400
that names the field; if it is the vendor's own client, whose request the vendor would refuse without Sluice too; or if it is an
exception. Combinations that fail today are rows of
tests/support/compatibility/strict_failures.py: who mends one removes it there.
"""

import itertools
from typing import Any

import pytest

from common.dialects import DIALECTS
from tests.support.compatibility.strict_cells import TARGETS, WISHES, Outcome, outcome
from tests.support.compatibility.strict_failures import exceptions, failures
from tests.support.upstreams.strict import refusal

ALL = [(dialect, target, wish) for dialect, target, wish in itertools.product(DIALECTS, TARGETS, WISHES)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_vendor_accepts_what_is_sent(dialect: str, target: str) -> None:
    refused = {
        wish: answer.words
        for wish in WISHES
        if (dialect, target, wish) not in failures() | exceptions() and (answer := _refusal(dialect, target, wish))
    }

    assert not refused


def _refusal(dialect: str, target: str, wish: str) -> Outcome | None:
    found = outcome(dialect, target, wish)
    return found if found and found.verdict == "refused" else None


@pytest.mark.parametrize(
    ("dialect", "target", "wish"),
    [pytest.param(*each, marks=pytest.mark.xfail(strict=True, reason=cause)) for each, cause in failures().items()],
)
def test_a_known_failure(dialect: str, target: str, wish: str) -> None:
    assert _refusal(dialect, target, wish) is None


def test_every_exception_is_refused_by_its_vendor() -> None:
    assert [each for each in exceptions() if _refusal(*each) is None] == []


def test_no_combination_is_both() -> None:
    assert failures().keys() & exceptions().keys() == set()


def test_a_refusal_by_sluice_names_the_field() -> None:
    refused = {each: found for each in ALL if (found := outcome(*each)) and found.verdict == "refused by Sluice"}

    assert [each for each, found in refused.items() if found.words.startswith("None:")] == []


USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CLAUDE_TOOL = {"name": "f", "input_schema": {"type": "object"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "r"}
ASKED = {"role": "user", "parts": [{"text": "hi"}]}
CALLED = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
ANSWERED = {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}
GEMINI = "/v1beta/models/gemini-"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def gemini(**config: Any) -> dict[str, Any]:
    return {"contents": [ASKED], "generationConfig": config}


@pytest.mark.parametrize(
    ("vendor", "path", "fields", "words"),
    [
        ("openai", CHAT, {"model": "gpt-5.4", "tools": [TOOL], "reasoning_effort": "low"}, "use /v1/responses"),
        ("openai", CHAT, {"model": "gpt-5.6-terra", "tools": [TOOL]}, "or set reasoning_effort to 'none'"),
        ("openai", CHAT, {"model": "gpt-6-sol", "tools": [TOOL]}, "use /v1/responses"),
        ("openai", CHAT, {"model": "gpt-6.1-sol", "reasoning_effort": "max"}, "'low', 'medium', 'high', 'xhigh'"),
        ("openai", CHAT, {"model": "gpt-5", "max_tokens": 50}, "Use 'max_completion_tokens' instead"),
        ("openai", CHAT, {"model": "gpt-4o", "top_k": 5}, "Unrecognized request argument supplied: top_k"),
        ("openai", CHAT, {"model": "gpt-4o", "messages": [USER, RESULT]}, "must be a response to a preceeding message"),
        ("openai", CHAT, {"model": "gpt-4o", "messages": [USER, CALL, USER]}, "did not have response messages: abcdefghi"),
        ("openai", CHAT, {"model": "gpt-5-pro"}, "only supported in v1/responses"),
        ("openai", RESPONSES, {"model": "gpt-4o", "reasoning": {"summary": "auto"}}, "'reasoning.summary' is not supported"),
        ("openai", RESPONSES, {"model": "gpt-5.1", "reasoning": {"effort": "minimal"}}, "'none', 'low', 'medium', 'high'"),
        (
            "openai",
            RESPONSES,
            {"model": "gpt-5", "input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
            "No tool output",
        ),
        ("anthropic", MESSAGES, {"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "thinking.type.disabled"),
        ("anthropic", MESSAGES, {"model": "claude-sonnet-5", "temperature": 0.5}, "`temperature` is deprecated"),
        ("anthropic", MESSAGES, {"model": "claude-haiku-4-5", "max_tokens": 128_000}, "128000 > 64000"),
        (
            "anthropic",
            MESSAGES,
            {"model": "claude-sonnet-5-5", "tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}},
            "forced tool",
        ),
        ("anthropic", MESSAGES, {"model": "claude-sonnet-5", "system": [{"type": "text", "text": " "}]}, "non-whitespace"),
        ("anthropic", MESSAGES, {"model": "m", "system": [{"type": "text", "text": "x", "cache_control": {}}] * 5}, "Found 5"),
        ("mistral", CHAT, {"model": "m", "store": False}, "Extra inputs are not permitted"),
        ("mistral", CHAT, {"model": "m", "messages": [USER, CALL, RESULT, USER]}, "Unexpected role 'user' after role 'tool'"),
        ("deepseek", CHAT, {"model": "deepseek-v4-pro", "messages": [USER, CALL, RESULT]}, "must be passed back"),
        (
            "deepseek",
            CHAT,
            {"model": "deepseek-v4-pro", "messages": [{**USER, "role": "developer"}]},
            "unknown variant `developer`",
        ),
        ("groq", "/openai" + CHAT, {"model": "qwen/qwen3-32b", "reasoning_effort": "low"}, "one of `none` or `default`"),
        (
            "vllm",
            CHAT,
            {"model": "Qwen/Qwen3.5-27B", "messages": [USER, {**USER, "role": "system"}]},
            "must be at the beginning",
        ),
        (
            "google-ai-studio",
            f"{GEMINI}2.5-pro:generateContent",
            gemini(thinkingConfig={"thinkingBudget": 0}),
            "Budget 0 is invalid",
        ),
        (  # As Google's own client writes it.
            "google-ai-studio",
            f"{GEMINI}2.5-pro:generateContent",
            {"contents": [ASKED], "generation_config": {"thinking_config": {"thinking_budget": 0}}},
            "Budget 0 is invalid",
        ),
        ("google-ai-studio", f"{GEMINI}3-pro:generateContent", gemini(thinkingConfig={"thinkingLevel": "MINIMAL"}), "MINIMAL"),
        ("google-ai-studio", f"{GEMINI}3-pro:generateContent", {"contents": [ASKED, CALLED, ANSWERED]}, "thought_signature"),
        ("google-ai-studio", f"{GEMINI}2.5-pro:generateContent", {"contents": [ASKED, ANSWERED]}, "after a function call turn"),
        (
            "google-ai-studio",
            f"{GEMINI}2.5-pro:generateContent",
            {"contents": [{"role": "user", "parts": [{}]}]},
            "oneof field",
        ),
        ("grok", CHAT, {"model": "grok-4", "reasoning_effort": "low"}, "does not support parameter reasoningEffort"),
        ("grok", CHAT, {"model": "grok-4.3", "stop": ["x"]}, "does not support parameter stop"),
        ("cerebras", CHAT, {"model": "gpt-oss-120b", "top_k": 5}, "property 'body.top_k' is unsupported"),
        ("cerebras", CHAT, {"model": "gpt-oss-120b", "reasoning_effort": "none"}, "'low', 'medium', 'high'"),
        ("perplexity", "/chat/completions", {"model": "sonar", "messages": [USER, USER]}, "should alternate"),
        ("perplexity", "/chat/completions", {"model": "sonar", "tools": [TOOL]}, "Tool calling is not supported"),
        ("perplexity", RESPONSES, {"model": "perplexity/sonar", "store": False}, 'unknown field "store"'),
        ("perplexity", RESPONSES, {"model": "sonar-pro"}, "provider/model format"),
        ("perplexity", RESPONSES, {"preset": "low", "input": [{"type": "reasoning"}]}, "unknown input item type"),
        ("cohere", "/v2/chat", {"model": "command-a-03-2025", "top_p": 0.5}, "parameter 'top_p' is not a valid field"),
        ("cohere", "/v2/chat", {"model": "command-a-03-2025", "stop_sequences": ["x"] * 6}, "at most 5"),
        ("workers-ai", "/ai" + CHAT, {"model": "@cf/meta/llama-3.3-70b", "messages": [USER, CALL, RESULT]}, "'role,content'"),
    ],
)
def test_the_judge_refuses_as_the_vendor_does(vendor: str, path: str, fields: dict[str, Any], words: str) -> None:
    beginning: dict[str, Any] = {"max_tokens": 100} if path == MESSAGES else {}
    beginning |= {} if path == RESPONSES or path.startswith(GEMINI) else {"messages": [USER]}

    judgement = refusal(vendor, path, {"anthropic-version": "2023-06-01"}, beginning | fields)

    assert judgement is not None
    status, body = judgement
    assert status in (400, 404, 422)
    assert words in str(body).replace("\\'", "'")


@pytest.mark.parametrize("target", TARGETS)
def test_the_judge_accepts_a_plain_request(target: str) -> None:
    assert [outcome(dialect, target, "plain") for dialect in DIALECTS] == [Outcome("yes")] * len(DIALECTS)
