"""How the leased worker ends jobs, renews leases and reports that it is alive. The queue is scripted."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from common.canonical.errors import StoreUnavailable
from common.queue.jobs import ClaimedJob, ClaimResult
from common.queue.worker import REASON_MAX, HandBack, LeasedWorker, Postponed, UnusableJob
from common.redis import keyspace
from common.redis.client import Client
from tests.support.servers.scripted_queue import JOB, SETTLEMENT, Handler, Lab, eventually, raising, settles, waits

AWAY, BROKEN = StoreUnavailable("away"), ResponseError("ERR overflow" + "!" * REASON_MAX)


@pytest.fixture
async def lab(redis: Client, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("common.queue.worker.BELL_WAIT_S", 1000)
    monkeypatch.setattr("common.queue.worker.BELL_TIMEOUT_S", 1000)
    monkeypatch.setattr("common.queue.worker.RELEASE_DELAY_S", 0.25)
    return Lab(redis)


# How a job ends


async def end_of(lab: Lab, handler: Handler, *, cancel: bool = False) -> LeasedWorker:
    """Run one job to its end."""
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))
    async with lab.running(handler) as worker:
        await eventually(lambda: lab.queue.asked)
        if cancel:
            await eventually(lambda: "gen_0" in worker.tasks)
            await asyncio.sleep(0)
            worker.tasks["gen_0"].cancel()
        await eventually(lambda: lab.queue.of("finish", "release", "postpone", "drop"))
        await eventually(lambda: worker.free_slots == worker.max_jobs)
    return worker


def counts(worker: LeasedWorker) -> tuple[int, int, int]:
    return worker.jobs_complete, worker.jobs_failed, worker.jobs_retried


async def test_a_job_that_has_ended_is_settled(lab):
    worker = await end_of(lab, settles)

    assert lab.queue.of("finish", "release", "postpone", "drop") == [("finish", JOB, SETTLEMENT)]
    assert counts(worker) == (1, 0, 0)


@pytest.mark.parametrize(
    ("error", "calls", "counted"),
    [
        (HandBack("not now"), [("release", JOB, 0.25, False, False)], (0, 0, 1)),
        (RuntimeError("unexpected"), [("release", JOB, 0.25, False, True)], (0, 1, 0)),
        (Postponed(4.5, attempts=2), [("postpone", JOB, 4.5, 2)], (0, 0, 1)),
        (UnusableJob("it kills its workers"), [("drop", JOB, "it kills its workers", True)], (0, 1, 0)),
    ],
)
async def test_a_job_is_given_back_as_its_handler_says(lab, error, calls, counted):
    worker = await end_of(lab, raising(error))

    assert lab.queue.of("finish", "release", "postpone", "drop") == calls
    assert counts(worker) == counted


async def test_a_job_that_is_stopped_by_its_worker_is_handed_over_at_once(lab):
    worker = await end_of(lab, waits, cancel=True)

    assert lab.queue.of("finish", "release", "postpone", "drop") == [("release", JOB, 0, True, False)]
    assert counts(worker) == (0, 0, 1)


STEPS = {"finish": settles, "release": raising(HandBack("not now")), "postpone": raising(Postponed(1, attempts=1))}


@pytest.mark.parametrize("step", STEPS)
async def test_a_job_stays_leased_where_redis_cannot_take_it_back(lab, step):
    lab.queue.errors[step] = AWAY

    await end_of(lab, STEPS[step])

    assert [call[0] for call in lab.queue.of("finish", "release", "postpone", "drop")] == [step]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("drop_error", [None, AWAY, BROKEN])
async def test_a_job_that_redis_will_not_take_back_is_set_aside(lab, step, drop_error):
    lab.queue.errors[step] = BROKEN
    if drop_error:
        lab.queue.errors["drop"] = drop_error

    with capture_logs() as logs:
        await end_of(lab, STEPS[step])

    (_, (_, job, reason, with_record)) = lab.queue.of("finish", "release", "postpone", "drop")
    assert (job, with_record, len(reason)) == (JOB, False, REASON_MAX)
    assert "overflow!" in reason
    events = [line["event"] for line in logs if line["event"] in ("job_set_aside", "job_not_set_aside")]
    assert events == ["job_set_aside", "job_not_set_aside"][: 2 if drop_error is BROKEN else 1]


@pytest.mark.parametrize("step", [*STEPS, "drop"])
async def test_a_job_that_is_being_given_back_has_no_slot_and_no_lease_to_renew(lab, step):
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))
    lab.queue.answers.clear()

    async with lab.running(STEPS.get(step, raising(UnusableJob("bad"))), renew_s=0) as worker:
        await eventually(lambda: lab.queue.of(step))
        assert worker.free_slots == worker.max_jobs
        before = len(lab.queue.of("renew"))
        await asyncio.sleep(0.12)  # Two renewals, if there were anything to renew.
        assert len(lab.queue.of("renew")) == before
        lab.queue.answers.set()


async def test_a_budget_s_mark_is_reported_with_its_counter(lab):
    marks: list[tuple[str, str]] = []
    lab.queue.crossed = [f"{keyspace.SPENT}key:a name:day 80"]
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))

    async with lab.running(settles) as worker:
        worker.on_budget_mark = lambda counter, percent: marks.append((counter, percent))
        await eventually(lambda: marks)

    assert marks == [("key:a name:day", "80")]
    assert lab.queue.of("drop") == []


# Leases


async def test_leases_are_renewed_and_a_lost_one_ends_its_job_and_nothing_else(lab):
    other = ClaimedJob("gen_1", 5)
    lab.queue.claims.append(ClaimResult([JOB, other], 0, 0))
    lab.queue.lost = ["gen_0", "gen_unknown"]

    async with lab.running(waits, renew_s=0.05) as worker:
        await eventually(lambda: lab.queue.of("renew"))
        await eventually(lambda: len(worker.tasks) == 1 or worker.free_slots == worker.max_jobs - 1)
        assert lab.queue.of("renew")[0] == ("renew", {"gen_0": 3, "gen_1": 5})
        assert lab.queue.of("release", "drop") == []
        await eventually(lambda: lab.queue.of("renew")[-1] == ("renew", {"gen_1": 5}))


async def test_no_lease_is_renewed_where_there_is_none_or_redis_is_away(lab):
    async with lab.running(waits, renew_s=0.05):
        await asyncio.sleep(0.15)
        assert lab.queue.of("renew") == []
        lab.queue.claims.append(ClaimResult([JOB], 0, 0))
        lab.pulse.is_up = False
        await asyncio.sleep(0.15)
        assert lab.queue.of("renew") == []


async def test_a_renewal_that_failed_is_tried_again_at_once(lab):
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))
    lab.queue.errors["renew"] = AWAY

    async with lab.running(waits, renew_s=0.4) as worker:
        await eventually(lambda: len(lab.queue.of("renew")) >= 3)
        assert "gen_0" in worker.tasks
        lab.queue.errors.clear()


# Being alive


async def test_a_worker_reports_that_it_takes_jobs_and_at_last_that_it_does_not(lab):
    with capture_logs() as logs:
        async with lab.running(waits, worker_drain_s=9) as worker:
            await eventually(lambda: lab.queue.of("report_alive"))
            await eventually(lambda: lab.queue.asked)
            health = await lab.redis.exists(worker.health_check_key)

    reports = lab.queue.of("report_alive")
    assert (reports[0], reports[-1]) == (("report_alive", "one", True), ("report_alive", "one", False))
    assert not [line for line in logs if line["log_level"] in ("error", "critical")]
    assert health == 1
    assert await lab.redis.exists(worker.health_check_key) == 0


async def test_a_worker_that_drains_says_how_many_jobs_it_has(lab, monkeypatch):
    monkeypatch.setattr("common.queue.worker.ALIVE_BEAT_S", 0.01)
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))

    with capture_logs() as logs:
        async with lab.running(waits, worker_drain_s=9) as worker:
            await eventually(lambda: "gen_0" in worker.tasks)
            worker.allow_pick_jobs = False
            await eventually(lambda: any(line["event"] == "draining" for line in logs))

    (draining,) = [line for line in logs if line["event"] == "draining"]
    assert (draining["running"], draining["ends_within_s"]) == (1, 9)


@pytest.mark.parametrize("error", [AWAY, RuntimeError("closed")])
async def test_a_worker_closes_though_redis_takes_no_report(lab, error):
    async with lab.running(waits) as worker:
        await eventually(lambda: lab.queue.asked)
        lab.queue.errors["report_alive"] = error

    assert worker.tasks == {}


async def test_no_report_is_tried_while_redis_is_away(lab):
    lab.pulse.is_up = False

    async with lab.running(waits) as worker:
        await eventually(lambda: worker._tasks)
        await asyncio.sleep(0)

    assert lab.queue.of("report_alive") == []


async def test_closing_waits_until_its_jobs_are_handed_over(lab, monkeypatch):
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))
    worker = lab.worker(waits)
    task = asyncio.create_task(worker.async_run())
    await eventually(lambda: "gen_0" in worker.tasks)
    await asyncio.sleep(0)
    release = lab.queue.release

    async def slow(*args: Any, **more: Any) -> None:
        await asyncio.sleep(0.05)
        await release(*args, **more)

    monkeypatch.setattr(lab.queue, "release", slow)
    task.cancel()
    worker.tasks["gen_0"].cancel()
    await asyncio.gather(task, return_exceptions=True)

    await worker.close()

    assert lab.queue.of("release") == [("release", JOB, 0, True, False)]
