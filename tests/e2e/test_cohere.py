"""What do the official SDKs see of a model that speaks Cohere's wire?"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from demo_provider.script import answer, reasoning_words, refusal
from tests.support.fleet import CHAT, KEY, MESSAGES, Fleet, RawClient, body_of, fleet, until

USER: Any = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
FUNCTIONS = {"get_weather": WEATHER, "get_time": CLOCK}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": of}} for name, of in FUNCTIONS.items()]
MESSAGES_TOOLS: Any = [{"name": name, "input_schema": of} for name, of in FUNCTIONS.items()]
ARGUMENTS = [("get_weather", {"city": "Zürich"}), ("get_time", {"zone": "demo"})]
streaming_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture
def chat(shared: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as found:
        yield found


@pytest.fixture
def claude(shared: Fleet) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=shared.url, max_retries=0) as found:
        yield found


def complete(client: openai.OpenAI, spec: str, *, stream: bool, **more: Any) -> Any:
    asked = {"model": f"cohere/demo-d0-{spec}", "messages": USER, **more}
    if not stream:
        return client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as opened:
        return opened.get_final_completion()


def message(client: anthropic.Anthropic, spec: str, *, stream: bool, **more: Any) -> Any:
    asked = {"model": f"cohere/demo-d0-{spec}", "max_tokens": 4096, "messages": USER, **more}
    if not stream:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as opened:
        return opened.get_final_message()


def sent(found: Fleet) -> Any:
    """What the upstream was sent last."""
    return found.upstream_requests()[-1]["body"]


# Answers


@streaming_or_not
def test_openais_sdk_reads_the_answer(shared: Fleet, chat: openai.OpenAI, stream: bool):
    completion = complete(chat, "think5-n70", stream=stream)

    choice = completion.choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("".join(reasoning_words(5)), answer(70))
    assert choice.finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 75)
    assert completion.usage.completion_tokens_details.reasoning_tokens == 5
    request = shared.upstream_requests()[-1]
    assert (request["path"], request["headers"]["authorization"]) == ("/v2/chat", "(hidden)")
    assert request["body"] == {"model": "demo-d0-think5-n70", "messages": USER, "stream": True}


@streaming_or_not
def test_anthropics_sdk_reads_the_answer(claude: anthropic.Anthropic, stream: bool):
    found = message(claude, "think5-n70", stream=stream, system="Be brief.")

    assert [(block.type, getattr(block, block.type)) for block in found.content] == [
        ("thinking", "".join(reasoning_words(5))),
        ("text", answer(70)),
    ]
    assert (found.stop_reason, found.usage.output_tokens) == ("end_turn", 75)


@streaming_or_not
def test_ends_are_told_apart(shared: Fleet, chat: openai.OpenAI, claude: anthropic.Anthropic, stream: bool):
    limited = message(claude, "n20", stream=stream, max_tokens=4)
    stopped = message(claude, "n20", stream=stream, stop_sequences=["patient"])

    assert (limited.content[0].text, limited.stop_reason) == (answer(4), "max_tokens")
    assert (stopped.content[0].text, stopped.stop_reason) == (answer(20).partition("patient")[0], "stop_sequence")
    assert complete(chat, "refuse", stream=stream).choices[0].message.content == "".join(refusal())


def test_a_json_schema_is_obeyed(chat: openai.OpenAI):
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": WEATHER}}

    completion = complete(chat, "n4", stream=False, response_format=wanted)

    assert json.loads(completion.choices[0].message.content) == {"city": "Zürich"}


# Tools


@streaming_or_not
def test_openais_sdk_runs_an_agent_loop(shared: Fleet, chat: openai.OpenAI, stream: bool):
    first = complete(chat, "think4-tool2", stream=stream, tools=CHAT_TOOLS).choices[0]
    calls = first.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == ARGUMENTS
    assert first.finish_reason == "tool_calls"

    results = [{"role": "tool", "tool_call_id": call.id, "content": call.function.name} for call in calls]
    said = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"}) for call in calls]}
    second = complete(chat, "think4-tool2", stream=stream, tools=CHAT_TOOLS, messages=[*USER, said, *results])

    assert second.choices[0].message.content == "The tool answered: get_weather, get_time"
    assert [message["role"] for message in sent(shared)["messages"]] == ["user", "assistant", "tool", "tool"]


@streaming_or_not
def test_anthropics_sdk_runs_an_agent_loop(shared: Fleet, claude: anthropic.Anthropic, stream: bool):
    first = message(claude, "think4-tool2", stream=stream, tools=MESSAGES_TOOLS)
    calls = [block for block in first.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == ARGUMENTS
    assert first.stop_reason == "tool_use"

    said = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]}
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": call.name} for call in calls]
    turns = [*USER, said, {"role": "user", "content": results}]
    second = message(claude, "think4-tool2", stream=stream, tools=MESSAGES_TOOLS, messages=turns)

    assert [block.text for block in second.content if block.type == "text"] == ["The tool answered: get_weather, get_time"]
    # What the model thought before its calls goes back to it as their plan.
    assert sent(shared)["messages"][1]["tool_plan"] == "".join(reasoning_words(4))


def test_a_named_tool_is_the_only_one_offered(shared: Fleet, chat: openai.OpenAI):
    named = {"type": "function", "function": {"name": "get_time"}}

    completion = complete(chat, "tool", stream=True, tools=CHAT_TOOLS, tool_choice=named)

    assert [call.function.name for call in completion.choices[0].message.tool_calls] == ["get_time"]
    assert sent(shared)["tool_choice"] == "REQUIRED"


# What Cohere cannot say


@pytest.mark.parametrize("more", [{"n": 2}, {"logprobs": True}])
def test_what_would_be_missed_is_refused_by_name(chat: openai.OpenAI, more: dict[str, Any]):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(chat, "n3", stream=False, **more)

    assert caught.value.param in more


def test_what_nobody_misses_is_dropped_and_named(shared: Fleet):
    response = shared.post(CHAT, body_of(CHAT, "cohere/demo-n3-d0", user="u"))

    assert response.status_code == 200
    assert response.headers["x-sluice-dropped"] == "user"
    assert "user" not in sent(shared)


# Failures


@streaming_or_not
def test_errors_before_the_stream_are_each_sdks_own(chat: openai.OpenAI, claude: anthropic.Anthropic, stream: bool):
    with pytest.raises(openai.BadRequestError, match="asked to reject it"):
        complete(chat, "e400", stream=stream)
    with pytest.raises(anthropic.NotFoundError, match="not found, make sure"):
        message(claude, "e404", stream=stream)


def test_an_error_in_the_stream_reaches_both_sdks(chat: openai.OpenAI, claude: anthropic.Anthropic):
    with pytest.raises(openai.APIError, match="invalid tool generation"):
        complete(chat, "err3", stream=True)
    with pytest.raises(anthropic.APIStatusError, match="invalid tool generation"):
        message(claude, "err3", stream=True)


@pytest.mark.parametrize("spec", ["cut3", "end3"])
def test_a_cut_stream_never_ends_cleanly(chat: openai.OpenAI, claude: anthropic.Anthropic, spec: str):
    with pytest.raises(openai.APIError, match=r"before (it|its answer) was complete"):
        complete(chat, f"n9-{spec}", stream=True)
    with pytest.raises(anthropic.APIStatusError, match=r"before (it|its answer) was complete"):
        message(claude, f"n9-{spec}", stream=True)


def test_a_cut_before_any_output_is_tried_again(chat: openai.OpenAI):
    assert complete(chat, "n9-cut0x1", stream=True).choices[0].message.content == answer(9)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
def test_a_client_that_leaves_closes_the_upstream(tmp_path: Any, dialect: str):
    with fleet(tmp_path) as found:
        with RawClient(found.ports[0]) as client:
            client.post(dialect, body_of(dialect, "cohere/demo-n100000-d5", stream=True))
            client.read_until(b"sluice")

        until(lambda: found.stats()["aborted"] == 1 and found.stats()["open"] == 0, "the upstream is closed")
