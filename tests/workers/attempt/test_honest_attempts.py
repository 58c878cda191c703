"""One job: an empty answer is tried again before its client sees anything, and what its format cannot carry is named."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from common.config.groups.models import ProviderSettings
from tests.workers.test_generate import Setup, setup  # noqa: F401 - a fixture.

EMPTY = {"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]}
IMAGE = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
PICTURE = {"candidates": [{"content": {"role": "model", "parts": [{"text": "words"}, IMAGE]}, "finishReason": "STOP"}]}


class Google:
    """Answers with one chunk after the other; the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.calls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        answer = b"data: " + orjson.dumps(self.answers[min(self.calls, len(self.answers) - 1)]) + b"\n\n"
        self.calls += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def google(setup: Setup) -> AsyncIterator[Google]:  # noqa: F811
    upstream = Google()
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        setup.services.settings.providers["google-ai-studio"] = ProviderSettings(base_url=address, api_keys=("k",))
        yield upstream


async def ask(setup: Setup, *, stream: bool, dialect: str = "anthropic-messages") -> dict[str, Any]:  # noqa: F811
    await setup.open("google-ai-studio/gemini-2.5-flash", dialect=dialect, stream=stream, max_tokens=100)
    await setup.run()
    return await setup.end()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_empty_answer_is_tried_again_unseen(setup, google, stream):  # noqa: F811
    google.answers = [EMPTY, PICTURE]

    ended = await ask(setup, stream=stream)

    assert (ended["error"], ended["tries"], google.calls) == (None, 2, 2)
    assert b"words" in await setup.body()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_second_one_is_an_error_before_anything_was_sent(setup, google, stream):  # noqa: F811
    google.answers = [EMPTY]

    ended = await ask(setup, stream=stream)

    assert (ended["error"]["kind"], ended["error"]["code"], google.calls) == ("upstream_protocol", "empty_answer", 2)
    assert await setup.body() == b""


@pytest.mark.parametrize("stream", [True, False])
async def test_an_image_without_a_place_is_in_the_record_and_in_a_whole_answers_header(setup, google, stream):  # noqa: F811
    google.answers = [PICTURE]

    ended = await ask(setup, stream=stream)

    head = orjson.loads((await setup.frames())[1].data)
    assert ended["left_out"] == ["images"]
    assert head["headers"].get("x-sluice-dropped") == (None if stream else "answer.images")


async def test_a_format_that_has_a_place_lacks_nothing(setup, google):  # noqa: F811
    google.answers = [PICTURE]

    ended = await ask(setup, stream=False, dialect="openai-chat")

    assert ended["left_out"] == []
    assert orjson.loads(await setup.body())["choices"][0]["message"]["images"][0]["type"] == "image_url"
