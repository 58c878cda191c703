"""What each upstream call of a generation is charged for: on a channel in memory, and an upstream that does as it is told."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import orjson
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from common.cache.store import CacheStore
from common.canonical.events import COUNTS, FIGURE_MAX, Usage
from common.channel.base import FrameKind
from common.channel.memory import MemoryChannel
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.metering.attempt_cost import Attempt, attempts_from_record, pack, unpack
from common.metering.pricing import Cost, Price
from common.queue.jobs import ClaimedJob
from common.redis.client import connect
from common.responses import ResponseStore
from tests.workers.test_generate import G, Pulse, Setup
from workers.generate import run_generation
from workers.metrics import Metrics
from workers.publish.linger import Linger
from workers.publish.publisher import Publisher
from workers.quota.gate import Quota
from workers.services import Services
from workers.transcode.output_guardrails import OutputGuards
from workers.upstream.http_client import Upstream

TEXT = "A sluice is a small gate. " * 4
TEXT_TOKENS = 26
PROMPT_TOKENS = 5  # "hi", by estimate.
DOLLAR_A_TOKEN = Price(input_usd_per_mtok=Decimal(1_000_000), output_usd_per_mtok=Decimal(1_000_000))
CENT_A_TOKEN = Price(input_usd_per_mtok=Decimal(10_000), output_usd_per_mtok=Decimal(10_000))


class Scripted:
    """Chat completions, one answer after the other; the last is given again. ``hung`` is set when a call hangs."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.calls = 0
        self.url = ""
        self.hung = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        told = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if "status" in told:
            return web.json_response({"error": {"message": "no"}}, status=told["status"])
        if told.get("hangs"):
            self.hung.set()
            await asyncio.sleep(60)
        names = {"model": told.get("model", body["model"]), "service_tier": told.get("tier", "default")}
        usage = {"usage": told["usage"]} if "usage" in told else {}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
            return web.json_response({"id": "c", "choices": [choice], **names, **usage})
        return await self._stream(request, told, names, usage)

    async def _stream(self, request: web.Request, told: dict[str, Any], names: dict[str, Any], usage: Any) -> Any:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(delta: dict[str, Any], reason: str | None = None, **more: Any) -> None:
            chunk = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **names, **more}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")

        await send({"role": "assistant", "content": ""})
        if told.get("hangs_later"):
            self.hung.set()
            await asyncio.sleep(60)
        await send({"content": TEXT})
        if told.get("cuts"):
            request.transport.abort()
            return response
        await send({}, "stop", **usage)
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def upstream() -> AsyncIterator[Scripted]:
    scripted, app = Scripted(), web.Application()
    app.router.add_post("/v1/chat/completions", scripted.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    scripted.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
    yield scripted
    await runner.cleanup()


@pytest.fixture
async def setup(upstream: Scripted, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    own = {name: ProviderSettings(base_url=upstream.url, continuation="instruction") for name in ("dear", "cheap")}
    gone = ProviderSettings(base_url="http://127.0.0.1:9/v1")
    settings = Settings(
        retry_backoff_s=0.01,
        providers={**own, "gone": gone, "openai": ProviderSettings(base_url=upstream.url, api_keys=("k",))},
        aliases={"both": ["dear/m", "cheap/m"]},
        prices={"dear/m": DOLLAR_A_TOKEN, "cheap/m": CENT_A_TOKEN, "gone/m": CENT_A_TOKEN},
    )
    channel, linger = MemoryChannel(), Linger(settings.publish_linger_ms)
    publisher = Publisher(channel, Pulse(), settings, linger)
    publisher.start()
    services = Services(
        settings,
        channel,
        publisher,
        Upstream(settings, linger),
        metrics := Metrics(CollectorRegistry()),
        ResponseStore(Redis(), settings),
        Quota(connect("redis://127.0.0.1:1"), Pulse(), settings, metrics),
        OutputGuards(settings, None, metrics),
        CacheStore(connect("redis://127.0.0.1:1"), settings),
    )
    yield Setup(upstream.url, services)
    await publisher.stop()
    await services.upstream.close()


async def settled(setup: Setup, **claim: Any) -> Any:
    async with asyncio.timeout(20):
        return await run_generation(ClaimedJob(G, **{"epoch": 1, **claim}), setup.services)


async def left_while_it_hangs(setup: Setup, upstream: Scripted) -> Any:
    """The settlement of a generation whose client leaves once its call hangs."""
    running = asyncio.create_task(settled(setup))
    await asyncio.wait_for(upstream.hung.wait(), 10)
    await setup.channel.stop(G)
    return await running


def metric(setup: Setup, name: str, provider: str) -> float:
    return setup.services.metrics.registry.get_sample_value(name, {"provider": provider})


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["hangs", "hangs_later"])
async def test_who_leaves_before_the_first_token_pays_for_the_prompt_that_was_sent(setup, upstream, stream, how):
    upstream.answers = [{("hangs" if not stream else how): True}]
    await setup.open("cheap/m", stream=stream)

    settlement = await left_while_it_hangs(setup, upstream)

    end = await setup.end()
    assert (end["error"]["kind"], end["estimated"]) == ("cancelled", True)
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (PROMPT_TOKENS, 0)
    assert (settlement.tokens, settlement.cost_nano_usd) == (PROMPT_TOKENS, PROMPT_TOKENS * 10**7)
    assert [(account.name, nano) for account, nano in settlement.shares] == [("cheap", PROMPT_TOKENS * 10**7)]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_what_the_upstream_refused_costs_nothing(setup, upstream, status):
    upstream.answers = [{"status": status}]
    await setup.open("cheap/m")

    settlement = await settled(setup)

    end = await setup.end()
    assert (end["usage"], end["cost"], end["attempts"], settlement.tokens) == (None, None, [], 0)


async def test_a_provider_that_cannot_be_reached_costs_nothing(setup):
    await setup.open("gone/m")

    settlement = await settled(setup)

    assert ((await setup.end())["usage"], settlement.tokens, list(settlement.shares)) == (None, 0, [])


async def test_each_attempt_is_priced_by_itself_and_charged_to_its_own_provider(setup, upstream):
    upstream.answers = [{"cuts": True}, *3 * [{"status": 503}], {"usage": {"prompt_tokens": 40, "completion_tokens": 10}}]
    await setup.open("both")

    settlement = await settled(setup)

    end = await setup.end()
    assert end["error"] is None
    spent = PROMPT_TOKENS + TEXT_TOKENS
    assert [(each["provider"], each["estimated"]) for each in end["attempts"]] == [("dear", True), ("cheap", False)]
    assert {account.name: nano for account, nano in settlement.shares} == {"dear": spent * 10**9, "cheap": 50 * 10**7}
    assert settlement.cost_nano_usd == spent * 10**9 + 50 * 10**7
    assert Decimal(end["cost"]["total_usd"]) == spent + Decimal("0.5")
    assert end["usage"]["input_tokens"] == PROMPT_TOKENS + 40


ABSURD = [10**15, FIGURE_MAX + 1, 9e14, -1, "12", True, [1], {"n": 1}, 1e300]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("figure", ABSURD, ids=str)
async def test_an_absurd_report_is_marked_measured_and_estimated_at_the_most(setup, upstream, figure, stream):
    upstream.answers = [{"usage": {"prompt_tokens": figure, "completion_tokens": 3}}]
    await setup.open("cheap/m", stream=stream, max_tokens=700)

    settlement = await settled(setup)

    end = await setup.end()
    assert (end["error"], end["estimated"]) == (None, True)
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (PROMPT_TOKENS, 700)
    assert settlement.tokens == PROMPT_TOKENS + 700
    assert metric(setup, "sluice_absurd_usage_total", "cheap") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_whose_upstream_reports_no_usage_is_estimated_from_what_was_said(setup, upstream, stream):
    upstream.answers = [{}]
    await setup.open("cheap/m", stream=stream)

    settlement = await settled(setup)

    end = await setup.end()
    assert (end["error"], end["estimated"]) == (None, True)
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (PROMPT_TOKENS, TEXT_TOKENS)
    assert settlement.tokens == PROMPT_TOKENS + TEXT_TOKENS


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (PROMPT_TOKENS, TEXT_TOKENS)),
        ({"total_tokens": 500}, (PROMPT_TOKENS, TEXT_TOKENS)),
        ({"prompt_tokens": 40, "completion_tokens": 0}, (40, TEXT_TOKENS)),
        ({"prompt_tokens": 0, "completion_tokens": 70}, (PROMPT_TOKENS, 70)),
    ],
    ids=str,
)
async def test_a_reported_zero_that_cannot_be_one_is_estimated(setup, upstream, usage, tokens, stream):
    upstream.answers = [{"usage": usage}]
    await setup.open("cheap/m", stream=stream)

    settlement = await settled(setup)

    end = await setup.end()
    assert (end["error"], end["estimated"]) == (None, True)
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == tokens
    assert settlement.tokens == sum(tokens)
    assert settlement.cost_nano_usd == sum(tokens) * 10_000_000, "a cent a token"


async def test_the_model_that_answered_is_the_one_that_is_paid(setup, upstream):
    upstream.answers = [{"model": "gpt-5-pro", "usage": {"prompt_tokens": 992_000, "completion_tokens": 1_000}}]
    await setup.open("openai/gpt-5")

    await settled(setup)

    end = await setup.end()
    assert (end["upstream_model"], end["attempts"][0]["answered_by"], Decimal(end["cost"]["total_usd"])) == (
        "gpt-5",
        "gpt-5-pro",
        15,
    )


async def test_a_tier_that_was_asked_for_counts_where_nothing_was_answered(setup, upstream):
    upstream.answers = [{"hangs": True}]
    await setup.open("openai/gpt-5", service_tier="priority")

    await left_while_it_hangs(setup, upstream)

    end = await setup.end()
    assert end["attempts"][0]["service_tier"] == "priority"
    assert Decimal(end["cost"]["total_usd"]) == PROMPT_TOKENS * Decimal("2.50") / 10**6


async def test_an_unknown_price_is_null_and_counted(setup, upstream):
    upstream.answers = [{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}]
    await setup.open("cheap/other")

    settlement = await settled(setup)

    end = await setup.end()
    assert (end["cost"], end["usage"]["input_tokens"], settlement.cost_nano_usd) == (None, 1, 0)
    assert metric(setup, "sluice_unpriced_generations_total", "cheap") == 1


async def test_the_call_of_a_worker_that_was_lost_before_the_first_token_is_paid_by_the_next_claim(setup, upstream):
    upstream.answers = [{"hangs": True}, {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}]
    await setup.open("cheap/m")
    lost = asyncio.create_task(settled(setup))
    await asyncio.wait_for(upstream.hung.wait(), 10)
    (writer,) = setup.services.publisher._writers
    await setup.channel.heartbeat([writer.claim], [writer.packed_attempts])
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)

    settlement = await settled(setup, epoch=2)

    end = await setup.end()
    assert [each["usage"]["input_tokens"] for each in end["attempts"]] == [PROMPT_TOKENS, 9]
    assert settlement.tokens == PROMPT_TOKENS + 9 + 1


# What crosses Redis


def test_attempts_are_read_as_they_were_packed():
    usage = Usage(10, 5, 1, 2, 3, {"web_searches": 4}, "gpt-5-2026", "priority")
    attempts = [
        Attempt("openai", "gpt-5", usage, Cost(Decimal("0.1"), Decimal("0.2")), is_estimated=True, has_brought_key=True),
        Attempt("openai", "gpt-5", service_tier="flex"),
    ]

    first, second = unpack(pack(attempts))

    assert (first.usage, first.usage.model, first.usage.service_tier) == (usage, "gpt-5-2026", "priority")
    assert (first.cost, first.is_estimated, first.has_brought_key) == (attempts[0].cost, True, True)
    assert (second.usage, second.cost, second.service_tier) == (None, None, "flex")


def test_the_version_before_is_read():
    counts = {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
    cost = {"input_usd": "1", "output_usd": "2", "total_usd": "3"}
    end = {
        "error": None,
        "usage": counts,
        "estimated": True,
        "provider": "p",
        "upstream_model": "m",
        "brought_key": True,
        "cost": cost,
    }

    (of_end,) = attempts_from_record(end)
    (of_head,) = attempts_from_record({"spent": counts, "provider": "p", "upstream_model": "m"})

    assert (of_end.provider, of_end.model, of_end.usage, of_end.cost) == ("p", "m", Usage(10, 5), Cost(Decimal(1), Decimal(2)))
    assert (of_end.is_estimated, of_end.has_brought_key) == (True, True)
    assert (of_head.usage, of_head.is_estimated) == (Usage(10, 5), True)
    assert attempts_from_record({"spent": None}) == attempts_from_record({"usage": None}) == attempts_from_record({}) == []


async def test_the_version_before_can_read_what_a_head_says_was_spent(setup, upstream):
    """Its ``Usage`` is made of all that stands there, and knows five counts."""
    upstream.answers = [{"cuts": True}, *3 * [{"status": 503}], {"usage": {"prompt_tokens": 40, "completion_tokens": 10}}]
    await setup.open("both")

    await settled(setup)

    heads = [orjson.loads(frame.data) for frame in await setup.frames() if frame.kind is FrameKind.HEAD]
    assert [set(head["spent"] or COUNTS) for head in heads] == [set(COUNTS)] * 2


def test_fields_of_another_version_are_passed_over():
    fields = {"input_tokens": 1, "from_a_later_version": 2, "web_searches": 3}

    assert Usage.from_dict(fields) == Usage(1, details={"web_searches": 3})
    assert Usage.from_dict({}) == Usage()


@pytest.mark.parametrize("packed", [None, b"", b"nonsense", b"{}", b"[1, null]", b'[{"usage": 5, "cost": {"input_usd": "x"}}]'])
def test_a_note_that_is_none_of_ours_says_nothing(packed: bytes | None):
    assert [each.usage for each in unpack(packed)] in ([], [None])
