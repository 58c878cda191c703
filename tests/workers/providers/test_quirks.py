"""What each vendor of OpenAI's chat completions gets of what a client says."""

from typing import Any

import orjson
import pytest

from common.dialects import DIALECTS
from common.vendors.models import MODELS, ModelFacts
from tests.support.upstreams.strict import refusal
from workers.providers.base import Deployment
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE
from workers.providers.openai_responses.wire import OPENAI_RESPONSES
from workers.providers.shared.quirks import QUIRKS

# All that an OpenAI client may send besides its messages, and what a client sends back of an answer as it came.
FULL: dict[str, Any] = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 100,
    "seed": 7,
    "user": "u",
    "store": False,
    "metadata": {"a": "b"},
    "n": 2,
    "logprobs": True,
    "presence_penalty": 0.1,
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "x", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "reasoning_content": "hm",
            "tool_calls": [{"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "r"},
    ],
}


def passed(provider: str, body: dict[str, Any] = FULL, model: str = "up", query: str = "") -> tuple[dict[str, Any], list[str]]:
    before = orjson.dumps(body)
    facts = MODELS.facts(provider, model)
    request = OPENAI_COMPATIBLE.pass_request(body, {}, Deployment(provider, "http://h", "k", model, query=query, facts=facts))
    assert orjson.dumps(body) == before  # The client's body is somebody else's too.
    return orjson.loads(request.body), request.dropped


@pytest.mark.parametrize("provider", ["lab", "demo"])
def test_servers_that_nothing_is_known_of_get_it_as_it_came(provider):
    body, dropped = passed(provider)

    assert body == {**FULL, "model": "up"}
    assert dropped == []


@pytest.mark.parametrize("provider", ["openai", "azure-openai"])
def test_openai_gets_it_as_it_came_without_the_reasoning_of_other_vendors(provider):
    body, dropped = passed(provider)

    answer = {name: value for name, value in FULL["messages"][2].items() if name != "reasoning_content"}
    assert body == {**FULL, "model": "up", "messages": [*FULL["messages"][:2], answer, FULL["messages"][3]]}
    assert dropped == ["messages.reasoning_content"]


@pytest.mark.parametrize("provider", ["openai", "azure-openai"])
def test_openai_gets_the_limit_under_its_new_name(provider):
    """Clients that speak to many vendors send the old one, and models that reason refuse it."""
    old = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}

    body, dropped = passed(provider, old, "gpt-6.1-sol")

    assert body == {"model": "gpt-6.1-sol", "messages": old["messages"], "max_completion_tokens": 50}
    assert dropped == []
    assert refusal("openai", "/v1/chat/completions", {}, {**old, "model": "gpt-6.1-sol"}) is not None
    assert refusal("openai", "/v1/chat/completions", {}, body) is None


def test_mistral_gets_nothing_that_it_refuses():
    body, dropped = passed("mistral")

    assert (body["max_tokens"], body["random_seed"]) == (100, 7)
    assert {"max_completion_tokens", "seed", "stream_options", "user", "store"}.isdisjoint(body)
    assert body["n"] == 2
    assert body["response_format"] == FULL["response_format"]
    assert dropped == [
        "reasoning_effort",  # This model does not reason.
        "stream_options",
        "user",
        "store",
        "messages.name",
        "messages.reasoning_content",
    ]
    system, user, assistant, tool = body["messages"]
    assert (system["role"], user) == ("system", {"role": "user", "content": "x"})
    assert assistant.keys() == {"role", "content", "tool_calls"}
    call_id = assistant["tool_calls"][0]["id"]
    assert (len(call_id), call_id.isalnum(), tool["tool_call_id"]) == (9, True, call_id)


def test_mistral_s_own_call_ids_stay():
    call = {"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body, _ = passed("mistral", {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]})

    assert body["messages"][0]["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("provider", "renamed", "left_out", "kept"),
    [
        ("groq", {}, {"store", "metadata"}, {"stream_options", "seed", "max_completion_tokens", "user", "reasoning_effort"}),
        ("grok", {}, {"store", "metadata", "presence_penalty"}, {"stream_options", "seed", "max_completion_tokens", "n"}),
        ("deepseek", {"max_tokens": 100}, {"store", "metadata", "seed", "user"}, {"stream_options", "presence_penalty"}),
        ("cerebras", {"max_tokens": 100}, {"store", "metadata"}, {"stream_options", "seed", "user", "presence_penalty"}),
        ("perplexity", {"max_tokens": 100}, {"store", "seed", "user", "stream_options"}, {"presence_penalty"}),
        ("workers-ai", {"max_tokens": 100}, {"store", "metadata", "user"}, {"stream_options", "seed"}),
        ("ollama", {"max_tokens": 100}, set(), {"stream_options", "seed", "user", "store"}),
    ],
)
def test_each_vendor_gets_its_own_words_and_what_is_left_out_is_named(provider, renamed, left_out, kept):
    body, dropped = passed(provider)

    assert renamed.items() <= body.items()
    assert left_out.isdisjoint(body)
    assert kept <= body.keys()
    assert left_out <= set(dropped)
    assert (set(dropped) - {"response_format"}).isdisjoint(body)
    assert body["response_format"]["type"] == ("json_object" if provider == "deepseek" else "json_schema")


@pytest.mark.parametrize(
    ("model", "takes_effort"),
    [
        ("grok-4", False),
        ("grok-4-fast-reasoning", False),
        ("grok-code-fast-1", False),
        ("grok-3", False),
        ("grok-3-mini", True),
        ("grok-4.3", True),
        ("grok-4.20-multi-agent", True),
        ("grok-4.20-reasoning", False),
        ("grok-4.6", True),
    ],
)
def test_grok_s_models_differ_in_what_they_take(model, takes_effort):
    body, dropped = passed("grok", model=model)

    assert ("reasoning_effort" in body) is takes_effort
    assert ("reasoning_effort" in dropped) is not takes_effort


def test_grok_s_responses_take_no_metadata():
    body = {"model": "m", "input": "x", "metadata": {"a": "b"}}

    for provider, dropped in (("grok", ["metadata"]), ("openai", [])):
        request = OPENAI_RESPONSES.pass_request(body, {}, Deployment(provider, "http://h", "k", "up"))
        assert request.dropped == dropped
        assert ("metadata" in orjson.loads(request.body)) is not bool(dropped)


def test_an_azure_of_before_stream_options_gets_the_words_of_its_time():
    old, dropped = passed("azure-openai", query="api-version=2024-02-01")
    new, _ = passed("azure-openai", query="api-version=2024-10-21")

    assert old["max_tokens"] == 100
    assert "stream_options" not in old
    assert "stream_options" in dropped
    assert new["max_completion_tokens"] == 100


LONG = "mcp__plugin_oh-my-claudecode_omc-tools__lsp_diagnostics_directory_with_more"


def test_a_passed_body_has_the_vendor_s_names_of_tools_everywhere():
    call = {"id": "abcDEF123", "type": "function", "function": {"name": LONG, "arguments": "{}"}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": LONG, "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": LONG}}

    body, dropped = passed("mistral", {"model": "m", "messages": messages, "tools": [tool], "tool_choice": choice})

    short = body["tools"][0]["function"]["name"]
    assert len(short) == 64
    assert body["tool_choice"]["function"]["name"] == body["messages"][1]["tool_calls"][0]["function"]["name"] == short
    assert dropped == []


def test_a_passed_tool_gets_properties_where_they_must_be():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    assert passed("openai", {"model": "m", "messages": [], "tools": tools})[0]["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {},
    }
    assert passed("lab", {"model": "m", "messages": [], "tools": tools})[0]["tools"] == tools


def test_an_empty_answer_of_the_history_is_left_out_where_it_is_refused():
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "y"}]

    assert len(passed("mistral", {"model": "m", "messages": messages})[0]["messages"]) == 2
    assert len(passed("openai", {"model": "m", "messages": messages})[0]["messages"]) == 3


PREFILL = {"model": "m", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]}


def test_the_beginning_of_an_answer_is_marked_and_sent_where_it_is_continued():
    deployment = Deployment("deepseek", "http://h", "k", "up", facts=MODELS.facts("deepseek", "up"))

    prefilled = OPENAI_COMPATIBLE.pass_request(PREFILL, {}, deployment)
    plain = OPENAI_COMPATIBLE.pass_request({**PREFILL, "messages": PREFILL["messages"][:1]}, {}, deployment)

    assert orjson.loads(prefilled.body)["messages"][-1] == {"prefix": True, "role": "assistant", "content": "{"}
    assert (prefilled.url, plain.url) == ("http://h/beta/chat/completions", "http://h/chat/completions")


def test_a_model_that_takes_no_beginning_is_asked_to_continue():
    deployment = Deployment("lab", "http://h", "k", "up", facts=ModelFacts(prefill=False))
    request = OPENAI_COMPATIBLE.pass_request(PREFILL, {}, deployment)
    body, dropped = orjson.loads(request.body), request.dropped

    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert dropped == ["prefill"]


def test_what_we_add_ourselves_is_not_said_to_be_left_out():
    assert passed("mistral", {"model": "m", "stream": True, "messages": []})[1] == []


def test_what_the_client_left_empty_is_not_said_to_be_left_out():
    answer = {"role": "assistant", "content": "a", "refusal": None}
    body, dropped = passed("mistral", {"model": "m", "user": None, "messages": [answer, {"role": "user", "content": "x"}]})

    assert "user" not in body
    assert body["messages"][0] == {"role": "assistant", "content": "a"}
    assert dropped == []


@pytest.mark.parametrize("messages", [None, "x", [1, None, {"tool_calls": [3], "tool_call_id": 4}]])
@pytest.mark.parametrize("provider", QUIRKS)
def test_odd_messages_are_the_vendor_s_to_refuse(provider, messages):
    passed(provider, {"model": "m", "messages": messages})


def test_a_client_of_another_family_is_told_what_was_left_out():
    parsed = DIALECTS["anthropic-messages"].parse(
        {
            "model": "m",
            "max_tokens": 9,
            "top_k": 4,
            "metadata": {"user_id": "u"},
            "messages": [{"role": "user", "content": "x"}],
        }
    )

    request = OPENAI_COMPATIBLE.build_request(parsed, Deployment("mistral", "http://h", "k", "up"))

    assert orjson.loads(request.body) == {
        "model": "up",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "max_tokens": 9,
    }
    assert request.dropped == ["user", "top_k"]


def test_deepseek_gets_its_thinking_back_with_its_calls():
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
    ]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
    ]
    parsed = DIALECTS["anthropic-messages"].parse({"model": "m", "max_tokens": 9, "messages": messages})

    def assistant(provider: str) -> dict[str, Any]:
        facts = MODELS.facts(provider, "up")
        request = OPENAI_COMPATIBLE.build_request(parsed, Deployment(provider, "http://h", "k", "up", facts=facts))
        return orjson.loads(request.body)["messages"][1]

    assert assistant("deepseek")["reasoning_content"] == "hm"
    assert "reasoning_content" not in assistant("openai")


@pytest.mark.parametrize("provider", ["deepseek", "workers-ai"])
def test_content_that_is_only_text_is_a_string_where_the_vendor_takes_no_list(provider):
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": texts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": texts},
    ]

    body, dropped = passed(provider, {"model": "m", "messages": messages})

    assert [message["content"] for message in body["messages"]] == ["a\n\nb", "", "a\n\nb"]
    assert dropped == []


@pytest.mark.parametrize("provider", ["openai", "azure-openai"])
def test_ids_that_other_vendors_made_are_short_enough_for_openai(provider):
    own, foreign = "call_1", "call_" + "signature" * 10
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in (own, foreign)]
    results = [{"role": "tool", "tool_call_id": id_, "content": "r"} for id_ in (own, foreign)]

    body, dropped = passed(provider, {"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}, *results]})

    assistant, first, second = body["messages"]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert ids[0] == own
    assert len(ids[1]) <= 40
    assert dropped == []


@pytest.mark.parametrize("provider", ["openai", "azure-openai", "mistral", "groq", "cerebras"])
def test_signatures_of_other_vendors_do_not_go_to_those_that_refuse_unknown_fields(provider: str) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    signed = {**call, "extra_content": {"google": {"thought_signature": "s"}}}
    sealed = {
        "role": "assistant",
        "content": "x",
        "tool_calls": [signed],
        "reasoning_details": [{"type": "reasoning.encrypted"}],
    }

    body, dropped = passed(provider, {"model": "m", "messages": [sealed]})

    assert body["messages"] == [{"role": "assistant", "content": "x", "tool_calls": [call]}]
    assert dropped == ["messages.reasoning_details"]
