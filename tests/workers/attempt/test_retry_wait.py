"""For how long a generation waits for its next attempt, and whether in a slot."""

import time

import pytest

from common.canonical.job import Job, Policy
from common.channel.base import Claim, FrameKind
from common.config.settings import Settings
from common.queue.worker import Postponed
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.attempt.retry_wait import POSTPONED_S_MIN, postpone, wait_limits
from workers.outcome import ActiveJob, Total
from workers.quota.pauses import Pauses

SETTINGS = Settings(_env_file=None, status_hold_s=5, queue_wait_background_s=1000, retry_after_max_s=30)


def asked(waited_s: float = 0, *, stream: bool = True, is_background: bool = False) -> ActiveJob:
    return ActiveJob(Job(G, "r", "openai-chat", "m", stream, Policy.STOP, 0, 1), waited_s, is_background)


def test_only_a_streaming_client_that_waits_for_its_status_is_given_one():
    longest_s, status_by = wait_limits(asked(2.0), Total(), SETTINGS)

    assert longest_s == 30
    assert status_by == pytest.approx(time.monotonic() + 3 - 0.25, abs=0.1)
    assert wait_limits(asked(stream=False), Total(), SETTINGS) == (30, None)
    assert wait_limits(asked(), Total(continuations=1), SETTINGS) == (30, None)


def test_background_work_waits_for_as_long_as_its_deadline_allows():
    longest_s, status_by = wait_limits(asked(100, is_background=True), Total(), SETTINGS)

    assert (longest_s, status_by) == (pytest.approx(900, abs=1), None)
    assert wait_limits(asked(2000, is_background=True), Total(), SETTINGS)[0] == 0
    assert wait_limits(asked(is_background=True), Total(continuations=1), SETTINGS) == (30, None)


@pytest.mark.parametrize(
    ("waited_s", "wait_s", "delay_s"),
    [
        (0, 20, 20),
        (0, 5.5, 5.5),
        (400, 20, 100),  # It has waited for long, and waits the longer anew.
        (990, 8, 10),  # But not past its deadline.
    ],
)
def test_background_work_is_put_back_with_its_attempts(waited_s, wait_s, delay_s):
    with pytest.raises(Postponed) as postponed:
        postpone(wait_s, wait_s, asked(waited_s, is_background=True), Total(attempt_count=3), SETTINGS, random_unit=lambda: 0)

    assert postponed.value.attempts == 3
    assert postponed.value.delay_s == pytest.approx(delay_s, abs=0.1)
    assert postponed.value.delay_s >= POSTPONED_S_MIN


@pytest.mark.parametrize(
    ("is_background", "continuations", "wait_s"),
    [
        (False, 0, 20),  # Somebody waits for it.
        (True, 0, 1),  # A moment.
        (True, 0, 0),
        (True, 1, 20),  # It is being read.
    ],
)
def test_all_else_waits_where_it_is(is_background, continuations, wait_s):
    postpone(wait_s, wait_s, asked(is_background=is_background), Total(continuations=continuations), SETTINGS)


# A whole job


@pytest.mark.parametrize(("fault", "status"), [("e429-ra8", 429), ("e503-ra8", 503)])
async def test_a_streaming_client_is_given_the_status_instead_of_a_wait(setup, fault, status):  # noqa: F811
    await setup.open(f"demo-n5-d0-{fault}")

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["status"], round(error["retry_after_s"])) == (status, 8)
    assert (await setup.stats())["requests"] == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_wait_of_a_day_is_a_status_for_everybody(setup, stream):  # noqa: F811
    await setup.open("demo-n5-d0-e429-ra86400", stream=stream)

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["status"], error["retry_after_s"]) == (429, 30)
    assert (await setup.stats())["requests"] == 1


@pytest.mark.parametrize("setup", [{"status_hold_s": 0.6}], indirect=True)
@pytest.mark.parametrize(("stream", "waited_ms"), [(False, 0), (True, 10_000)])
async def test_who_cannot_be_given_a_status_waits(setup, stream, waited_ms):  # noqa: F811
    await setup.open("demo-n5-d0-e429x1-ra0.5", stream=stream)

    await setup.run(waited_ms=waited_ms)

    end = await setup.end()
    assert (end["error"], end["tries"]) == (None, 2)


async def test_background_work_is_put_back_and_comes_again(setup):  # noqa: F811
    await setup.open("demo-n5-d0-e429x1-ra86399")

    with pytest.raises(Postponed) as postponed:
        await setup.run(is_background=True)

    assert postponed.value.delay_s == pytest.approx(86_399, abs=2)
    assert [frame.kind for frame in await setup.frames()] == [FrameKind.FENCE]
    setup.services.quota.pauses = Pauses(time.monotonic)
    await setup.run(epoch=2, is_background=True, was_postponed=True, attempts=1)
    end = await setup.end()
    assert (end["error"], end["tries"]) == (None, 2)
    assert (await setup.channel.enter(G, "", "me")).claims == 1


async def test_what_its_calls_have_cost_waits_with_it(setup, monkeypatch):  # noqa: F811
    await setup.open("demo")

    async def answer(context, claimed, fenced):
        context.writer.packed_attempts = b"what it has cost"
        raise Postponed(60, attempts=1)

    monkeypatch.setattr("workers.generate._answer", answer)
    with pytest.raises(Postponed):
        await setup.run(is_background=True)

    fenced = await setup.channel.fence(Claim(G, 2, "t"), is_handover=False, was_postponed=True)
    assert fenced.note == b"what it has cost"


async def test_waiting_for_its_upstream_again_and_again_makes_no_job_a_poison(setup):  # noqa: F811
    await setup.open("demo-n5-d0-e429x9-ra6")
    for epoch in range(1, 8):
        setup.services.quota.pauses = Pauses(time.monotonic)
        with pytest.raises(Postponed) as postponed:
            await setup.run(epoch=epoch, is_background=True, was_postponed=epoch > 1, attempts=epoch - 1)
        assert postponed.value.attempts == epoch


@pytest.mark.parametrize("setup", [{"queue_wait_background_s": 100}], indirect=True)
async def test_background_work_whose_deadline_is_sooner_is_told_so_at_once(setup):  # noqa: F811
    await setup.open("demo-n5-d0-e429-ra101")

    await setup.run(is_background=True)

    assert (await setup.end())["error"]["status"] == 429


async def test_a_key_that_is_paused_for_a_day_puts_background_work_back_without_a_call(setup):  # noqa: F811
    await setup.open("demo-n5-d0-e429x1-ra500")
    with pytest.raises(Postponed):
        await setup.run(is_background=True)

    with pytest.raises(Postponed) as postponed:
        await setup.run(epoch=2, is_background=True, was_postponed=True, attempts=1)

    assert postponed.value.attempts == 1
    assert postponed.value.delay_s == pytest.approx(500 * 1.05, rel=0.06)  # Its vendor's word, not the pause's end.
    assert (await setup.stats())["requests"] == 1
