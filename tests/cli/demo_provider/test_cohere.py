"""The demo provider's Cohere wire, as the gateway's own reader and a plain one see it."""

import json
from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import httpx
import pytest

from common.canonical.events import Completed, Failed, FinishReason
from common.canonical.reply import Choice, Reply, fold
from demo_provider.script import answer, reasoning_words
from demo_provider.server import running
from tests.support.upstreams.recordings import blocks_of, data_of
from workers.providers.cohere.wire import COHERE

HELLO = [{"role": "user", "content": "How does a sluice work?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "tide")]
streaming_or_not = pytest.mark.parametrize("stream", [True, False])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running() as address,
        httpx.AsyncClient(base_url=address, headers={"authorization": "Bearer key"}) as client,
    ):
        yield client


async def post(http: httpx.AsyncClient, spec: str, **more: Any) -> httpx.Response:
    return await http.post("/v2/chat", json={"model": f"demo-d0-{spec}", "messages": HELLO, **more})


async def reply(http: httpx.AsyncClient, spec: str, *, stream: bool, **more: Any) -> Reply:
    response = await post(http, spec, stream=stream, **more)
    assert response.status_code == 200
    decoder = COHERE.decoder()
    if not stream:
        return fold(decoder.decode_whole(response.content))
    return fold([event for block in blocks_of(response.content) for event in decoder.decode(block)] + decoder.end())


def order(body: bytes) -> list[str]:
    return [name for name, _ in groupby(each["type"] for each in data_of(body))]


async def test_events_come_in_the_vendors_order(http: httpx.AsyncClient) -> None:
    text = (await post(http, "think2-n3", stream=True)).content
    calls = (await post(http, "think2-tool2", stream=True, tools=TOOLS)).content

    block = ["content-start", "content-delta", "content-end"]
    assert order(text) == ["message-start", *block, *block, "message-end"]
    call = ["tool-call-start", "tool-call-delta", "tool-call-end"]
    assert order(calls) == ["message-start", "tool-plan-delta", *call, *call, "message-end"]
    assert text.endswith(b"\n\ndata: [DONE]\n\n")


@streaming_or_not
async def test_thinking_text_and_usage(http: httpx.AsyncClient, stream: bool) -> None:
    said = await reply(http, "think4-n70", stream=stream)

    choice = said.choices[0]
    assert (choice.reasoning[0].text, choice.text) == ("".join(reasoning_words(4)), answer(70))
    assert choice.finish_reason is FinishReason.STOP
    assert said.usage is not None
    assert (said.usage.output_tokens, said.usage.reasoning_tokens) == (74, 4)


@streaming_or_not
async def test_tools_are_called_and_their_results_quoted(http: httpx.AsyncClient, stream: bool) -> None:
    first = (await reply(http, "think3-tool2", stream=stream, tools=TOOLS)).choices[0]

    assert [(call.name, json.loads(call.arguments)) for call in first.tool_calls] == [
        ("weather", {"city": "Zürich"}),
        ("tide", {"city": "Zürich"}),
    ]
    assert first.reasoning[0].text == "".join(reasoning_words(3))

    results = [{"role": "tool", "tool_call_id": call.id, "content": call.name} for call in first.tool_calls]
    second = (await reply(http, "tool2", stream=stream, tools=TOOLS, messages=[*HELLO, *results])).choices[0]
    assert second.text == "The tool answered: weather, tide"


async def test_limits_and_formats_are_obeyed(http: httpx.AsyncClient) -> None:
    async def choice(spec: str, **more: Any) -> Choice:
        return (await reply(http, spec, stream=True, **more)).choices[0]

    limited = await choice("n9", max_tokens=4)
    stopped = await choice("n20", stop_sequences=["patient"])
    document = await choice("n9", response_format={"type": "json_object", "json_schema": SCHEMA})

    assert (limited.text, limited.finish_reason) == (answer(4), FinishReason.LENGTH)
    assert (stopped.text, stopped.finish_reason) == (answer(20).partition("patient")[0], FinishReason.STOP_SEQUENCE)
    assert json.loads(document.text) == {"city": "Zürich"}
    assert (await choice("tool-n3", tools=TOOLS, tool_choice="NONE")).text == answer(3)


async def test_an_error_in_the_stream_is_its_end(http: httpx.AsyncClient) -> None:
    said = await reply(http, "err2", stream=True)

    assert said.choices[0].text == answer(2)
    assert said.failed is not None
    assert said.failed.type == "INVALID_TOOL_GENERATION"


async def test_an_end_without_a_terminal_event_is_a_cut(http: httpx.AsyncClient) -> None:
    body = (await post(http, "end2", stream=True)).content
    decoder = COHERE.decoder()

    events = [event for block in blocks_of(body) for event in decoder.decode(block)] + decoder.end()

    assert isinstance(events[-1], Failed)
    assert not any(isinstance(event, Completed) for event in events)


async def test_errors_are_the_vendors_own(http: httpx.AsyncClient) -> None:
    assert (await post(http, "e429-ra2")).headers["retry-after"] == "2"
    assert (await post(http, "e404")).json().keys() == {"id", "message"}
    missing = await http.post("/v2/chat", json={"model": "demo"})
    refused = await http.post("/v2/chat", json={}, headers={"authorization": "Bearer bad-key"})
    assert (missing.status_code, refused.status_code) == (400, 401)
    assert refused.json()["message"] == "invalid api token"
