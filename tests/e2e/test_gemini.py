"""What do the official SDKs see of a model that speaks Gemini's wire?

The demo provider refuses what Gemini 3 refuses: a call that comes back without its signature, results of other calls.
"""

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
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
MESSAGES_TOOLS: Any = [{"name": "get_weather", "input_schema": WEATHER}]
ZURICH = {"city": "Zürich"}


@pytest.fixture
def chat(shared: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as found:
        yield found


@pytest.fixture
def claude(shared: Fleet) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=shared.url, max_retries=0) as found:
        yield found


def complete(client: openai.OpenAI, spec: str, *, stream: bool, **more: Any) -> Any:
    """Return the whole completion, however it came."""
    asked = {"model": f"gemini/demo-d0-{spec}", "messages": USER, **more}
    if not stream:
        return client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as opened:
        return opened.get_final_completion()


def message(client: anthropic.Anthropic, spec: str, *, stream: bool, **more: Any) -> Any:
    asked = {"model": f"gemini/demo-d0-{spec}", "max_tokens": 4096, "messages": USER, **more}
    if not stream:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as opened:
        return opened.get_final_message()


def sent(found: Fleet) -> dict[str, Any]:
    """What the upstream was sent last."""
    return found.upstream_requests()[-1]["body"]


streaming_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


# Answers


@streaming_or_not
def test_openais_sdk_reads_the_answer(shared: Fleet, chat: openai.OpenAI, stream: bool):
    completion = complete(chat, "n120", stream=stream)

    assert completion.choices[0].message.content == answer(120)
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 120)
    assert shared.upstream_requests()[-1]["path"] == "/v1beta/models/demo-d0-n120:streamGenerateContent?alt=sse"
    assert shared.upstream_requests()[-1]["headers"]["x-goog-api-key"] == "(hidden)"


@streaming_or_not
def test_anthropics_sdk_reads_the_answer(claude: anthropic.Anthropic, stream: bool):
    found = message(claude, "n120", stream=stream)

    assert [block.text for block in found.content] == [answer(120)]
    assert found.stop_reason == "end_turn"
    assert (found.usage.input_tokens, found.usage.output_tokens) == (2, 120)


@streaming_or_not
def test_thinking_comes_before_the_text(shared: Fleet, chat: openai.OpenAI, claude: anthropic.Anthropic, stream: bool):
    thinking = {"type": "enabled", "budget_tokens": 2000}

    choice = complete(chat, "think6-n8", stream=stream, reasoning_effort="medium").choices[0]
    assert sent(shared)["generationConfig"]["thinkingConfig"] == {"includeThoughts": True, "thinkingLevel": "medium"}
    first, second = message(claude, "think6-n8", stream=stream, thinking=thinking).content

    assert (choice.message.reasoning_content, choice.message.content) == ("".join(reasoning_words(6)), answer(8))
    assert (first.thinking, second.text) == ("".join(reasoning_words(6)), answer(8))
    assert sent(shared)["generationConfig"]["thinkingConfig"]["includeThoughts"]


@streaming_or_not
def test_limits_and_filters_are_told(chat: openai.OpenAI, claude: anthropic.Anthropic, stream: bool):
    assert message(claude, "n20", stream=stream, max_tokens=7).stop_reason == "max_tokens"
    assert message(claude, "refuse", stream=stream).stop_reason == "refusal"
    cut = complete(chat, "refuse", stream=False).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("".join(refusal()), "content_filter")
    assert complete(chat, "n20", stream=False, stop="patient").choices[0].message.content == answer(20).partition("patient")[0]


def test_several_choices_come_side_by_side(chat: openai.OpenAI):
    with chat.chat.completions.create(model="gemini/demo-d0-n5", messages=USER, n=2, stream=True) as stream:
        texts = ["", ""]
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""

    assert texts == [answer(5), answer(5)]


def test_a_json_schema_is_obeyed(chat: openai.OpenAI):
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": WEATHER}}

    completion = complete(chat, "n4", stream=False, response_format=wanted)

    assert json.loads(completion.choices[0].message.content) == ZURICH


def test_what_was_left_out_is_named_in_a_header(chat: openai.OpenAI):
    raw = chat.chat.completions.with_raw_response.create(model="gemini/demo-d0-n1", messages=USER, user="somebody")

    assert raw.headers["x-sluice-dropped"] == "user"


def test_tokens_are_counted_by_the_provider(shared: Fleet, claude: anthropic.Anthropic):
    counted = claude.messages.count_tokens(model="gemini/demo", messages=[{"role": "user", "content": "four words of prompt"}])

    assert counted.input_tokens == 5  # One word is the role.
    assert shared.upstream_requests()[-1]["path"] == "/v1beta/models/demo:countTokens"


# Tools


@streaming_or_not
@pytest.mark.parametrize("thinking", ["", "-think4"])
def test_openais_agent_loop_ends(shared: Fleet, chat: openai.OpenAI, stream: bool, thinking: str):
    spec = f"tool2{thinking}"
    asked = complete(chat, spec, stream=stream, tools=CHAT_TOOLS).choices[0]
    calls = asked.message.tool_calls
    own = asked.message.model_dump(exclude_none=True, include={"role": True, "content": True, "tool_calls": True})
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in calls]

    last = complete(chat, spec, stream=stream, tools=CHAT_TOOLS, messages=[*USER, own, *results])

    assert asked.finish_reason == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [("get_weather", ZURICH)] * 2
    assert len({call.id for call in calls}) == 2
    assert last.choices[0].message.content == "The tool answered: 18 degrees, 18 degrees"
    # The signature travels beside the call, and this client returns it.
    first, second = (part.get("thoughtSignature") for part in sent(shared)["contents"][1]["parts"])
    assert first not in (None, "skip_thought_signature_validator")
    assert second is None


@streaming_or_not
@pytest.mark.parametrize("thinking", ["", "-think4"])
def test_anthropics_agent_loop_brings_the_signature_back(
    shared: Fleet, claude: anthropic.Anthropic, stream: bool, thinking: str
):
    spec = f"tool2{thinking}"
    asked = message(claude, spec, stream=stream, tools=MESSAGES_TOOLS)
    signed, *calls = asked.content
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"} for call in calls]
    turns = [*USER, {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]

    last = message(claude, spec, stream=stream, tools=MESSAGES_TOOLS, messages=turns)

    assert asked.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [("get_weather", ZURICH)] * 2
    assert last.content[-1].text == "The tool answered: 18 degrees, 18 degrees"
    first, second = sent(shared)["contents"][1]["parts"]
    assert (signed.type, signed.signature) == ("thinking", f"gemini:{first['thoughtSignature']}")
    assert "thoughtSignature" not in second
    assert [first["functionCall"]["id"], second["functionCall"]["id"]] == [call.id for call in calls]


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("spec", "error", "status", "words"),
    [
        ("e400", openai.BadRequestError, 400, "asked to reject"),
        ("e404", openai.NotFoundError, 404, "is not found for API version"),
        # The gateway's own key was refused: nothing that the client could mend.
        ("e403", openai.InternalServerError, 502, "provider refused the key"),
    ],
)
def test_a_refusal_is_the_sdks_own_class(
    chat: openai.OpenAI, spec: str, error: type[openai.APIStatusError], status: int, words: str, stream: bool
):
    with pytest.raises(error) as caught:
        chat.chat.completions.create(model=f"gemini/demo-{spec}", messages=USER, stream=stream)

    assert caught.value.status_code == status
    assert words in caught.value.message


def test_a_rate_limit_is_relayed_with_the_delay_that_its_body_names(claude: anthropic.Anthropic):
    with pytest.raises(anthropic.RateLimitError) as caught:
        claude.messages.create(model="gemini/demo-e429-sdk", max_tokens=9, messages=USER)

    assert caught.value.response.headers["retry-after"] == "1"  # Half a second, rounded up.


def test_a_failure_before_the_first_token_is_tried_again_unseen(shared: Fleet, chat: openai.OpenAI):
    shared.reset_demo()

    completion = chat.chat.completions.create(model="gemini/demo-n3-d0-e503x1-err0x1", messages=USER)

    assert completion.choices[0].message.content == answer(3)
    assert shared.stats()["requests"] == 3


@pytest.mark.parametrize("spec", ["err5", "cut5", "end5"])
def test_an_answer_that_breaks_off_raises(chat: openai.OpenAI, claude: anthropic.Anthropic, spec: str):
    model, seen = f"gemini/demo-{spec}-d1", ["", ""]
    with (
        chat.chat.completions.create(model=model, messages=USER, stream=True) as stream,
        pytest.raises(openai.APIError) as from_openai,
    ):
        for chunk in stream:
            seen[0] += chunk.choices[0].delta.content or ""
    with (
        pytest.raises(anthropic.APIStatusError) as from_anthropic,
        claude.messages.stream(model=model, max_tokens=99, messages=USER) as opened,
    ):
        for text in opened.text_stream:
            seen[1] += text

    assert seen == [answer(5), answer(5)]
    assert from_openai.value.message
    assert from_anthropic.value.message


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that nobody else leaves."""
    with fleet(tmp_path_factory.mktemp("alone"), SLUICE_HEARTBEAT_S="0.2") as found:
        yield found


@streaming_or_not
@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
def test_a_client_that_leaves_closes_the_upstream(alone: Fleet, dialect: str, stream: bool):
    alone.reset_demo()
    with RawClient(alone.ports[0]) as client:
        client.post(dialect, body_of(dialect, "gemini/demo-n100000-d20", stream=stream))
        if stream:
            client.read_until({CHAT: b'"content":"A', MESSAGES: b"text_delta"}[dialect])
        else:
            until(lambda: alone.stats()["open"] == 1, "the upstream is called")

    until(lambda: alone.stats()["aborted"] == 1 and alone.stats()["open"] == 0, "the upstream is closed")
