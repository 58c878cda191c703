"""The demo provider's Gemini wire, as Google's own clients would see it."""

import json
from typing import Any

import httpx
import pytest

from demo_provider.script import answer
from demo_provider.server import running

HELLO = {"contents": [{"role": "user", "parts": [{"text": "How does a sluice work?"}]}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"functionDeclarations": [{"name": "weather", "parametersJsonSchema": SCHEMA}]}]


@pytest.fixture
async def http():
    async with running() as address, httpx.AsyncClient(base_url=address, headers={"x-goog-api-key": "key"}) as client:
        yield client


async def ask(http: httpx.AsyncClient, model: str, method: str = "generateContent", **body: Any) -> httpx.Response:
    return await http.post(f"/v1beta/models/{model}:{method}", json={**HELLO, **body})


async def test_the_whole_answer(http):
    document = (await ask(http, "demo-n4-d0-think2")).json()

    (candidate,) = document["candidates"]
    thoughts, text = candidate["content"]["parts"]
    assert thoughts["thought"]
    assert (text, candidate["finishReason"]) == ({"text": answer(4)}, "STOP")
    usage = document["usageMetadata"]
    assert (usage["promptTokenCount"], usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (6, 4, 2)
    assert usage["totalTokenCount"] == 12


async def test_the_stream_has_the_line_ends_and_the_usage_of_the_real_one(http):
    response = await ask(http, "demo-n3-d0", "streamGenerateContent?alt=sse")

    *events, rest = response.text.split("\r\n\r\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert rest == ""
    assert [chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks] == ["A", " sluice", " is", ""]
    assert [chunk["usageMetadata"]["candidatesTokenCount"] for chunk in chunks] == [1, 2, 3, 3]
    assert [chunk["candidates"][0].get("finishReason") for chunk in chunks] == [None, None, None, "STOP"]


async def test_without_alt_sse_nothing_streams(http):
    response = await ask(http, "demo-n3-d0", "streamGenerateContent")

    assert response.json()["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
async def test_calls_come_whole_and_the_first_is_signed(http, method: str):
    response = await ask(http, "demo-tool2-d0", method, tools=TOOLS)

    last = response.text.rstrip().rpartition("data: ")[2]
    parts = json.loads(last)["candidates"][0]["content"]["parts"]
    assert [part["functionCall"]["args"] for part in parts] == [{"city": "Zürich"}] * 2
    assert ["thoughtSignature" in part for part in parts] == [True, False]


CALL = {"functionCall": {"name": "weather", "args": {}}}
RESULT = {"functionResponse": {"name": "weather", "response": {"output": "rain"}}}


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"role": "model", "parts": [CALL]}], "missing a thought_signature"),
        ([{"role": "model", "parts": [{**CALL, "thoughtSignature": "bm90IG91cnM="}]}], "missing a thought_signature"),
        ([{"role": "user", "parts": [RESULT]}], "number of function response parts"),
        ([{"role": "assistant", "parts": [{"text": "x"}]}], "valid role"),
        ([{"role": "user", "parts": []}], "must not be empty"),
    ],
)
async def test_what_gemini_would_refuse_is_refused(http, turns: list[dict[str, Any]], words: str):
    response = await ask(http, "demo-n1", contents=HELLO["contents"] + turns)

    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_call_that_somebody_else_made_may_be_unsigned(http):
    signed = {**CALL, "thoughtSignature": "skip_thought_signature_validator"}
    turns = [*HELLO["contents"], {"role": "model", "parts": [signed]}, {"role": "user", "parts": [RESULT]}]

    response = await ask(http, "demo-d0", contents=turns)

    assert response.json()["candidates"][0]["content"]["parts"] == [{"text": "The tool answered: rain"}]


@pytest.mark.parametrize(("key", "status", "reason"), [("bad-key", 400, "API_KEY_INVALID"), ("", 403, "PERMISSION_DENIED")])
async def test_a_wrong_key_is_refused_in_googles_way(http, key: str, status: int, reason: str):
    response = await http.post("/v1beta/models/demo:generateContent", json=HELLO, headers={"x-goog-api-key": key})

    assert response.status_code == response.json()["error"]["code"] == status
    assert reason in response.text


async def test_a_rate_limit_names_its_delay_in_the_body(http):
    response = await ask(http, "demo-e429")

    assert "retry-after" not in response.headers
    assert response.json()["error"]["details"][0]["retryDelay"] == "0.5s"


async def test_an_error_in_mid_stream_is_no_event(http):
    response = await ask(http, "demo-err1-d0", "streamGenerateContent?alt=sse")

    first, _, rest = response.text.partition("\r\n\r\n")
    assert first.startswith("data: ")
    assert json.loads(rest)["error"]["status"] == "UNAVAILABLE"


async def test_tokens_are_counted(http):
    counted = await ask(http, "demo", "countTokens", generateContentRequest={"model": "models/demo", **HELLO})

    assert counted.json() == {"totalTokens": 6}
