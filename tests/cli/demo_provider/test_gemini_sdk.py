"""The demo provider's Gemini wire through Google's own client, whose requests the strict judge must accept too.

Sluice speaks this wire only towards its upstreams. So the client is asked about both stand-ins for Google: does it understand
what they send, and do they take what it sends?
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from pydantic import BaseModel

from demo_provider.script import answer, reasoning_words
from demo_provider.server import running
from tests.support.upstreams.strict import refusal

genai = pytest.importorskip("google.genai", reason="make .venv/.ready-dev installs Google's client")
errors, types = genai.errors, genai.types

QUESTION = "How does a sluice work?"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# Google's client makes a schema of its own kind of this one.
OLD_SCHEMA = types.Schema(type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}, required=["city"])
DECLARATIONS = [
    types.FunctionDeclaration(name="weather", description="d", parameters_json_schema=SCHEMA),
    types.FunctionDeclaration(name="weather", description="d", parameters=OLD_SCHEMA),
]
MODEL = "gemini-3-flash-preview"  # Whose rules the judge applies; the demo provider reads only its own words.


class City(BaseModel):
    city: str


class Google:
    """The client, and what it sent."""

    def __init__(self, address: str, http: httpx.AsyncClient) -> None:
        self.requests: list[httpx.Request] = []
        http.event_hooks = {"request": [self._record]}
        options = types.HttpOptions(base_url=address, httpx_async_client=http)
        self.models = (client := genai.Client(api_key="key", http_options=options).aio).models
        self.chats = client.chats

    async def _record(self, request: httpx.Request) -> None:
        self.requests.append(request)

    def refusals(self) -> list[Any]:
        """Return what the strict judge refuses of the requests for an answer."""
        asked = [request for request in self.requests if not request.url.path.endswith(":countTokens")]
        judged = [refusal("google-ai-studio", _path(each), each.headers, orjson.loads(each.content)) for each in asked]
        return [judgement for judgement in judged if judgement]


def _path(request: httpx.Request) -> str:
    return f"/v1beta/models/{MODEL}:{request.url.path.rpartition(':')[2]}"


@pytest.fixture
async def google() -> AsyncIterator[Google]:
    async with running() as address, httpx.AsyncClient() as http:
        client = Google(address, http)
        yield client
        assert client.requests
        assert client.refusals() == []


def config(**fields: Any) -> Any:
    return types.GenerateContentConfig(**fields)


async def test_a_whole_answer_with_thoughts(google: Google) -> None:
    thinking = types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.LOW)
    asked = config(system_instruction="Be kind.", temperature=0.5, max_output_tokens=100, seed=1, thinking_config=thinking)

    response = await google.models.generate_content(model="demo-n4-d0-think2", contents=QUESTION, config=asked)

    (candidate,) = response.candidates
    thoughts = [part.text for part in candidate.content.parts if part.thought]
    assert (response.text, thoughts) == (answer(4), ["".join(reasoning_words(2))])
    assert candidate.finish_reason is types.FinishReason.STOP
    usage = response.usage_metadata
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (4, 2)


async def test_a_stream_that_reads_an_image_and_a_document(google: Google) -> None:
    media = [types.Part.from_bytes(data=b"x", mime_type=kind) for kind in ("image/png", "application/pdf")]

    chunks = [
        chunk async for chunk in await google.models.generate_content_stream(model="demo-n5-d0", contents=[QUESTION, *media])
    ]

    assert "".join(chunk.text or "" for chunk in chunks) == answer(5)
    assert len(chunks) > 5
    assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
    assert chunks[-1].usage_metadata.candidates_token_count == 5


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=["JSON schema", "Google's schema"])
async def test_calls_go_there_and_back_with_their_signatures(google: Google, declaration: Any) -> None:
    asked = config(tools=[types.Tool(function_declarations=[declaration])])
    first = await google.models.generate_content(model="demo-tool2-d0", contents=QUESTION, config=asked)

    calls = first.function_calls
    results = [types.Part.from_function_response(name=call.name, response={"output": "18 degrees"}) for call in calls]
    history = [types.UserContent(QUESTION), first.candidates[0].content, types.UserContent(results)]
    last = await google.models.generate_content(model="demo-tool2-d0", contents=history, config=asked)

    assert [(call.name, call.args) for call in calls] == [("weather", {"city": "Zürich"})] * 2
    assert first.candidates[0].content.parts[0].thought_signature
    assert last.text == "The tool answered: 18 degrees, 18 degrees"


async def test_a_chat_calls_python_functions_by_itself(google: Google) -> None:
    def weather(city: str) -> str:
        """Return the weather of a city."""
        return f"18 degrees in {city}"

    chat = google.chats.create(model="demo-tool-d0", config=config(tools=[weather]))

    response = await chat.send_message(QUESTION)

    assert response.text == "The tool answered: 18 degrees in Zürich"
    assert len(google.requests) == 2


@pytest.mark.parametrize("schema", [{"response_schema": City}, {"response_json_schema": SCHEMA}], ids=["class", "JSON schema"])
async def test_an_answer_has_the_form_of_its_schema(google: Google, schema: dict[str, Any]) -> None:
    asked = config(response_mime_type="application/json", **schema)

    response = await google.models.generate_content(model="demo-d0", contents=QUESTION, config=asked)

    assert City.model_validate_json(response.text) == City(city="Zürich")
    assert City.model_validate(response.parsed) == City(city="Zürich")


async def test_limits_end_the_answer(google: Google) -> None:
    limited = await google.models.generate_content(model="demo-n9-d0", contents=QUESTION, config=config(max_output_tokens=3))
    stopped = await google.models.generate_content(model="demo-n9-d0", contents=QUESTION, config=config(stop_sequences=["is"]))

    assert (limited.text, limited.candidates[0].finish_reason) == (answer(3), types.FinishReason.MAX_TOKENS)
    assert (stopped.text, stopped.candidates[0].finish_reason) == ("A sluice ", types.FinishReason.STOP)


async def test_tokens_are_counted(google: Google) -> None:
    counted = await google.models.count_tokens(model="demo", contents="one two three")

    assert counted.total_tokens == 4


@pytest.mark.parametrize(
    ("spec", "kind", "status"),
    [
        ("e400", errors.ClientError, "INVALID_ARGUMENT"),
        ("e429", errors.ClientError, "RESOURCE_EXHAUSTED"),
        ("e503", errors.ServerError, "UNAVAILABLE"),
    ],
)
async def test_errors_have_google_s_words(google: Google, spec: str, kind: type[Exception], status: str) -> None:
    with pytest.raises(kind) as failed:
        await google.models.generate_content(model=f"demo-{spec}", contents=QUESTION)

    assert (failed.value.code, failed.value.status) == (int(spec[1:]), status)


async def test_an_error_in_the_stream_is_an_error(google: Google) -> None:
    text = ""
    with pytest.raises(errors.ServerError, match="overloaded"):
        async for chunk in await google.models.generate_content_stream(model="demo-err2-d0", contents=QUESTION):
            text += chunk.text or ""

    assert text == answer(2)
