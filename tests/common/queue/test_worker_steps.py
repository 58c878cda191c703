"""What the leased worker does with a queue's answers, step by step. The queue is scripted; Redis only serves the bells."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from common.canonical.errors import StoreUnavailable
from common.config.settings import Settings
from common.limits.charges import Settlement
from common.queue.jobs import LAPSED_BATCH, ClaimedJob, ClaimResult
from common.queue.worker import REASON_MAX, HandBack, LeasedWorker, Postponed, UnusableJob
from common.redis import keyspace
from common.redis.client import Client

SETTLEMENT = Settlement(cost_nano_usd=7)
JOB = ClaimedJob("gen_0", 3)
AWAY, BROKEN = StoreUnavailable("away"), ResponseError("ERR overflow" + "!" * REASON_MAX)

Handler = Callable[[ClaimedJob], Awaitable[Settlement]]


class Pulse:
    def __init__(self) -> None:
        self.is_up, self.whole_s = True, 1000.0

    def healthy_s(self) -> float:
        return self.whole_s


class Queue:
    """Answers claims in their order, then with nothing. ``calls`` are all other calls, ``errors`` what some of them raise."""

    def __init__(self) -> None:
        self.claims: deque[ClaimResult] = deque()
        self.asked: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.crossed: list[str] = []
        self.answers = asyncio.Event()  # Until it is set, no job is taken back.
        self.answers.set()
        self.lost: list[str] = []

    async def claim(self, room: int, *, background_max: int, lapsed_max: int, excluded_ids: Collection[str]) -> ClaimResult:
        self.asked.append({"room": room, "background": background_max, "lapsed": lapsed_max, "excluded": sorted(excluded_ids)})
        return self.claims.popleft() if self.claims else ClaimResult([], 0, 0)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.errors:
            raise self.errors[call[0]]

    async def finish(self, job: ClaimedJob, settlement: Settlement) -> list[str]:
        self._called("finish", job, settlement)
        await self.answers.wait()
        return self.crossed

    async def release(self, job: ClaimedJob, *, delay_s: float, is_handover: bool, has_failed: bool) -> None:
        self._called("release", job, delay_s, is_handover, has_failed)
        await self.answers.wait()

    async def postpone(self, job: ClaimedJob, *, delay_s: float, attempts: int) -> None:
        self._called("postpone", job, delay_s, attempts)
        await self.answers.wait()

    async def drop(self, job: ClaimedJob, reason: str, *, with_record: bool) -> None:
        self._called("drop", job, reason, with_record)
        await self.answers.wait()

    async def renew(self, epochs: dict[str, int]) -> list[str]:
        self._called("renew", epochs)
        return self.lost

    async def report_alive(self, worker: str, *, takes_jobs: bool) -> None:
        self._called("report_alive", worker, takes_jobs)

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]


class Lab:
    def __init__(self, redis: Client) -> None:
        self.redis, self.queue, self.pulse = redis, Queue(), Pulse()

    def worker(self, handler: Handler, **settings: Any) -> LeasedWorker:
        chosen = Settings().model_copy(update=settings)
        return LeasedWorker(self.redis, self.queue, self.pulse, chosen, handler, "one")  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self, handler: Handler, **settings: Any) -> AsyncIterator[LeasedWorker]:
        worker = self.worker(handler, **settings)
        task = asyncio.create_task(worker.async_run())
        try:
            yield worker
        finally:
            worker.allow_pick_jobs = False
            for job in worker.tasks.values():
                job.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await worker.close()


@pytest.fixture
async def lab(redis: Client, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("common.queue.worker.BELL_WAIT_S", 1000)
    monkeypatch.setattr("common.queue.worker.BELL_TIMEOUT_S", 1000)
    monkeypatch.setattr("common.queue.worker.RELEASE_DELAY_S", 0.25)
    return Lab(redis)


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)


async def settles(job: ClaimedJob) -> Settlement:
    return SETTLEMENT


async def waits(job: ClaimedJob) -> Settlement:
    await asyncio.Event().wait()
    return SETTLEMENT


def raising(error: Exception) -> Handler:
    async def handler(job: ClaimedJob) -> Settlement:
        raise error

    return handler


# What arq is told


async def test_arq_s_own_ways_to_end_a_job_are_out_of_reach(lab):
    worker = lab.worker(settles, worker_slots=5, worker_drain_s=12.7)

    assert (worker.max_jobs, worker.max_tries, worker.job_timeout_s) == (5, 2**31, 2**31)
    assert (worker.keep_result_s, worker.poll_delay_s, worker._job_completion_wait) == (0, 0, 12)
    assert worker.health_check_key == f"{keyspace.QUEUE_PREFIX}health:one"
    assert worker.health_check_interval == 30
    assert worker.queue_name == keyspace.ENQUEUED
    assert list(worker.functions) == ["generation"]


@pytest.mark.parametrize(("drain_s", "wait_s"), [(0.2, 1), (1.9, 1), (60, 60)])
async def test_a_worker_waits_at_least_a_second_for_its_jobs(lab, drain_s, wait_s):
    assert lab.worker(settles, worker_drain_s=drain_s)._job_completion_wait == wait_s


# What is claimed


@pytest.mark.parametrize(("slots", "share", "background"), [(4, 0.5, 2), (1, 0.1, 1), (10, 0.25, 2), (2, 1.0, 2)])
async def test_a_claim_asks_for_as_many_jobs_as_there_are_slots(lab, slots, share, background):
    async with lab.running(waits, worker_slots=slots, background_share=share):
        await eventually(lambda: lab.queue.asked)

    assert lab.queue.asked[0] == {"room": slots, "background": background, "lapsed": 0, "excluded": []}


@pytest.mark.parametrize(("left", "claims"), [((0, 0), 1), ((0, 1), 2), ((1, 0), 2)])
async def test_it_claims_again_at_once_where_work_is_left(lab, left, claims):
    lab.queue.claims.append(ClaimResult([JOB], *left))

    async with lab.running(waits, worker_slots=2):
        await eventually(lambda: "gen_0" in str(lab.queue.asked) or len(lab.queue.asked) >= claims)
        await eventually(lambda: len(lab.queue.asked) == claims)
        await asyncio.sleep(0.05)

    assert [asked["room"] for asked in lab.queue.asked] == [2, 1][:claims]


@pytest.mark.parametrize("left", [0, 1])
async def test_full_slots_claim_nothing(lab, left):
    lab.queue.claims.append(ClaimResult([JOB], 0, left))

    async with lab.running(waits, worker_slots=1):
        await eventually(lambda: lab.queue.asked)
        await asyncio.sleep(0.05)

    assert len(lab.queue.asked) == 1


async def test_a_slot_that_was_not_the_last_one_is_freed_without_a_claim(lab):
    ends = asyncio.Event()
    lab.queue.claims.append(ClaimResult([JOB], 0, 0))

    async def handler(job: ClaimedJob) -> Settlement:
        await ends.wait()
        return SETTLEMENT

    async with lab.running(handler, worker_slots=2) as worker:
        await eventually(lambda: worker.free_slots == 1 and len(worker._listening) == 2)
        ends.set()
        await eventually(lambda: worker.jobs_complete == 1)
        await asyncio.sleep(0.05)

    assert len(lab.queue.asked) == 1


async def test_lapsed_leases_are_claimed_as_soon_as_a_claim_reports_them(lab):
    lab.queue.claims += [ClaimResult([JOB], 0, 1), ClaimResult([], 2, 0), ClaimResult([], 1, 0)]

    async with lab.running(waits, worker_slots=3):
        await eventually(lambda: len(lab.queue.asked) == 3)
        await lab.redis.lpush(keyspace.BELL, 1)  # The next turn.
        await eventually(lambda: len(lab.queue.asked) == 4)
        await lab.redis.lpush(keyspace.BELL, 1)  # None were left.
        await eventually(lambda: len(lab.queue.asked) == 5)

    assert [(asked["lapsed"], asked["excluded"]) for asked in lab.queue.asked] == [
        (0, []),
        (0, []),
        (LAPSED_BATCH, ["gen_0"]),
        (LAPSED_BATCH, ["gen_0"]),
        (0, []),
    ]


async def test_lapsed_leases_are_left_until_redis_was_whole_for_a_lease(lab):
    lab.pulse.whole_s = 6.0
    lab.queue.claims.append(ClaimResult([], 2, 0))

    async with lab.running(waits, lease_s=6.0):
        await eventually(lambda: len(lab.queue.asked) == 2)

    assert [(asked["lapsed"], asked["excluded"]) for asked in lab.queue.asked] == [(0, []), (0, [])]


async def test_a_job_that_is_taken_over_is_reported_and_others_are_not(lab):
    takeovers: list[None] = []
    lab.queue.claims.append(ClaimResult([JOB, ClaimedJob("gen_1", 2, was_lapsed=True)], 0, 0))

    async with lab.running(waits) as worker:
        worker.on_takeover = lambda: takeovers.append(None)
        await eventually(lambda: len(worker.tasks) == 2)

    assert len(takeovers) == 1


async def test_background_jobs_take_no_more_than_their_share(lab):
    background = [ClaimedJob(f"later_{n}", 1, is_background=True) for n in range(2)]
    lab.queue.claims += [ClaimResult(background[:1], 0, 1), ClaimResult([JOB], 0, 1)]
    lab.queue.claims.append(ClaimResult(background[1:], 0, 1))

    async with lab.running(waits, worker_slots=8, background_share=0.25):
        await eventually(lambda: len(lab.queue.asked) == 4)

    assert [(asked["room"], asked["background"]) for asked in lab.queue.asked] == [(8, 2), (7, 1), (6, 1), (5, 0)]


async def test_jobs_whose_records_cannot_be_read_are_logged(lab):
    lab.queue.claims.append(ClaimResult([], 0, 0, ["gen_8", "gen_9"]))

    with capture_logs() as logs:
        async with lab.running(waits):
            await eventually(lambda: lab.queue.asked)

    assert [line["generation_id"] for line in logs if line["event"] == "job_set_aside"] == ["gen_8", "gen_9"]


async def test_nothing_is_claimed_while_redis_is_away(lab, monkeypatch):
    monkeypatch.setattr("common.queue.worker.PAUSE_AFTER_ERROR_S", 0.01)
    lab.pulse.is_up = False

    async with lab.running(waits):
        await asyncio.sleep(0.05)
        assert lab.queue.asked == []
        lab.pulse.is_up = True
        await eventually(lambda: lab.queue.asked)


@pytest.mark.parametrize(("error", "logged"), [(AWAY, 0), (KeyError("an answer"), 1)])
async def test_what_keeps_it_from_claiming_is_logged_once_unless_the_pulse_reports_it(lab, monkeypatch, error, logged):
    monkeypatch.setattr("common.queue.worker.PAUSE_AFTER_ERROR_S", 0.01)
    monkeypatch.setattr("common.queue.worker.STUCK_S", 0.0)
    turns: list[None] = []

    async def breaks(*_: Any, **__: Any) -> ClaimResult:
        turns.append(None)
        raise error

    monkeypatch.setattr(lab.queue, "claim", breaks)
    with capture_logs() as logs:
        async with lab.running(waits) as worker:
            await eventually(lambda: len(turns) >= 3)
            problem = worker.problem
            worker.allow_pick_jobs = False  # A worker that drains need not claim.
            assert worker.problem is None

    assert [line["event"] for line in logs].count("claiming_failed") == logged
    assert problem and problem.startswith("No job could be claimed for")
    assert str(error).strip("'") in problem


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
