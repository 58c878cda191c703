"""One job whose log already has a part of its answer: what is read back, and what the rest is charged with."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import StoreUnavailable
from common.channel.base import FrameKind
from common.channel.transcript import read_log
from demo_provider.script import answer
from tests.workers.continuation.test_continuation import demo, lose, open_as, whole_answer  # noqa: F401 - a fixture.
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.publish import own_log

MODEL = "demo-n12-d0"


async def texts(demo: Setup) -> str:  # noqa: F811
    pieces = [frame.data for frame in await demo.frames() if frame.kind is FrameKind.DATA]
    chunks = [line[6:] for piece in pieces for line in piece.split(b"\n") if line.startswith(b"data: {")]
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in orjson.loads(chunk).get("choices", [])
    )


async def heads(demo: Setup) -> list[dict[str, Any]]:  # noqa: F811
    return [orjson.loads(frame.data) for frame in await demo.frames() if frame.kind is FrameKind.HEAD]


async def lost_after(demo: Setup, count: int, **head: Any) -> None:  # noqa: F811
    """Leave a log with so many blocks of the answer."""
    blocks = await whole_answer(demo, "openai-chat", MODEL)
    await open_as(demo, "openai-chat", MODEL)
    await lose(demo, blocks[:count], **{"provider": "demo", "upstream_model": MODEL, **head})


def away(monkeypatch: pytest.MonkeyPatch, times: int, first: int = 1) -> None:
    """Let the store be away for some reads of the log, from the ``first`` one on."""
    calls: list[None] = []

    async def read(*args: Any) -> Any:
        calls.append(None)
        if first <= len(calls) < first + times:
            raise StoreUnavailable("away")
        return await read_log(*args)

    monkeypatch.setattr(own_log, "read_log", read)
    monkeypatch.setattr(own_log, "PAUSE_WHILE_AWAY_S", 0)


async def test_the_log_is_read_back_though_the_store_is_away_for_a_moment(demo, monkeypatch):  # noqa: F811
    await lost_after(demo, 5)
    away(monkeypatch, 3)

    await demo.run(epoch=2)

    assert (await demo.end())["error"] is None
    assert await texts(demo) == answer(12)


@pytest.mark.parametrize("setup", [{"worker_buffer_s": 0.05}], indirect=True)
async def test_a_store_that_stays_away_ends_the_answer_as_lost(demo, monkeypatch):  # noqa: F811
    await lost_after(demo, 5)
    away(monkeypatch, 10**9)

    await demo.run(epoch=2)

    assert ((await demo.end())["error"]["kind"], (await demo.end())["error"]["code"]) == ("worker_lost", "worker_lost")
    assert len(await heads(demo)) == 1


@pytest.mark.parametrize("missing", [0, 1])
async def test_a_response_whose_log_lacks_only_its_end_is_kept_with_its_last_event(demo, monkeypatch, missing):  # noqa: F811
    blocks = await whole_answer(demo, "openai-responses", MODEL)
    stored: list[bytes] = []

    async def keep(generation_id: str, data: bytes, failed: object) -> None:
        stored.append(data)

    monkeypatch.setattr(demo.services.responses, "finish", keep)
    await open_as(demo, "openai-responses", MODEL)
    await lose(demo, blocks[: len(blocks) - missing], provider="demo", upstream_model=MODEL)

    await demo.run(epoch=2)

    (data,) = stored
    assert b"response.completed" in data


async def test_the_head_of_the_rest_counts_the_attempts_and_keeps_the_first_one_s_time(demo):  # noqa: F811
    await lost_after(demo, 5, tries=2, ttft_ms=7)

    await demo.run(epoch=2)

    first, rest = await heads(demo)
    assert (first["tries"], rest["tries"], rest["continuations"]) == (2, 3, 1)
    assert (rest["ttft_ms"], rest["provider"], rest["upstream_model"]) == (7, "demo", MODEL)
    assert rest["spent"]["output_tokens"] > 0
    end = await demo.end()
    assert (end["tries"], end["ttft_ms"], end["provider"], end["continuations"]) == (3, 7, "demo", 1)
    assert demo.services.metrics.registry.get_sample_value("sluice_continuations_total", {"kind": "worker_lost"}) == 1


async def test_the_usage_is_that_of_all_attempts(demo):  # noqa: F811
    await lost_after(demo, 5)

    await demo.run(epoch=2)

    end, (_, rest) = await demo.end(), await heads(demo)
    assert end["usage"]["output_tokens"] > rest["spent"]["output_tokens"]
    assert len(end["attempts"]) == 2
    assert sum(attempt["usage"]["output_tokens"] for attempt in end["attempts"]) == end["usage"]["output_tokens"]


async def test_an_answer_that_lacked_only_its_end_is_ended_without_a_call(demo):  # noqa: F811
    before = (await demo.stats())["requests"]
    await lost_after(demo, 10**6)

    await demo.run(epoch=2)

    assert (await demo.stats())["requests"] == before + 1  # That of the whole answer.
    end = await demo.end()
    assert (end["error"], end["finish_reason"], end["continuations"]) == (None, "stop", 0)
    assert len(await heads(demo)) == 1


async def test_an_answer_that_lacked_only_its_end_is_complete_though_it_was_stopped_since(demo):  # noqa: F811
    await lost_after(demo, 10**6)
    await demo.channel.stop(G)

    await demo.run(epoch=2)

    end = await demo.end()
    assert (end["error"], end["finish_reason"], end["usage"]["output_tokens"]) == (None, "stop", 12)
    assert await texts(demo) == answer(12)


async def test_a_part_of_an_answer_that_was_stopped_since_is_counted_though_the_store_is_away_for_a_moment(
    demo,  # noqa: F811
    monkeypatch,
):
    await lost_after(demo, 5)
    await demo.channel.stop(G)
    away(monkeypatch, 3, first=2)  # The first read looks for a call that still runs, the second one measures.

    await demo.run(epoch=2)

    end = await demo.end()
    assert (end["error"]["kind"], end["estimated"]) == ("cancelled", True)
    assert end["usage"]["output_tokens"] > 0
