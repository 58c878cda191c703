"""What does the official ``anthropic`` SDK see of a running Sluice?"""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock

from demo_provider.script import answer, reasoning_words
from tests.support.fleet import KEY, Fleet

USER: Any = [{"role": "user", "content": "hi"}]
PROVIDERS = ("openai", "anthropic")
TOOLS: Any = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


@pytest.fixture
def client(shared: Fleet) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=shared.url, max_retries=0) as found:
        yield found


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


def _create(client: anthropic.Anthropic, model: str, **more: Any) -> Any:
    return client.messages.create(**{"model": model, "max_tokens": 4096, "messages": USER, **more})


def _stream(client: anthropic.Anthropic, model: str, **more: Any) -> Any:
    return client.messages.stream(**{"model": model, "max_tokens": 4096, "messages": USER, **more})


# Answers


def test_create_gives_a_whole_answer(client: anthropic.Anthropic, provider: str):
    message = _create(client, f"{provider}/demo-n12-d0")

    assert isinstance(message, Message)
    assert [block.text for block in message.content] == [answer(12)]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 12)


def test_create_with_stream_gives_events(client: anthropic.Anthropic, provider: str):
    with _create(client, f"{provider}/demo-n12-d1", stream=True) as stream:
        types = [event.type for event in stream]

    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert types.count("content_block_delta") == 12


def test_the_stream_helper_gives_text_and_the_final_message(client: anthropic.Anthropic, provider: str):
    with _stream(client, f"{provider}/demo-n12-d1") as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == answer(12)
    assert isinstance(message.content[0], TextBlock)
    assert message.content[0].text == answer(12)
    assert message.usage.output_tokens == 12


def test_tools_are_called_in_a_whole_answer(client: anthropic.Anthropic, provider: str):
    message = _create(client, f"{provider}/demo-tool-d0", tools=TOOLS)

    (call,) = message.content
    assert isinstance(call, ToolUseBlock)
    assert (call.name, call.input, message.stop_reason) == ("get_weather", {"city": "Zürich"}, "tool_use")


def test_tools_are_called_in_a_stream(client: anthropic.Anthropic, provider: str):
    with _stream(client, f"{provider}/demo-tool2-d0", tools=TOOLS) as stream:
        message = stream.get_final_message()

    assert [(call.name, call.input) for call in message.content] == [("get_weather", {"city": "Zürich"})] * 2
    assert len({call.id for call in message.content}) == 2


def test_an_agent_loop_ends(client: anthropic.Anthropic, provider: str):
    model = f"{provider}/demo-tool2-d0"
    with _stream(client, model, tools=TOOLS) as stream:
        asked = stream.get_final_message()
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"} for call in asked.content]
    turns = [*USER, {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]

    last = _create(client, model, tools=TOOLS, messages=turns)

    assert last.content[0].text == "The tool answered: 18 degrees, 18 degrees"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("each", ["openai", "anthropic", "google-ai-studio", "cohere"])
def test_the_tool_runner_tells_every_provider_the_whole_conversation(
    shared: Fleet, client: anthropic.Anthropic, each: str, stream: bool
):
    # It asks for a thread first, which only Anthropic holds, and goes on without one where it is refused in the right words.
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather."""
        return f"18 degrees in {city}"

    runner: Any = client.beta.messages.tool_runner(
        model=f"{each}/demo-tool-think3-d0", max_tokens=4096, messages=USER, tools=[get_weather], stream=stream
    )
    for turn in runner:
        last = turn.get_final_message() if stream else turn

    assert last.content[-1].text == "The tool answered: 18 degrees in Zürich"
    if each != "anthropic":
        sent = shared.upstream_requests()[-1]["body"]
        assert "get_weather" in str(sent.get("messages") or sent["contents"])


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_a_block_before_the_text(client: anthropic.Anthropic, provider: str, stream: bool):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    if stream:
        with _stream(client, f"{provider}/demo-think6-n8-d0", thinking=thinking) as opened:
            message = opened.get_final_message()
    else:
        message = _create(client, f"{provider}/demo-think6-n8-d0", thinking=thinking)

    first, second = message.content
    assert isinstance(first, ThinkingBlock)
    assert (first.thinking, second.text) == ("".join(reasoning_words(6)), answer(8))
    assert bool(first.signature) == (provider == "anthropic")


async def test_the_async_client_streams(shared: Fleet, provider: str):
    async with (
        anthropic.AsyncAnthropic(api_key=KEY, base_url=shared.url, max_retries=0) as client,
        client.messages.stream(model=f"{provider}/demo-n12-d1", max_tokens=99, messages=USER) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])

    assert text == answer(12)


def test_the_raw_response_has_the_ids(client: anthropic.Anthropic, provider: str):
    raw = client.messages.with_raw_response.create(model=f"{provider}/demo-n2-d0", max_tokens=9, messages=USER)

    assert raw.request_id
    assert raw.parse()._request_id == raw.request_id == raw.headers["x-request-id"] == raw.headers["request-id"]
    assert raw.headers["x-generation-id"].startswith("gen_")


def test_the_models_are_listed(client: anthropic.Anthropic):
    models = client.models.list()

    assert {"gpt-5", "claude-opus-4-1", "demo"} <= {model.id for model in models}
    assert all(model.type == "model" and model.display_name for model in models)


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("spec", "error", "status", "type_"),
    [
        ("e400", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("e404", anthropic.NotFoundError, 404, "not_found_error"),
        ("e413", anthropic.RequestTooLargeError, 413, "request_too_large"),
        ("e422", anthropic.UnprocessableEntityError, 422, "invalid_request_error"),
        # The gateway's own key was refused: nothing that the client could mend.
        ("e403", anthropic.InternalServerError, 502, "api_error"),
    ],
)
def test_an_upstreams_refusal_is_the_sdks_own_class(
    client: anthropic.Anthropic,
    provider: str,
    stream: bool,
    spec: str,
    error: type[anthropic.APIStatusError],
    status: int,
    type_: str,
):
    with pytest.raises(error) as caught:
        _create(client, f"{provider}/demo-{spec}", stream=stream)

    assert caught.value.status_code == status
    assert _type(caught.value) == type_
    assert caught.value.request_id


def _type(error: anthropic.APIStatusError) -> str:
    assert isinstance(error.body, dict)
    return error.body["error"]["type"]


def test_an_upstreams_rate_limit_is_relayed_with_its_retry_after(client: anthropic.Anthropic):
    with pytest.raises(anthropic.RateLimitError) as caught:
        _create(client, "anthropic/demo-e429-ra0.5-sdk", stream=True)

    assert caught.value.response.headers["retry-after"] == "1"  # Whole seconds, rounded up.
    assert _type(caught.value) == "rate_limit_error"


def test_an_overloaded_upstream_is_an_overloaded_error(client: anthropic.Anthropic):
    with pytest.raises(anthropic.OverloadedError) as caught:
        _create(client, "anthropic/demo-e529-sdk")

    assert (caught.value.status_code, _type(caught.value)) == (529, "overloaded_error")


def test_a_wrong_key_is_an_authentication_error(shared: Fleet):
    with (
        anthropic.Anthropic(api_key="sk-wrong", base_url=shared.url, max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        _create(client, "demo")

    assert _type(caught.value) == "authentication_error"
    assert caught.value.request_id


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic):
    with pytest.raises(anthropic.NotFoundError) as caught:
        _create(client, "nobody-knows-it")

    assert _type(caught.value) == "not_found_error"


def test_a_bad_request_names_the_field(client: anthropic.Anthropic):
    with pytest.raises(anthropic.BadRequestError) as caught:
        _create(client, "demo", messages=[])

    assert "messages must not be empty" in caught.value.message


@pytest.mark.parametrize("spec", ["err5", "cut5", "end5"])
def test_an_answer_that_breaks_off_raises(client: anthropic.Anthropic, provider: str, spec: str):
    seen = []
    with pytest.raises(anthropic.APIStatusError) as caught, _stream(client, f"{provider}/demo-{spec}-d1") as stream:
        for piece in stream.text_stream:
            seen.append(piece)  # noqa: PERF402 - what came before it raised counts.

    assert "".join(seen) == answer(5)
    assert _type(caught.value) in ("overloaded_error", "api_error")
    assert caught.value.message
