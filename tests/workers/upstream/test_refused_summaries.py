"""An account that may not have summaries of reasoning still gets its answers, and later requests do not ask again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.config.groups.models import ProviderSettings
from tests.support.upstreams.wire_answers import STREAMS, AnswerSpec
from tests.workers.test_generate import Setup, setup  # noqa: F401 - a fixture.
from workers.providers.base import Deployment
from workers.upstream.refused_summaries import RefusedSummaries, refuses_summary

NOT_VERIFIED = {
    "error": {
        "message": "Your organization must be verified to generate reasoning summaries.",
        "type": "invalid_request_error",
        "param": "reasoning.summary",
        "code": "unsupported_value",
    }
}


class NotVerified:
    """OpenAI's Responses API for an organisation that it has not verified."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = orjson.loads(await reader.readexactly(length))
        self.bodies.append(body)
        if "summary" in body.get("reasoning", {}):
            answer, status, media_type = orjson.dumps(NOT_VERIFIED), b"400 Bad Request", b"application/json"
        else:
            answer, status, media_type = STREAMS["openai-responses"](AnswerSpec(text="Hello")), b"200 OK", b"text/event-stream"
        writer.write(b"HTTP/1.1 %b\r\ncontent-type: %b\r\nconnection: close\r\n" % (status, media_type))
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def not_verified(setup: Setup) -> AsyncIterator[NotVerified]:  # noqa: F811
    upstream = NotVerified()
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        setup.services.settings.providers["openai"] = ProviderSettings(base_url=address, api_keys=("k",))
        yield upstream


async def ask(setup: Setup, dialect: str, **body: Any) -> dict[str, Any]:  # noqa: F811
    """Return the response's headers."""
    await setup.open("openai/gpt-5.6", dialect=dialect, max_tokens=100, **body)
    await setup.run()
    head = orjson.loads((await setup.frames())[1].data)
    assert (await setup.end()).get("error") is None
    assert b"Hello" in await setup.body()
    return head["headers"]


async def test_the_answer_comes_without_a_summary_and_names_it(setup, not_verified):  # noqa: F811
    headers = await ask(setup, "anthropic-messages", thinking={"type": "enabled", "budget_tokens": 2000})

    assert [body["reasoning"].get("summary") for body in not_verified.bodies] == ["auto", None]
    assert headers["x-sluice-dropped"] == "reasoning.summary"


async def test_nobody_asks_for_a_summary_whose_client_does_not_want_to_see_it(setup, not_verified):  # noqa: F811
    thinking = {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}

    await ask(setup, "anthropic-messages", thinking=thinking, tools=[{"name": "f", "input_schema": {"type": "object"}}])

    assert all("summary" not in body.get("reasoning", {}) for body in not_verified.bodies)


def deployment(key: str, model: str = "gpt-5") -> Deployment:
    return Deployment("openai", "http://h", "", model, key_id=f"openai:{key}")


def test_a_refusal_is_remembered_for_its_key_and_model_and_then_forgotten():
    now = 0.0
    refused = RefusedSummaries(lambda: now)

    refused.record(deployment("a"))

    assert refused.apply(deployment("a")).refuses_summaries
    assert not refused.apply(deployment("b")).refuses_summaries
    assert not refused.apply(deployment("a", "o3")).refuses_summaries
    now = 4000.0
    assert not refused.apply(deployment("a")).refuses_summaries


def test_only_so_many_keys_are_remembered():
    refused = RefusedSummaries()

    for number in range(2000):
        refused.record(deployment(str(number)))

    assert not refused.apply(deployment("0")).refuses_summaries
    assert refused.apply(deployment("1999")).refuses_summaries


@pytest.mark.parametrize(("param", "is_it"), [("reasoning.summary", True), ("reasoning.effort", False), (None, False)])
def test_only_a_refusal_that_names_the_summary_is_one(param, is_it):
    assert refuses_summary(Failed(ErrorKind.UPSTREAM_REJECTED, "x", 400, param=param)) is is_it
