"""Whom does a worker ask to stop an answer that nobody reads any more? The upstreams are scripted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.canonical.errors import ErrorKind, GatewayError
from workers.attempt.background_answers import cancel
from workers.outcome import BackgroundAnswer
from workers.providers.base import Deployment, UpstreamRequest

FIRST = Deployment("openai", "https://x.example/v1", "key-1", "gpt-5", "openai-responses")
ANSWER = BackgroundAnswer("resp_1", [FIRST, replace(FIRST, api_key="key-2")])


class Upstream:
    """Answers each request with the next of these statuses; 0 stands for no answer ever."""

    def __init__(self, *statuses: int | Exception) -> None:
        self._statuses = list(statuses)
        self.requests: list[tuple[str, str]] = []

    @asynccontextmanager
    async def open(self, request: UpstreamRequest, provider: str, *, is_stream: bool) -> AsyncIterator[Any]:
        assert (provider, is_stream) == ("openai", False)
        self.requests.append((request.url, request.headers["authorization"]))
        status = self._statuses.pop(0)
        if isinstance(status, Exception):
            raise status
        if status == 0:
            await asyncio.Event().wait()
        yield SimpleNamespace(status=status)


async def cancelled(*statuses: int | Exception) -> tuple[list[str], list[str]]:
    """Return the keys that were used, and the reason that was logged."""
    upstream = Upstream(*statuses)
    with capture_logs() as logs:
        await cancel(ANSWER, upstream)  # type: ignore[arg-type]
    assert {url for url, _ in upstream.requests} == {"https://x.example/v1/responses/resp_1/cancel"}
    failures = [line for line in logs if line["event"] == "upstream_not_cancelled"]
    assert all(line["provider"] == "openai" for line in failures)
    return [key.removeprefix("Bearer ") for _, key in upstream.requests], [line["reason"] for line in failures]


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_the_first_key_that_may_stop_it_is_enough(status):
    assert await cancelled(status) == (["key-1"], [])


@pytest.mark.parametrize("status", [199, 300, 404])
async def test_each_key_that_may_have_started_it_is_tried(status):
    assert await cancelled(status, 200) == (["key-1", "key-2"], [])


async def test_an_answer_that_nobody_stops_is_logged_with_the_last_status():
    assert await cancelled(404, 403) == (["key-1", "key-2"], ["status 403"])


async def test_a_provider_that_cannot_be_reached_is_logged_and_not_asked_again():
    assert await cancelled(GatewayError(ErrorKind.UPSTREAM_UNAVAILABLE, "no way")) == (["key-1"], ["no way"])


async def test_a_provider_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("workers.attempt.background_answers.CANCEL_S", 0.02)

    assert await cancelled(0) == (["key-1"], ["no answer in time"])
