"""What a job's calls tell those that choose deployments for later requests, and what its client learns of the choice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.job import Job, Policy
from common.channel.base import FrameKind
from common.config.groups.models import ProviderSettings
from common.config.route_rules import Route, RouteTarget
from common.records.head import Head
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.providers.base import Deployment
from workers.quota.health import FAILURES_MIN, name_of
from workers.routing.traffic import SLOW_S
from workers.upstream.deployments import deployments

TEXT = {"id": "c", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
WHOLE = b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps(TEXT)
NOBODY = "http://127.0.0.1:9/v1"
DOWN = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down")


class Groq:
    """Answers as often as it is asked, and sees what this worker knows of it meanwhile."""

    def __init__(self, setup: Setup) -> None:  # noqa: F811
        self._setup = setup
        self.is_up, self.calls = True, 0
        self.loads: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.calls += 1
        self.loads.append(self._setup.services.traffic.load(name(self._setup)))
        if self.is_up:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE)
            await writer.drain()
        writer.close()


@pytest.fixture
async def groq(setup: Setup) -> AsyncIterator[Groq]:  # noqa: F811
    """A provider that answers, and a route on which another one, that nobody can reach, comes first."""
    upstream, settings = Groq(setup), setup.services.settings
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        settings.providers["groq"] = ProviderSettings(base_url=address, api_keys=("k",))
        settings.providers["mistral"] = ProviderSettings(base_url=NOBODY, api_keys=("k",))
        for name, models in {"fast": ["mistral/m", "groq/m"], "odd": ["groq/a b:c@d/é"]}.items():
            settings.routes[name] = Route(targets=[RouteTarget(model=model) for model in models])
            settings.aliases[name] = models
        yield upstream


def deployment(setup: Setup, provider: str = "groq") -> Deployment:  # noqa: F811
    job = Job(G, "r", "openai-chat", f"{provider}/m", True, Policy.STOP, 0, 1)
    (found,) = deployments(job, setup.services.settings)
    return found


def name(setup: Setup) -> str:  # noqa: F811
    return name_of(deployment(setup))


async def run(setup: Setup, model: str) -> dict[str, Any]:  # noqa: F811
    await setup.open(model)
    await setup.run()
    return await setup.end()


async def header(setup: Setup) -> str | None:  # noqa: F811
    (head,) = [frame for frame in await setup.frames() if frame.kind is FrameKind.HEAD]
    return Head.unpack(head.data).headers.get("x-sluice-route")


async def test_a_route_s_answer_names_who_gave_it_and_how_many_calls_it_took(setup, groq):  # noqa: F811
    ended = await run(setup, "fast")

    assert (ended["tries"], await header(setup)) == (2, "groq/m; attempts=2")  # Who cannot be reached is called once.


async def test_a_name_is_told_in_letters_that_a_header_can_have(setup, groq):  # noqa: F811
    await run(setup, "odd")

    assert await header(setup) == "groq/a%20b:c@d/%C3%A9; attempts=1"


async def test_an_answer_under_another_name_says_nothing_of_its_provider(setup, groq):  # noqa: F811
    await run(setup, "groq/m")

    assert await header(setup) is None


async def test_a_running_call_counts_until_it_ends_and_its_first_token_is_timed(setup, groq):  # noqa: F811
    await run(setup, "groq/m")

    traffic = setup.services.traffic
    assert (groq.loads, traffic.load(name(setup))) == ([1], 0)
    assert 0 < traffic.expected_s(name(setup)) < 120


async def test_failed_calls_run_no_longer_and_count_as_slow_ones_for_a_while(setup, groq):  # noqa: F811
    groq.is_up = False

    ended = await run(setup, "groq/m")

    traffic = setup.services.traffic
    assert ended["error"]["kind"] == "upstream_unavailable"
    assert 0 < traffic.load(name(setup)) <= ended["tries"]
    assert 0 < traffic.expected_s(name(setup)) <= SLOW_S


def make_unwell(setup: Setup, provider: str) -> None:  # noqa: F811
    for _ in range(FAILURES_MIN):
        setup.services.quota.health.record_failure(deployment(setup, provider), DOWN)


async def test_who_is_unwell_is_called_last(setup, groq):  # noqa: F811
    make_unwell(setup, "mistral")

    await run(setup, "fast")

    assert await header(setup) == "groq/m; attempts=1"


@pytest.mark.parametrize("is_unwell", [True, False])
async def test_who_is_unwell_is_called_once(setup, groq, is_unwell):  # noqa: F811
    groq.is_up = False
    if is_unwell:
        make_unwell(setup, "groq")

    await run(setup, "fast")

    assert groq.calls == (1 if is_unwell else setup.services.settings.attempts_per_deployment)


async def test_who_answers_is_well_again(setup, groq):  # noqa: F811
    health = setup.services.quota.health
    make_unwell(setup, "mistral")
    make_unwell(setup, "groq")

    await run(setup, "groq/m")

    assert health.unwell_by_provider() == {"mistral": 1}
    assert (name(setup), 0, 0) in health.pop_changes()
