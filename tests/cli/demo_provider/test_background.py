"""The demo provider's answers in the background, through OpenAI's own SDK."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

import httpx
import openai
import pytest

from demo_provider import background
from demo_provider.background import Backgrounds
from demo_provider.script import answer
from demo_provider.server import running


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with running() as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="key", base_url=f"{address}/v1", max_retries=0) as client:
        yield client


async def stats(address):
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{address}/stats")).json()


async def begin(client, model, events_read=5):
    """Ask for an answer, leave after some of its events, and return those."""
    stream = await client.responses.create(model=model, input="hi", stream=True, background=True)
    read = []
    async for event in stream:
        read.append(event)
        if len(read) == events_read:
            break
    await stream.close()
    return read


def text_of(events):
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_an_answer_runs_on_and_is_read_from_any_event_on(client, address):
    read = await begin(client, "demo-n30-d2")
    id_ = read[0].response.id
    assert read[0].response.background is True

    whole = [event async for event in await client.responses.retrieve(id_, stream=True)]
    rest = [event async for event in await client.responses.retrieve(id_, stream=True, starting_after=10)]

    assert text_of(whole) == answer(30)
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert rest == whole[11:]
    assert whole[-1].type == "response.completed"
    found = await stats(address)
    assert (found["completed"], found["tokens"], found["open"]) == (1, 30, 0)
    assert found["by_wire"] == {"responses": 1, "responses/read": 2}


async def test_a_cancelled_answer_ends(client, address):
    (created, *_) = await begin(client, "demo-n100000-d5")
    reading = asyncio.create_task(anext(aiter(await client.responses.retrieve(created.response.id, stream=True))))
    await reading

    cancelled = await client.responses.cancel(created.response.id)
    again = await client.responses.cancel(created.response.id)

    assert cancelled.status == again.status == "cancelled"
    events = [event async for event in await client.responses.retrieve(created.response.id, stream=True)]
    assert events[-1].type == "response.output_text.delta"
    assert ((await stats(address))["open"], (await stats(address))["aborted"]) == (0, 1)


@pytest.mark.parametrize(("fault", "reads_on"), [("cut3", True), ("end3", True), ("cut99", True), ("err3", False)])
async def test_a_failure_is_the_connection_s_unless_it_is_an_error(client, fault, reads_on):
    events = []
    stream = await client.responses.create(model=f"demo-n9-d1-{fault}", input="hi", stream=True, background=True)
    with nullcontext() if fault == "end3" else pytest.raises(openai.APIError):
        while event := await anext(stream, None):
            events.append(event)

    assert len(text_of(events).split()) == (9 if fault == "cut99" else 3)
    again = await client.responses.retrieve(events[0].response.id, stream=True)
    if reads_on:
        assert text_of([event async for event in again]) == answer(9)
    else:
        with pytest.raises(openai.APIError):
            [event async for event in again]


async def test_what_is_not_kept_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_gone", stream=True)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_gone")
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="demo", input="hi", stream=True, background=True, store=False)


async def test_the_oldest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(background, "KEPT_MAX", 2)
    kept, ended = Backgrounds(), []

    async def say(answer):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(answer.response["id"])

    for id_ in ("a", "b", "c"):
        kept.start({"id": id_}, say)
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [kept.find(id_) is not None for id_ in ("a", "b", "c")] == [False, True, True]
    assert ended == ["a"]
    kept.stop()
    await asyncio.sleep(0)
