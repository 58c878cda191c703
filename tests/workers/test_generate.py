"""One job from claim to end, on a channel in memory and a real demo provider over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from common.cache.store import CacheStore
from common.canonical.job import CacheOrder, Job, Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, Stop
from common.channel.memory import MemoryChannel
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.queue.jobs import ClaimedJob
from common.queue.worker import UnusableJob
from common.redis.client import connect
from common.responses import ResponseStore
from demo_provider.script import answer
from demo_provider.server import running
from workers.generate import run_generation
from workers.metrics import Metrics
from workers.publish.linger import Linger
from workers.publish.publisher import Publisher
from workers.quota.gate import Quota
from workers.services import Services
from workers.transcode.output_guardrails import OutputGuards
from workers.upstream.http_client import Upstream

G = "gen_1"


class Pulse:
    is_up = True

    def healthy_s(self) -> float:
        return 1000.0


@dataclass
class Setup:
    address: str
    services: Services
    channel: MemoryChannel = field(init=False)

    def __post_init__(self) -> None:
        self.channel = self.services.channel  # type: ignore[assignment]  # What the fixture put there.

    async def open(
        self, model: str, *, stream: bool = True, dialect: str = "openai-chat", cache: CacheOrder | None = None, **body: Any
    ) -> None:
        asked = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}], **body}
        raw = orjson.dumps(asked)
        job = Job(G, "req_1", dialect, model, stream, Policy.STOP, 0, 1, {}, raw, provider=body.get("provider"), cache=cache)
        await self.channel.subscribe(G, lambda message: None)
        await self.channel.open(G, Opening("me", dialect, stream, model, 1, Policy.STOP, 0, 60, 600, job.pack()), "r")

    async def run(self, **claim: Any) -> None:
        async with asyncio.timeout(120):
            await run_generation(ClaimedJob(G, **{"epoch": 1, **claim}), self.services)

    async def frames(self) -> list[Frame]:
        return await self.channel.read(G, START, 100_000)

    async def body(self) -> bytes:
        return b"".join([frame.data for frame in await self.frames() if frame.kind is FrameKind.DATA])

    async def end(self) -> dict[str, Any]:
        last = (await self.frames())[-1]
        assert last.kind is FrameKind.END
        return orjson.loads(last.data)

    async def stats(self) -> dict[str, Any]:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{self.address}/stats")).json()


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    async with running("127.0.0.1", 0) as address:
        providers = {
            "demo": ProviderSettings(base_url=f"{address}/v1"),
            "openai": ProviderSettings(base_url=f"{address}/v1", api_keys=("bad-key", "good-key")),
            "anthropic": ProviderSettings(base_url="http://127.0.0.1:9", api_keys=("k",)),
        }
        # Also what is too little for real ones.
        settings = Settings(providers=providers, retry_backoff_s=0.01).model_copy(update=getattr(request, "param", {}))
        channel = MemoryChannel()
        linger = Linger(settings.publish_linger_ms)
        publisher = Publisher(channel, Pulse(), settings, linger)  # type: ignore[arg-type]  # A pulse that is always whole.
        publisher.start()
        services = Services(
            settings,
            channel,
            publisher,
            Upstream(settings, linger),
            metrics := Metrics(CollectorRegistry()),
            ResponseStore(Redis(), settings),
            Quota(connect("redis://127.0.0.1:1"), Pulse(), settings, metrics),  # type: ignore[arg-type]  # Not asked.
            OutputGuards(settings, None, metrics),
            CacheStore(connect("redis://127.0.0.1:1"), settings),
        )
        yield Setup(address, services)
        await publisher.stop()
        await services.upstream.close()


async def test_an_answer_is_a_head_data_and_an_end(setup):
    await setup.open("demo-n5-d0")

    await setup.run()

    kinds = [frame.kind for frame in await setup.frames()]
    assert kinds[:3] == [FrameKind.FENCE, FrameKind.HEAD, FrameKind.DATA]
    assert kinds[-1] is FrameKind.END
    assert (await setup.body()).endswith(b"data: [DONE]\n\n")
    end = await setup.end()
    assert (end["error"], end["finish_reason"], end["usage"]["output_tokens"]) == (None, "stop", 5)


async def test_an_answer_that_is_not_streamed_is_one_body(setup):
    await setup.open("demo-n5-d0", stream=False)

    await setup.run()

    assert orjson.loads(await setup.body())["choices"][0]["message"]["content"] == answer(5)


async def test_a_large_body_is_cut_into_frames(setup, monkeypatch):
    monkeypatch.setattr("workers.attempt.call.FRAME_BYTES_MAX", 1000)
    monkeypatch.setattr("workers.publish.writer.FRAME_BYTES_MAX", 1000)
    await setup.open("demo-n2000-d0", stream=False)

    await setup.run()

    sizes = [len(frame.data) for frame in await setup.frames() if frame.kind is FrameKind.DATA]
    assert max(sizes) <= 1000
    assert orjson.loads(await setup.body())["choices"][0]["message"]["content"] == answer(2000)


async def test_a_large_body_is_written_no_faster_than_the_log_takes_it(setup, monkeypatch):
    monkeypatch.setattr("workers.publish.writer.PENDING_BYTES_MAX", 2000)
    monkeypatch.setattr("workers.attempt.call.FRAME_BYTES_MAX", 1000)
    appended, append = [], setup.channel.append

    async def noting(appends: list[Append]) -> Any:
        appended.extend(sum(len(frame.data) for frame in each.frames) for each in appends)
        return await append(appends)

    setup.channel.append = noting
    await setup.open("demo-n2000-d0", stream=False)

    await setup.run()

    assert max(appended) < 4000 < sum(appended)


@pytest.mark.parametrize("setup", [{"answer_bytes_max": 5_000}], indirect=True)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_larger_than_it_may_be_ends_with_a_clear_error_and_its_upstream_is_closed(setup, stream):
    await setup.open("demo-n2000-d1" if stream else "demo-n2000-d0", stream=stream)

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["kind"], error["code"]) == ("request_too_large", "answer_too_large")
    assert len(await setup.body()) < 5_000 + 100_000
    stats = await setup.stats()
    assert (stats["requests"], stats["open"]) == (1, 0)  # It is neither tried again nor gone on with.


@pytest.mark.parametrize("setup", [{"answer_bytes_max": 5_000}], indirect=True)
async def test_an_answer_that_is_gathered_for_its_client_is_stopped_as_soon_as_it_is_too_large(setup):
    await setup.open("demo-n100000-d1", stream=False, dialect="anthropic-messages", max_tokens=100_000)

    await setup.run()  # The whole of it would take minutes.

    assert (await setup.end())["error"]["code"] == "answer_too_large"
    stats = await setup.stats()
    assert (stats["requests"], stats["open"]) == (1, 0)


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic-messages"])  # A body that passes, and a stream that is folded.
async def test_large_answers_have_room_before_they_are_written(setup, monkeypatch, dialect):
    monkeypatch.setattr("workers.publish.large_answers.LARGE_BYTES", 2_000)
    monkeypatch.setattr("workers.attempt.call.LARGE_BYTES", 2_000)
    monkeypatch.setattr("workers.publish.writer.LARGE_BYTES", 2_000)
    large = setup.services.publisher.large
    large.bytes_held = large.bytes_max
    await setup.open("demo-n2000-d0", stream=False, dialect=dialect, max_tokens=10_000)

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["kind"], error["code"]) == ("overloaded", "answers_full")
    assert (await setup.body(), large.bytes_held) == (b"", large.bytes_max)


async def test_a_folded_stream_is_cut_into_frames(setup, monkeypatch):
    monkeypatch.setattr("workers.attempt.call.FRAME_BYTES_MAX", 1000)
    monkeypatch.setattr("workers.publish.writer.FRAME_BYTES_MAX", 1000)
    await setup.open("demo-n2000-d0", stream=False, dialect="anthropic-messages", max_tokens=10_000)

    await setup.run()

    sizes = [len(frame.data) for frame in await setup.frames() if frame.kind is FrameKind.DATA]
    assert max(sizes) <= 1000
    assert orjson.loads(await setup.body())["content"][0]["text"] == answer(2000)


@pytest.mark.parametrize("fault", ["e503x2", "e429x2-ra0.01", "e408x1", "dropx2", "cut0x2", "end0x1", "err0x1"])
async def test_a_failure_before_the_first_output_is_tried_again_unseen(setup, fault):
    await setup.open(f"demo-n5-d0-{fault}")

    await setup.run()

    assert (await setup.end())["error"] is None
    assert sum(frame.kind is FrameKind.HEAD for frame in await setup.frames()) == 1


@pytest.mark.parametrize(("fault", "kind"), [("cut2", "upstream_unavailable"), ("end2", "upstream_unavailable")])
async def test_a_break_behind_the_first_output_ends_the_log_as_failed(setup, fault, kind):
    await setup.open(f"demo-n5-d0-{fault}", n=2)  # Of several answers none can be gone on with.

    await setup.run()

    assert (await setup.end())["error"]["kind"] == kind
    assert b"[DONE]" not in await setup.body()
    assert (await setup.stats())["requests"] == 1


async def test_a_dead_key_goes_to_the_next_at_once(setup):
    await setup.open("openai/demo-n5-d0")

    await setup.run()

    assert (await setup.end())["error"] is None
    assert (await setup.stats())["requests"] == 2


async def test_when_no_key_is_left_the_client_is_not_told_of_it_as_its_own(setup):
    setup.services.settings.providers["openai"].api_keys = setup.services.settings.providers["openai"].api_keys[:1]
    await setup.open("openai/demo-n5-d0")

    await setup.run()

    error = (await setup.end())["error"]
    assert error["kind"] == "upstream_credentials"
    assert error.get("status") is None
    assert "bad-key" not in error["message"]


async def test_an_upstream_that_cannot_be_reached_is_unavailable(setup):
    await setup.open("anthropic/claude-x", max_tokens=5)

    await setup.run()

    assert (await setup.end())["error"]["kind"] == "upstream_unavailable"


@pytest.mark.parametrize(
    ("setup", "fault"),
    [({"first_token_timeout_s": 0.1}, "f5000"), ({"between_tokens_timeout_s": 0.1}, "stall2")],
    indirect=["setup"],
)
async def test_silence_of_an_upstream_ends_in_a_timeout_and_closes_it(setup, fault):
    await setup.open(f"demo-n5-d0-{fault}", n=2)

    await setup.run()

    assert (await setup.end())["error"]["kind"] == "upstream_timeout"
    async with asyncio.timeout(120):
        while (await setup.stats())["open"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("setup", [{"first_token_timeout_s": 0.5}], indirect=True)
async def test_the_first_token_s_time_limits_nothing_but_the_first_token(setup):
    setup.services.settings.providers["anthropic"].base_url = setup.address
    await setup.open("anthropic/demo-n100-d10", stream=False, max_tokens=1000)  # Another family: folded from a stream.

    await setup.run()

    assert orjson.loads(await setup.body())["choices"][0]["message"]["content"] == answer(100)


@pytest.mark.parametrize("setup", [{"total_timeout_s": 0.2}], indirect=True)
async def test_a_generation_has_a_total_deadline(setup):
    await setup.open("demo-n1000-d20")

    await setup.run()

    assert (await setup.end())["error"]["kind"] == "deadline_exceeded"


@pytest.mark.parametrize("setup", [{"upstream_connections_max": 0}], indirect=True)
async def test_running_out_of_connections_is_our_overload(setup):
    await setup.open("demo-n5")

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["kind"], error["retry_after_s"]) == ("overloaded", 5)


async def test_a_stopped_generation_is_ended_before_its_upstream_is_called(setup):
    await setup.open("demo-n5")
    await setup.channel.stop(G)

    await setup.run()

    assert (await setup.end())["error"]["kind"] == "cancelled"
    assert (await setup.stats())["requests"] == 0


@pytest.mark.parametrize(
    ("reason", "cause"), [(Stop.LEFT, "its client left"), (Stop.API_ENDED, "the gateway process that served its client ended")]
)
async def test_the_end_of_a_generation_that_nobody_reads_says_why(setup, reason, cause):
    await setup.open("demo-n5")
    await setup.channel.leave(G, "r", reason)

    await setup.run()

    assert (await setup.end())["error"]["message"] == f"The generation was stopped: {cause}."


@pytest.mark.parametrize("dialect", ["openai-chat", "agentary"])  # Passed on, and translated.
async def test_a_stop_after_the_last_token_leaves_a_complete_answer(setup, monkeypatch, dialect):
    async def stop_and_wait(*_: object) -> None:
        await setup.channel.stop(G)
        await asyncio.Event().wait()

    monkeypatch.setattr("workers.attempt.call._read_to_end", stop_and_wait)
    await setup.open("demo-n5", dialect=dialect)

    await setup.run()

    end = await setup.end()
    assert (end["error"], end["finish_reason"], end["usage"]["output_tokens"]) == (None, "stop", 5)
    assert len(end["attempts"]) == 1


async def test_a_stop_flag_closes_a_running_upstream(setup):
    await setup.open("demo-n5000-d5")
    running_job = asyncio.create_task(setup.run())
    async with asyncio.timeout(120):
        while len(await setup.frames()) < 4:
            await asyncio.sleep(0.01)

    await setup.channel.leave(G, "r")

    await running_job
    assert (await setup.end())["error"]["code"] == "cancelled"
    async with asyncio.timeout(120):
        while (await setup.stats())["open"]:
            await asyncio.sleep(0.01)


async def test_a_log_that_has_ended_needs_nothing_more(setup):
    await setup.open("demo-n5-d0")
    await setup.run()
    before = await setup.frames()

    await setup.run(epoch=2)

    assert await setup.frames() == before


async def test_a_claim_after_the_commit_point_of_another_ends_with_the_error_where_it_cannot_go_on(setup):
    await setup.open("demo-n5-d0", n=2)
    first = Claim(G, 1, "t")
    await setup.channel.fence(first, is_handover=False)
    await setup.channel.append([Append(first, FrameId(1, 0), [Frame(FrameId(1, 1), FrameKind.HEAD, b"{}")])])

    await setup.run(epoch=2)

    assert (await setup.end())["error"]["kind"] == "worker_lost"
    assert (await setup.stats())["requests"] == 0


async def test_a_job_that_three_claims_in_a_row_died_on_is_poison(setup):
    await setup.open("demo-n5-d0")
    for epoch in (1, 2, 3):
        await setup.channel.fence(Claim(G, epoch, f"t{epoch}"), is_handover=False)

    await setup.run(epoch=4)

    assert (await setup.end())["error"]["code"] == "poison_job"


@pytest.mark.parametrize("frames", [[], [FrameKind.HEAD], [FrameKind.HEAD, FrameKind.DATA]])
async def test_a_job_that_killed_three_workers_is_ended_by_nothing_of_its_own(setup, monkeypatch, frames):
    await setup.open("demo-n5-d0")
    claim = Claim(G, 1, "t")
    await setup.channel.fence(claim, is_handover=False)
    for n, kind in enumerate(frames, 1):
        await setup.channel.append([Append(claim, FrameId(1, n - 1), [Frame(FrameId(1, n), kind, b"{}")])])
    # Whatever kills a worker may be in these.
    for name in ("generate._read_job", "generate.measure", "ending.settle_attempts", "ending._report"):
        monkeypatch.setattr(f"workers.{name}", lambda *_: pytest.fail("it looks into the job"))

    with pytest.raises(UnusableJob):
        await setup.run(epoch=4, deaths=3)

    assert (await setup.end()).keys() == {"format", "error"}
    assert ((await setup.end())["error"]["code"], (await setup.end())["error"]["kind"]) == ("poison_job", "worker_lost")
    assert (await setup.stats())["requests"] == 0


async def test_a_job_that_kills_whoever_settles_it_is_set_aside_with_the_end_that_it_has(setup):
    await setup.open("demo-n5-d0")
    await setup.run()
    end = await setup.end()

    with pytest.raises(UnusableJob):
        await setup.run(epoch=4, deaths=3)

    assert await setup.end() == end


async def test_a_job_on_which_two_workers_died_is_run(setup):
    await setup.open("demo-n5-d0")

    await setup.run(epoch=3, deaths=2)

    assert (await setup.end())["error"] is None


async def test_a_job_claimed_past_its_deadline_is_not_run(setup):
    await setup.open("demo-n5-d0")

    await setup.run(is_late=True)

    assert (await setup.end())["error"]["kind"] == "deadline_exceeded"


async def test_a_cancellation_from_outside_leaves_the_log_open_for_the_next_claim(setup):
    await setup.open("demo-n5000-d5-f100")
    running_job = asyncio.create_task(setup.run())
    async with asyncio.timeout(120):
        while not (await setup.stats())["open"]:
            await asyncio.sleep(0.01)

    running_job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_job

    assert [frame.kind for frame in await setup.frames()] == [FrameKind.FENCE]
    assert (await setup.channel.heartbeat([Claim(G, 1, "x")]))[0].stop is Stop.NO


async def test_a_request_that_cannot_be_read_ends_with_an_error(setup):
    await setup.channel.open(G, Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b"not a job"), "r")

    await setup.run()

    assert (await setup.end())["error"]["kind"] == "internal"


def with_openai_keys(setup: Setup, *keys: str) -> Settings:
    settings = setup.services.settings
    openai = settings.providers["openai"].model_copy(update={"api_keys": tuple(map(SecretStr, keys))})
    return settings.model_copy(update={"providers": {**settings.providers, "openai": openai}})


def use(setup: Setup, settings: Settings) -> None:
    services = setup.services
    services.replace_settings(settings, services.guards, services.router_for(settings))


async def test_a_refused_key_makes_the_worker_look_for_a_newer_one_before_it_fails(setup):
    use(setup, with_openai_keys(setup, "bad-key"))
    looks = []

    async def refresh() -> None:
        looks.append(True)
        use(setup, with_openai_keys(setup, "good-key"))

    setup.services.refresh = refresh
    await setup.open("openai/demo-n3-d0")

    await setup.run()

    assert ((await setup.end()).get("error"), len(looks)) == (None, 1)


async def test_without_a_newer_key_a_refused_one_fails_after_one_look(setup):
    use(setup, with_openai_keys(setup, "bad-key"))
    looks = []

    async def refresh() -> None:
        looks.append(True)

    setup.services.refresh = refresh
    await setup.open("openai/demo-n3-d0")

    await setup.run()

    assert ((await setup.end())["error"]["kind"], len(looks)) == ("upstream_credentials", 1)


async def test_a_target_that_a_reload_has_removed_serves_what_was_accepted_before(setup):
    demo = setup.services.settings.providers["demo"]
    use(setup, setup.services.settings.model_copy(update={"providers": {"old": demo}}))
    use(setup, setup.services.settings.model_copy(update={"providers": {"demo": demo}}))
    await setup.open("old/demo-n3-d0")

    await setup.run()

    assert (await setup.end()).get("error") is None


async def test_a_running_job_keeps_the_settings_with_which_it_began(setup):
    await setup.open("demo/demo-n40-d10")
    running = asyncio.create_task(setup.run())
    while not await setup.frames():
        await asyncio.sleep(0)

    use(setup, setup.services.settings.model_copy(update={"providers": {}, "answer_bytes_max": 1}))
    await running

    assert (await setup.end()).get("error") is None
