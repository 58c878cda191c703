"""One count of a prompt's tokens, from an upstream that answers what the test says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from common.canonical.job import Job, Policy
from common.channel.base import FrameKind, Opening
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.

PROMPT = "x" * 400


class Counter:
    """An upstream with one answer for every request; it keeps the requests."""

    def __init__(self) -> None:
        self.status, self.body = "200 OK", b'{"input_tokens": 7}'
        self.headers = b"content-type: application/json\r\ncf-aig-cache-status: MISS\r\n"
        self.requests: list[tuple[bytes, dict[str, Any]]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
        self.requests.append((head, orjson.loads(await reader.readexactly(int(size)))))
        head = f"HTTP/1.1 {self.status}\r\ncontent-length: {len(self.body)}\r\n".encode() + self.headers
        writer.write(head + b"connection: close\r\n\r\n" + self.body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def counter(setup: Setup) -> AsyncIterator[Counter]:  # noqa: F811
    upstream = Counter()
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        setup.services.settings.providers["anthropic"].base_url = address
        yield upstream


async def count(setup: Setup, model: str = "anthropic/claude-x") -> tuple[dict[str, str], Any]:  # noqa: F811
    """Return the response's headers and its body; of a count that failed, its error."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": PROMPT}]}
    job = Job(G, "r", "anthropic-messages", model, False, Policy.STOP, 0, 1, body=orjson.dumps(body), operation="count_tokens")
    await setup.channel.subscribe(G, lambda message: None)
    await setup.channel.open(G, Opening("me", job.dialect, False, model, 1, Policy.STOP, 0, 60, 600, job.pack()), "r")
    await setup.run()
    head = next((frame for frame in await setup.frames() if frame.kind is FrameKind.HEAD), None)
    headers = orjson.loads(head.data)["headers"] if head else {}
    return headers, (await setup.end())["error"] or orjson.loads(await setup.body())


async def test_the_provider_s_own_count_is_passed_on(setup, counter):  # noqa: F811
    with capture_logs() as lines:
        headers, body = await count(setup)

    assert body == {"input_tokens": 7}
    assert headers == {"cf-aig-cache-status": "MISS"}
    ((head, asked),) = counter.requests
    assert head.startswith(b"POST /v1/messages/count_tokens ")
    assert asked == {"model": "claude-x", "messages": [{"role": "user", "content": PROMPT}]}
    assert [line["messages"] for line in lines if line["event"] == "generation_ended"] == [1]


async def test_a_provider_that_does_not_count_is_not_asked_and_the_answer_says_that_it_is_estimated(setup):  # noqa: F811
    headers, body = await count(setup, "demo")

    assert body == {"input_tokens": 104}
    assert headers == {"x-sluice-estimated": "true"}
    assert (await setup.stats())["requests"] == 0


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "501 Not Implemented"])
async def test_a_server_without_the_path_is_estimated_for(setup, counter, status):  # noqa: F811
    counter.status, counter.body = status, b'{"error": {"message": "no such page"}}'

    headers, body = await count(setup)

    assert body == {"input_tokens": 104}
    assert headers == {"cf-aig-cache-status": "MISS", "x-sluice-estimated": "true"}


async def test_a_model_that_is_unknown_is_an_error(setup, counter):  # noqa: F811
    counter.status, counter.body = "404 Not Found", b'{"error": {"type": "not_found_error", "message": "model: claude-x"}}'

    _, error = await count(setup)

    assert (error["kind"], error["status"]) == ("upstream_rejected", 404)


@pytest.mark.parametrize("status", ["300 Multiple Choices", "400 Bad Request"])
async def test_a_refusal_is_an_error_without_the_key(setup, counter, status):  # noqa: F811
    setup.services.settings.providers["anthropic"].api_keys = ("sk-quoted-key-0123456789",)
    counter.status = status
    counter.body = b'{"error": {"type": "invalid_request_error", "message": "key sk-quoted-key-0123456789, no"}}'

    _, error = await count(setup)

    assert "sk-quoted-key" not in orjson.dumps(error).decode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not JSON", "not JSON"),
        (b"<html>no</html>", "HTML page"),
        (b'{"error": {"message": "overloaded"}}', "overloaded"),
        (b"{}", "no answer"),
        (b'{"input_tokens": -1}', "no answer"),
    ],
)
async def test_a_success_without_a_count_is_an_error_that_says_what_came_instead(setup, counter, body, words):  # noqa: F811
    counter.body = body

    _, error = await count(setup)

    assert error["kind"].startswith("upstream")
    assert words in error["message"]
