"""One job whose answer its provider runs in the background, on a channel in memory and a real demo provider over HTTP."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from common.channel.base import FrameKind
from common.config.groups.models import ProviderSettings
from common.sse import split_blocks
from demo_provider.script import answer
from tests.workers.continuation.test_continuation import READERS, every_dialect, lose, open_as
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.providers import WIRES
from workers.providers.base import BackgroundWire, Deployment

TOOL = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}


@pytest.fixture
def demo(setup: Setup) -> Setup:  # noqa: F811
    setup.services.settings.providers["openai"] = ProviderSettings(
        base_url=f"{setup.address}/v1", api_keys=("bad-key", "good-key"), continuation="reattach"
    )
    return setup


async def open_at_openai(demo: Setup, dialect: str, model: str, **body: Any) -> None:
    if dialect in ("agentary", "unified"):
        await open_as(demo, dialect, model, provider="openai", **body)
    else:
        await open_as(demo, dialect, f"openai/{model}", **body)


async def asked(demo: Setup) -> dict[str, int]:
    """How often the provider was asked, by what for, refused keys left out."""
    by_wire: dict[str, int] = (await demo.stats())["by_wire"]
    return {name.removeprefix("responses/"): count for name, count in by_wire.items()}


async def bodies(demo: Setup) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        return [each["body"] for each in (await client.get(f"{demo.address}/requests")).json()]


async def upstream_id(demo: Setup) -> str:
    heads = [orjson.loads(frame.data) for frame in await demo.frames() if frame.kind is FrameKind.HEAD]
    return heads[-1]["upstream_id"]


async def until_cancelled(demo: Setup) -> None:
    async with asyncio.timeout(120):
        while (await demo.stats())["aborted"] != 1:
            await asyncio.sleep(0.01)
    assert (await asked(demo))["cancel"] >= 1


@every_dialect
@pytest.mark.parametrize("fault", ["cut5x1", "end5x1", "cut1x1"])
async def test_a_lost_connection_s_answer_is_read_again_exactly(demo, dialect, fault):
    await open_at_openai(demo, dialect, f"demo-n20-d5-{fault}")

    await demo.run()

    seen = READERS[dialect](await demo.body())
    end = await demo.end()
    assert (seen.text, seen.output_tokens) == (answer(20), 20)
    assert (end["error"], end["estimated"], end["usage"]["output_tokens"]) == (None, False, 20)
    # Each of the two keys has its turn, for the answer and for reading it again.
    assert await asked(demo) == {"responses": 2, "read": 2}
    assert [(body["background"], body["store"]) for body in await bodies(demo) if body] == [(True, True)] * 2


@every_dialect
async def test_a_lost_worker_s_answer_is_read_again_behind_every_event(demo, dialect):
    await open_at_openai(demo, dialect, "demo-n12-d0")
    await demo.run()
    blocks, known = split_blocks(await demo.body()), await upstream_id(demo)
    before = await asked(demo)
    assert known.startswith("resp_")
    for k in range(len(blocks) + 1):
        await open_at_openai(demo, dialect, "demo-n12-d0")
        await lose(demo, blocks[:k], provider="openai", upstream_id=known)

        await demo.run(epoch=2)

        body, end = await demo.body(), await demo.end()
        seen = READERS[dialect](body)
        assert seen.text == answer(12), k
        assert (end["error"], end["usage"]["output_tokens"]) == (None, seen.output_tokens)
        # What was already finished is only ended, and only chat's usage comes behind that.
        assert seen.output_tokens == 12 or (dialect == "openai-chat" and k == len(blocks) - 2)
        assert body.startswith(b"".join(blocks[:k]))
    assert (await asked(demo))["responses"] == before["responses"]


async def test_a_reading_that_breaks_off_is_read_again(demo):
    await open_at_openai(demo, "openai-chat", "demo-n20-d5-cut5x1-cut9x1")

    await demo.run()

    assert READERS["openai-chat"](await demo.body()).text == answer(20)
    assert (await asked(demo))["responses"] == 2


async def test_a_client_of_the_same_family_does_not_see_how_it_was_asked(demo):
    await open_at_openai(demo, "openai-responses", "demo-n5-d0")

    await demo.run()

    body = await demo.body()
    assert b'"background":false' in body
    assert b'"background":true' not in body
    assert (await upstream_id(demo)).encode() not in body


@pytest.mark.parametrize(
    ("dialect", "body"),
    [("openai-responses", {"store": False}), ("openai-chat", {"store": False}), ("openai-chat", {"seed": 1})],
)
async def test_what_may_not_be_stored_or_fits_no_response_ends_in_its_error(demo, dialect, body):
    await open_at_openai(demo, dialect, "demo-n20-d5-cut5", **body)

    await demo.run()

    assert (await demo.end())["error"]["kind"] == "upstream_unavailable"
    assert not any("background" in each for each in await bodies(demo))
    assert "read" not in await asked(demo)


async def test_what_is_not_streamed_is_not_run_in_the_background(demo):
    await open_at_openai(demo, "openai-chat", "demo-n5-d0", stream=False)

    await demo.run()

    assert not any("background" in each for each in await bodies(demo))


async def test_an_answer_that_is_gone_ends_in_what_it_was_lost_by(demo):
    await open_at_openai(demo, "openai-chat", "demo-n20-d0")
    await demo.run()
    blocks = split_blocks(await demo.body())
    await open_at_openai(demo, "openai-chat", "demo-n20-d0")
    await lose(demo, blocks[:5], provider="openai", upstream_id="resp_gone")

    with capture_logs() as logs:
        await demo.run(epoch=2)

    assert (await demo.end())["error"]["code"] == "worker_lost"
    (told,) = [line for line in logs if line["event"] == "upstream_not_cancelled"]
    assert told["reason"] == "status 404"


async def test_an_answer_that_failed_there_ends_in_its_error(demo):
    await open_at_openai(demo, "openai-chat", "demo-n20-d5-err5")

    await demo.run()

    body = await demo.body()
    assert (await demo.end())["error"]["kind"] == "upstream_unavailable"
    assert b"[DONE]" not in body


async def test_what_runs_on_is_cancelled_where_another_goes_on(demo):
    demo.services.settings.aliases["both"] = ["openai/demo-n20-d0", "demo/demo-n20-d0"]
    await open_as(demo, "openai-chat", "both")
    await demo.run()
    blocks = split_blocks(await demo.body())
    await open_as(demo, "openai-chat", "both")
    await lose(demo, blocks[:5], provider="openai", upstream_id="resp_gone")

    await demo.run(epoch=2)

    assert READERS["openai-chat"](await demo.body()).text == answer(20)
    assert (await demo.end())["provider"] == "demo"
    assert (await asked(demo))["cancel"] == 2  # Nobody knows which of the two keys it was.


async def test_leaving_cancels_what_runs_on(demo):
    await open_at_openai(demo, "openai-chat", "demo-n5000-d5")
    running_job = asyncio.create_task(demo.run())
    async with asyncio.timeout(120):
        while len(await demo.frames()) < 4:
            await asyncio.sleep(0.01)

    await demo.channel.leave(G, "r")

    await running_job
    assert (await demo.end())["error"]["code"] == "cancelled"
    await until_cancelled(demo)


@pytest.mark.parametrize("setup", [{"total_timeout_s": 0.3}], indirect=True)
async def test_a_deadline_cancels_what_runs_on(demo):
    await open_at_openai(demo, "openai-responses", "demo-n5000-d5")

    await demo.run()

    assert (await demo.end())["error"]["kind"] == "deadline_exceeded"
    await until_cancelled(demo)


async def test_what_cannot_go_on_is_cancelled(demo):
    await open_at_openai(demo, "openai-chat", "demo-n5000-d20-tool-cut1", **TOOL)

    await demo.run()

    assert (await demo.end())["error"]["kind"] == "upstream_unavailable"
    assert (await asked(demo))["cancel"] == 1


async def test_a_stop_that_finds_no_worker_cancels_what_runs_on(demo):
    await open_at_openai(demo, "openai-chat", "demo-n5000-d5")
    running_job = asyncio.create_task(demo.run())
    async with asyncio.timeout(120):
        while len(await demo.frames()) < 4:
            await asyncio.sleep(0.01)
    running_job.cancel()  # As at the end of a drain: the next claim may go on, so the answer runs on.
    with pytest.raises(asyncio.CancelledError):
        await running_job
    assert "cancel" not in await asked(demo)
    await demo.channel.stop(G)

    await demo.run(epoch=2)

    assert (await demo.end())["error"]["kind"] == "cancelled"
    await until_cancelled(demo)


async def test_a_try_that_nobody_saw_is_cancelled_before_the_next(demo):
    await open_at_openai(demo, "openai-chat", "demo-n20-d0-f50-cut0x1")

    await demo.run()

    assert READERS["openai-chat"](await demo.body()).text == answer(20)
    assert (await asked(demo))["cancel"] == 1


def test_an_answer_s_id_cannot_leave_its_place_in_a_path():
    wire = WIRES["openai-responses"]
    assert isinstance(wire, BackgroundWire)
    base_url = "https://x.example/openai/v1"
    deployment = Deployment("azure-openai", base_url, "", "m", query="api-version=1", headers={"api-key": "k"})

    again, cancel = wire.reread_request("a/../b?c", deployment), wire.cancel_request("resp_1", deployment)

    assert (again.method, again.url) == (
        "GET",
        "https://x.example/openai/v1/responses/a%2F..%2Fb%3Fc?api-version=1&stream=true",
    )
    assert (cancel.method, cancel.url) == ("POST", "https://x.example/openai/v1/responses/resp_1/cancel?api-version=1")
    assert again.headers["api-key"] == cancel.headers["api-key"] == "k"
