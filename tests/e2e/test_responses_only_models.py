"""What do chat and messages clients see of models that OpenAI serves by its responses API alone?"""

from typing import Any

import anthropic
import openai
import pytest

from demo_provider.script import answer, reasoning_words
from tests.support.fleet import CHAT, KEY, MESSAGES, Fleet, body_of, headers_of, sse_events

SUFFIX = "deep-research"  # Names of this kind go to the responses API.
FUNCTION: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL: Any = {"name": "get_weather", "input_schema": FUNCTION["function"]["parameters"]}
USER: Any = [{"role": "user", "content": "hi"}]


def model(spec: str) -> str:
    return f"openai/demo-{spec}-d0-{SUFFIX}"


@pytest.fixture
def chat(shared: Fleet):
    shared.reset_demo()
    with openai.OpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(shared: Fleet):
    shared.reset_demo()
    with anthropic.Anthropic(api_key=KEY, base_url=shared.url, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_they_are_called_by_the_responses_api_and_nothing_is_kept_there(shared: Fleet, dialect: str, stream: bool):
    shared.reset_demo()

    response = shared.post(dialect, body_of(dialect, model("n3"), stream=stream))

    assert response.status_code == 200
    (asked,) = shared.upstream_requests()
    assert asked["path"] == "/v1/responses"
    assert (asked["body"]["store"], asked["body"]["stream"]) == (False, True)


def test_a_chat_client_reads_a_stream(chat: openai.OpenAI):
    stream = chat.chat.completions.create(
        model=model("n12"), messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer(12)
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12


def test_a_chat_clients_agent_loop_ends(chat: openai.OpenAI):
    first = chat.chat.completions.create(model=model("tool2"), messages=USER, tools=[FUNCTION]).choices[0]
    assert first.finish_reason == "tool_calls"
    calls = first.message.tool_calls or []
    assert len(calls) == 2
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in calls]

    last = chat.chat.completions.create(
        model=model("tool2"), messages=[*USER, first.message.to_dict(), *results], tools=[FUNCTION]
    )

    assert last.choices[0].message.content == "The tool answered: 18 degrees, 18 degrees"


def test_thinking_comes_back_as_it_went(claude: anthropic.Anthropic, shared: Fleet):
    asked: Any = {"model": model("think6-tool"), "max_tokens": 4096, "tools": [TOOL]}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    with claude.messages.stream(messages=USER, **asked) as stream:
        first = stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "tool_use"]
    assert first.content[0].thinking == "".join(reasoning_words(6))
    results: Any = [{"type": "tool_result", "tool_use_id": first.content[1].id, "content": "boom", "is_error": True}]

    last = claude.messages.create(messages=[*USER, first.to_dict(), {"role": "user", "content": results}], **asked)

    assert last.content[-1].text == "The tool answered: Error: boom"
    sent = shared.upstream_requests()[-1]["body"]
    _, reasoning, call, result = sent["input"]
    assert sent["include"] == ["reasoning.encrypted_content"]
    assert (reasoning["type"], call["type"], result["type"]) == ("reasoning", "function_call", "function_call_output")
    assert reasoning["encrypted_content"]
    assert ":" not in reasoning["encrypted_content"]
    assert call["call_id"] == result["call_id"]


def test_a_refusal_is_one(chat: openai.OpenAI, claude: anthropic.Anthropic):
    message = chat.chat.completions.create(model=model("refuse"), messages=USER).choices[0].message

    assert message.refusal
    assert claude.messages.create(model=model("refuse"), max_tokens=99, messages=USER).stop_reason == "refusal"


def test_a_limit_ends_the_answer_in_each_dialects_words(chat: openai.OpenAI, claude: anthropic.Anthropic):
    assert chat.chat.completions.create(model=model("n5-len"), messages=USER).choices[0].finish_reason == "length"
    assert claude.messages.create(model=model("n5-len"), max_tokens=99, messages=USER).stop_reason == "max_tokens"


@pytest.mark.parametrize(("spec", "status"), [("e400", 400), ("e404", 404), ("e500", 500)])
def test_a_refused_request_keeps_its_status(shared: Fleet, spec: str, status: int):
    for dialect in (CHAT, MESSAGES):
        assert shared.post(dialect, body_of(dialect, model(spec), stream=True)).status_code == status


@pytest.mark.parametrize("spec", ["err5-d20", "cut5-d20", "end5-d20"])
def test_an_answer_that_breaks_off_never_ends_cleanly(shared: Fleet, spec: str):
    raw = shared.client.post(
        f"{shared.url}/v1/chat/completions", json=body_of(CHAT, model(spec), stream=True), headers=headers_of()
    )

    # A worker that was held up may read the words and the break at once, and then nothing was promised yet.
    if raw.status_code == 200:
        assert "error" in sse_events(raw.text)[-1].fields
    else:
        assert raw.status_code >= 500
        assert raw.json()["error"]["message"]
    assert "[DONE]" not in raw.text


def test_words_to_stop_at_are_refused_by_name(chat: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        chat.chat.completions.create(model=model("n3"), messages=USER, stop="END")

    assert caught.value.param == "stop"
