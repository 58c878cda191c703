"""What does the official ``openai`` SDK see of a running Sluice?"""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from demo_provider.script import answer
from tests.support.fleet import KEY, Fleet

USER: Any = [{"role": "user", "content": "hi"}]
PROVIDERS = ("openai", "anthropic")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture
def client(shared: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as found:
        yield found


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


# Answers


def test_create_gives_a_whole_answer(client: openai.OpenAI, provider: str):
    completion = client.chat.completions.create(model=f"{provider}/demo-n12-d0", messages=USER)

    assert isinstance(completion, ChatCompletion)
    assert completion.choices[0].message.content == answer(12)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage
    assert completion.usage.completion_tokens == 12


def test_create_with_stream_gives_chunks(client: openai.OpenAI, provider: str):
    with client.chat.completions.create(
        model=f"{provider}/demo-n12-d1", messages=USER, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer(12)
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [12]
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_helper_accumulates(client: openai.OpenAI, provider: str):
    with client.chat.completions.stream(model=f"{provider}/demo-n12-d1", messages=USER) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        completion = stream.get_final_completion()

    assert "".join(deltas) == answer(12)
    assert completion.choices[0].message.content == answer(12)


def test_tools_are_called_in_a_whole_answer(client: openai.OpenAI, provider: str):
    completion = client.chat.completions.create(model=f"{provider}/demo-tool-d0", messages=USER, tools=TOOLS)

    assert completion.choices[0].finish_reason == "tool_calls"
    (call,) = completion.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Zürich"}')


def test_tools_are_called_in_a_stream(client: openai.OpenAI, provider: str):
    with client.chat.completions.stream(model=f"{provider}/demo-tool2-d0", messages=USER, tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]

    assert [(event.index, event.name, event.arguments) for event in done] == [
        (0, "get_weather", '{"city":"Zürich"}'),
        (1, "get_weather", '{"city":"Zürich"}'),
    ]


def test_an_agent_loop_ends(client: openai.OpenAI, provider: str):
    model = f"{provider}/demo-tool2-d0"
    message = client.chat.completions.create(model=model, messages=USER, tools=TOOLS).choices[0].message
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls or []]

    last = client.chat.completions.create(model=model, messages=[*USER, message, *results], tools=TOOLS)

    assert last.choices[0].message.content == "The tool answered: 18 degrees, 18 degrees"


def test_a_typed_answer_is_parsed(client: openai.OpenAI, provider: str):
    class Report(BaseModel):
        city: str
        degrees: int

    completion = client.chat.completions.parse(model=f"{provider}/demo-d0", messages=USER, response_format=Report)

    assert completion.choices[0].message.parsed == Report(city="Zürich", degrees=1)


async def test_the_async_client_streams_several_answers_at_once(shared: Fleet):
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as client:

        async def read(tokens: int) -> str:
            stream = await client.chat.completions.create(model=f"openai/demo-n{tokens}-d1", messages=USER, stream=True)
            async with stream:
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(read(tokens) for tokens in range(1, 21)))

    assert texts == [answer(tokens) for tokens in range(1, 21)]


def test_the_raw_response_has_the_ids(client: openai.OpenAI, provider: str):
    raw = client.chat.completions.with_raw_response.create(model=f"{provider}/demo-n2-d0", messages=USER)

    assert raw.request_id
    assert raw.parse()._request_id == raw.request_id == raw.headers["x-request-id"] == raw.headers["request-id"]
    assert raw.headers["x-generation-id"].startswith("gen_")


def test_the_models_are_listed(client: openai.OpenAI):
    models = client.models.list()

    assert {"gpt-5", "claude-opus-4-1", "demo"} <= {model.id for model in models}
    assert all(model.object == "model" and model.owned_by for model in models)


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("spec", "error", "status", "words"),
    [
        ("e400", openai.BadRequestError, 400, "asked to reject"),
        ("e404", openai.NotFoundError, 404, ""),
        ("e422", openai.UnprocessableEntityError, 422, "asked to reject"),
        # The gateway's own key was refused: nothing that the client could mend.
        ("e401", openai.InternalServerError, 502, "provider refused the key"),
    ],
)
def test_an_upstreams_refusal_is_the_sdks_own_class(
    client: openai.OpenAI, provider: str, stream: bool, spec: str, error: type[openai.APIStatusError], status: int, words: str
):
    with pytest.raises(error) as caught:
        client.chat.completions.create(model=f"{provider}/demo-{spec}", messages=USER, stream=stream)

    assert caught.value.status_code == status
    assert words in caught.value.message
    assert caught.value.request_id


def test_an_upstreams_rate_limit_is_relayed_with_its_retry_after(client: openai.OpenAI):
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="openai/demo-e429-ra0.5-sdk", messages=USER, stream=True)

    assert caught.value.response.headers["retry-after"] == "1"  # Whole seconds, rounded up.
    assert caught.value.code == "rate_limit_exceeded"


def test_a_wrong_key_is_an_authentication_error(shared: Fleet):
    with (
        openai.OpenAI(api_key="sk-wrong", base_url=f"{shared.url}/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model="demo", messages=USER)

    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


def test_an_unknown_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody-knows-it", messages=USER)

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_bad_request_names_the_field(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[])

    assert caught.value.param == "messages"
    assert "messages must not be empty" in caught.value.message


@pytest.mark.parametrize("spec", ["err5", "cut5", "end5"])
def test_an_answer_that_breaks_off_raises(client: openai.OpenAI, provider: str, spec: str):
    seen = []
    with (
        client.chat.completions.create(model=f"{provider}/demo-{spec}-d1", messages=USER, stream=True) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        for chunk in stream:
            seen.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before it raised counts.

    assert "".join(seen) == answer(5)
    assert caught.value.message
    assert type(caught.value) is openai.APIError
