"""The leased worker on real Redis, its handlers as scripted here."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from common.canonical.errors import StoreUnavailable
from common.config.settings import Settings
from common.ledger import set_aside
from common.limits.charges import Settlement
from common.queue.jobs import UNUSED, ClaimedJob, ClaimResult, JobClass, JobQueue, JobStatus
from common.queue.worker import CLAIM_LATE_MAX, HandBack, LeasedWorker, Postponed, UnusableJob
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pulse import Pulse

Handler = Callable[[ClaimedJob], Awaitable[None]]


class Lab:
    def __init__(self, redis: Client, pulse: Pulse) -> None:
        self.redis, self.pulse = redis, pulse

    def queue(self, **settings: float) -> JobQueue:
        return JobQueue(self.redis, self.pulse, Settings().model_copy(update=settings))  # Also what is too short for real ones.

    @asynccontextmanager
    async def worker(self, handler: Handler, name: str = "test", **settings: float) -> AsyncIterator[LeasedWorker]:
        async def settled(job: ClaimedJob) -> Settlement:
            await handler(job)
            return UNUSED

        chosen = Settings().model_copy(update=settings)
        worker = LeasedWorker(self.redis, self.queue(**settings), self.pulse, chosen, settled, name)
        task = asyncio.create_task(worker.async_run())
        try:
            yield worker
        finally:
            worker.allow_pick_jobs = False
            await self.redis.lpush(keyspace.BELL, 1)  # It stops waiting for it: a cancelled connect would leak in redis-py.
            await asyncio.sleep(0.1)
            for job in worker.tasks.values():
                job.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await worker.close()


@pytest.fixture
async def lab(redis: Client, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr("common.queue.worker.RELEASE_DELAY_S", 0.02)
    pulse = Pulse(redis)
    await pulse.start()
    yield Lab(redis, pulse)
    await pulse.stop()


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.01)


async def enqueue(lab: Lab, *names: str) -> None:
    for name in names:
        await lab.queue().enqueue(name, "tenant", JobClass.INTERACTIVE)


async def places(lab: Lab, *names: str) -> list[JobStatus]:
    return await lab.queue().statuses(list(names))


async def test_jobs_run_side_by_side_up_to_the_slots_and_are_finished(lab):
    running: set[str] = set()
    most = 0
    go_on = asyncio.Event()

    async def handler(job: ClaimedJob) -> None:
        nonlocal most
        running.add(job.generation_id)
        most = max(most, len(running))
        await go_on.wait()
        running.discard(job.generation_id)

    await enqueue(lab, *(f"gen_{n}" for n in range(5)))
    async with lab.worker(handler, worker_slots=3) as worker:
        await eventually(lambda: len(running) == 3)
        assert worker.free_slots == 0
        go_on.set()
        await eventually(lambda: worker.jobs_complete == 5)

    assert most == 3
    assert set(await places(lab, *(f"gen_{n}" for n in range(5)))) == {JobStatus.GONE}


async def test_a_job_that_cannot_begin_is_put_back_and_tried_again(lab):
    epochs: list[int] = []

    async def handler(job: ClaimedJob) -> None:
        epochs.append(job.epoch)
        if job.epoch < 3:
            raise HandBack("not now")

    await enqueue(lab, "gen_0")
    async with lab.worker(handler) as worker:
        await eventually(lambda: worker.jobs_complete == 1)

    assert epochs == [1, 2, 3]


async def test_a_job_that_waits_for_its_upstream_holds_no_slot(lab):
    order: list[tuple[str, int]] = []

    async def handler(job: ClaimedJob) -> None:
        order.append((job.generation_id, job.attempts))
        if job.generation_id == "later" and not job.was_postponed:
            raise Postponed(0.2, attempts=2)

    await enqueue(lab, "later", "other")
    async with lab.worker(handler, worker_slots=1) as worker:
        await eventually(lambda: worker.jobs_complete == 2)

    assert order == [("later", 0), ("other", 0), ("later", 2)]


async def test_a_handler_that_breaks_ends_neither_the_worker_nor_the_job(lab):
    async def handler(job: ClaimedJob) -> None:
        if job.generation_id == "bad" and job.epoch == 1:
            raise RuntimeError("unexpected")

    await enqueue(lab, "bad", "good")
    async with lab.worker(handler) as worker:
        await eventually(lambda: worker.jobs_complete == 2)


async def test_background_leaves_slots_to_interactive(lab):
    running: list[str] = []

    async def handler(job: ClaimedJob) -> None:
        running.append(job.generation_id)
        await asyncio.Event().wait()

    for n in range(4):
        await lab.queue().enqueue(f"later_{n}", "tenant", JobClass.BACKGROUND)
    async with lab.worker(handler, worker_slots=4, background_share=0.5) as worker:
        await eventually(lambda: len(running) == 2)
        await enqueue(lab, "now_0", "now_1")
        await eventually(lambda: worker.free_slots == 0)

    assert running == ["later_0", "later_1", "now_0", "now_1"]


async def test_workers_have_a_health_record_each(lab):
    async def handler(job: ClaimedJob) -> None:
        pass

    async with lab.worker(handler, name="one"), lab.worker(handler, name="two"):
        async with asyncio.timeout(120):
            while len(await lab.redis.keys(keyspace.QUEUE_PREFIX + "health:*")) < 2:
                await asyncio.sleep(0.01)


async def test_leases_are_renewed_for_as_long_as_a_job_runs(lab):
    async def handler(job: ClaimedJob) -> None:
        await asyncio.Event().wait()

    await enqueue(lab, "gen_0")
    async with lab.worker(handler, lease_s=0.3, renew_s=0.1) as worker:
        await eventually(lambda: worker.free_slots < worker.max_jobs)
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert await places(lab, "gen_0") == [JobStatus.RUNNING]


async def test_a_job_that_somebody_else_has_is_cancelled_and_left_alone(lab):
    cancelled: list[str] = []

    async def handler(job: ClaimedJob) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(job.generation_id)
            raise

    await enqueue(lab, "gen_0")
    async with lab.worker(handler, lease_s=0.3, renew_s=0.1) as worker:
        await eventually(lambda: worker.free_slots < worker.max_jobs)
        # As another worker's claim would.
        await lab.redis.hincrby(keyspace.JOB + "gen_0", "epoch", 1)
        await eventually(lambda: cancelled)

    assert cancelled == ["gen_0"]
    assert await lab.redis.hget(keyspace.JOB + "gen_0", "epoch") == b"2"
    assert await lab.redis.zscore(keyspace.RUNNING, "gen_0")


async def test_a_job_that_was_lost_and_comes_back_is_handed_over_like_any_other(lab):
    running: list[int] = []

    async def handler(job: ClaimedJob) -> None:
        running.append(job.epoch)
        await asyncio.Event().wait()

    await enqueue(lab, "gen_0")
    async with lab.worker(handler, lease_s=0.3, renew_s=0.1) as worker:
        await eventually(lambda: running == [1])
        await lab.redis.hincrby(keyspace.JOB + "gen_0", "epoch", 1)  # As another worker's claim would.
        await eventually(lambda: worker.free_slots == worker.max_jobs)
        await lab.queue().release(ClaimedJob("gen_0", 2))
        await eventually(lambda: running == [1, 3])

    assert await places(lab, "gen_0") == [JobStatus.WAITING]


async def test_only_the_claim_that_was_lost_is_cancelled(lab):
    held = Held()
    await enqueue(lab, "gen_0")
    async with lab.worker(held) as worker:
        await eventually(lambda: held.running == ["gen_0"])

        worker.drop("gen_unknown", 1)
        worker.drop("gen_0", 2)
        await asyncio.sleep(0)
        assert held.running == ["gen_0"]

        worker.drop("gen_0", 1)
        await eventually(lambda: not held.running)
        await eventually(lambda: worker.free_slots == worker.max_jobs)


async def test_a_worker_whose_loop_is_late_leaves_jobs_for_another_one(lab, monkeypatch):
    monkeypatch.setattr("common.queue.worker.CLAIM_LAG_S", -1)  # It is always late.
    rooms: list[int] = []
    claim = JobQueue.claim

    async def counted(self: JobQueue, room: int, **more: Any) -> ClaimResult:
        rooms.append(room)
        return await claim(self, room, **more)

    monkeypatch.setattr(JobQueue, "claim", counted)
    held = Held()
    await enqueue(lab, *(f"gen_{n}" for n in range(3)))
    async with lab.worker(held, worker_slots=3):
        await eventually(lambda: len(held.running) == 3)

    assert rooms == [CLAIM_LATE_MAX, 1]


async def test_a_lapsed_job_is_taken_only_once_redis_was_whole_for_a_lease(lab):
    taken: list[ClaimedJob] = []

    async def handler(job: ClaimedJob) -> None:
        taken.append(job)

    await enqueue(lab, "gen_0")
    dead = lab.queue(lease_s=0.05)
    await dead.claim(1, lapsed_max=0, excluded_ids=())
    await asyncio.sleep(0.06)

    async with lab.worker(handler, lease_s=1000):
        await asyncio.sleep(0.3)
        assert taken == []
    async with lab.worker(handler, lease_s=0.05):
        await eventually(lambda: taken)
    assert taken[0].was_lapsed


async def test_the_worker_survives_the_loss_of_its_connections(lab):
    done: list[str] = []

    async def handler(job: ClaimedJob) -> None:
        done.append(job.generation_id)

    async with lab.worker(handler):
        for n in range(3):
            await lab.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await eventually(lambda: lab.pulse.is_up)
            await asyncio.sleep(0.1)
            async with asyncio.timeout(120):
                while True:
                    try:
                        await enqueue(lab, f"gen_{n}")
                        break
                    except Exception:
                        await asyncio.sleep(0.1)
            await eventually(lambda n=n: f"gen_{n}" in done)


async def test_a_worker_that_is_told_to_stop_before_it_begins_does_not_begin(lab):
    async def handler(job: ClaimedJob) -> Settlement:
        raise AssertionError("nothing is to be claimed")

    await enqueue(lab, "gen_1")
    worker = LeasedWorker(lab.redis, lab.queue(), lab.pulse, Settings(), handler, "test")
    worker.handle_sig_wait_for_completion(signal.SIGTERM)

    # arq cancels its main task once nothing is left to wait for, and may do so before that task's first step.
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(120):
            await worker.async_run()
    await worker.close()

    assert await places(lab, "gen_1") == [JobStatus.WAITING]


# Nothing that goes wrong with one job ends the worker


async def breaks(*_: object, **__: object) -> None:
    raise ResponseError("ERR increment or decrement would overflow")


@pytest.mark.parametrize("step", ["finish", "release", "postpone"])
async def test_a_job_that_cannot_be_settled_or_given_back_is_set_aside(lab, monkeypatch, step):
    monkeypatch.setattr(JobQueue, step, breaks)

    async def handler(job: ClaimedJob) -> None:
        if step == "release":
            raise HandBack("not now")
        if step == "postpone":
            raise Postponed(0.1, attempts=1)

    await enqueue(lab, "gen_0", "gen_1")
    async with lab.worker(handler, lease_s=0.05) as worker:
        async with asyncio.timeout(10):
            while await places(lab, "gen_0", "gen_1") != [JobStatus.GONE] * 2:
                await asyncio.sleep(0.01)
        assert not worker.main_task.done()

    found = [set_aside.unpack(raw) for raw in await lab.redis.lrange(keyspace.UNREADABLE, 0, -1)]
    assert sorted(entry.id for entry in found) == ["gen_0", "gen_1"]
    assert all("would overflow" in entry.reason for entry in found)


async def test_what_a_budget_s_mark_does_cannot_end_the_worker(lab, monkeypatch):
    async def crossed(*_: object, **__: object) -> list[str]:
        return ["no counter of ours"]

    monkeypatch.setattr(JobQueue, "finish", crossed)

    async def handler(job: ClaimedJob) -> None:
        pass

    await enqueue(lab, "gen_0", "gen_1")
    async with lab.worker(handler) as worker:
        await eventually(lambda: worker.jobs_complete == 2)
        assert not worker.main_task.done()


async def test_a_handler_that_sets_a_job_aside_is_obeyed(lab):
    async def handler(job: ClaimedJob) -> None:
        raise UnusableJob("it kills its workers")

    await lab.redis.hset(keyspace.record("gen_0"), "end", "{}")
    await enqueue(lab, "gen_0")
    async with lab.worker(handler) as worker:
        await eventually(lambda: worker.jobs_failed == 1)
        async with asyncio.timeout(10):
            while await places(lab, "gen_0") != [JobStatus.GONE]:
                await asyncio.sleep(0.01)

    assert await lab.redis.hget(keyspace.record("gen_0"), "set_aside") == b"it kills its workers"


async def test_a_claim_that_breaks_is_told_once_and_the_worker_goes_on(lab, monkeypatch):
    real, turns = JobQueue.claim, 0

    async def claim(self: JobQueue, *args: object, **kwargs: object) -> object:
        nonlocal turns
        turns += 1
        if turns <= 3:
            raise KeyError("an answer that nobody foresaw")
        return await real(self, *args, **kwargs)

    monkeypatch.setattr(JobQueue, "claim", claim)
    monkeypatch.setattr("common.queue.worker.PAUSE_AFTER_ERROR_S", 0.01)

    async def handler(job: ClaimedJob) -> None:
        pass

    await enqueue(lab, "gen_0")
    with capture_logs() as logs:
        async with lab.worker(handler) as worker:
            await eventually(lambda: worker.jobs_complete == 1)

    assert [line["event"] for line in logs].count("claiming_failed") == 1


async def test_a_worker_is_alive_for_as_long_as_it_takes_jobs(lab, monkeypatch):
    monkeypatch.setattr("common.queue.worker.ALIVE_BEAT_S", 0.02)

    async def handler(job: ClaimedJob) -> None:
        pass

    async def alive() -> int:
        return await lab.redis.zcard(keyspace.WORKERS)

    async with asyncio.timeout(10):
        async with lab.worker(handler) as worker:
            while not await alive():
                await asyncio.sleep(0.01)
            worker.allow_pick_jobs = False  # As when it drains.
            while await alive():
                await asyncio.sleep(0.01)


async def test_a_worker_that_has_not_begun_has_no_problem(lab, monkeypatch):
    monkeypatch.setattr("common.queue.worker.STUCK_S", 0)

    worker = LeasedWorker(lab.redis, lab.queue(), lab.pulse, Settings(), Held(), "test")

    assert worker.problem is None


async def test_a_worker_that_claims_nothing_says_so_though_redis_answers(lab, monkeypatch):
    async def refused(*_: object, **__: object) -> None:
        raise StoreUnavailable("NOSCRIPT No matching script")

    async def handler(job: ClaimedJob) -> None:
        pass

    monkeypatch.setattr("common.queue.worker.STUCK_S", 0.3)
    async with lab.worker(handler) as worker:
        await asyncio.sleep(0.1)
        assert worker.problem is None
        claim = JobQueue.claim
        monkeypatch.setattr(JobQueue, "claim", refused)
        await lab.redis.lpush(keyspace.BELL, 1)
        await eventually(lambda: worker.problem)

        assert "NOSCRIPT" in worker.problem
        monkeypatch.setattr(JobQueue, "claim", claim)
        monkeypatch.setattr("common.queue.worker.STUCK_S", 10)
        await asyncio.sleep(0.5)
        assert worker.problem is None


class Held:
    """A handler whose jobs run until they are let go. ``running`` are those that do, in the order of their claims."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def __call__(self, job: ClaimedJob) -> None:
        self.running.append(job.generation_id)
        try:
            await self._ends.setdefault(job.generation_id, asyncio.Event()).wait()
        finally:
            self.running.remove(job.generation_id)

    def end_one(self) -> None:
        self._ends[self.running[0]].set()


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens is not for the poll that is the safety net."""
    monkeypatch.setattr("common.queue.worker.BELL_WAIT_S", 1000)
    monkeypatch.setattr("common.queue.worker.BELL_TIMEOUT_S", 1000)


async def enqueue_background(lab: Lab, *names: str) -> None:
    for name in names:
        await lab.queue().enqueue(name, "tenant", JobClass.BACKGROUND)


@pytest.mark.usefixtures("no_poll")
async def test_a_freed_background_slot_takes_what_waits_for_it(lab):
    held = Held()
    await enqueue_background(lab, *(f"gen_{n}" for n in range(5)))

    async with lab.worker(held, worker_slots=4, background_share=0.5) as worker:
        for ended in range(4):
            await eventually(lambda: len(held.running) == 2)
            held.end_one()
            await eventually(lambda ended=ended: worker.jobs_complete == ended + 1)

        await eventually(lambda: held.running == ["gen_4"])


@pytest.mark.usefixtures("no_poll")
async def test_a_freed_background_slot_takes_what_comes_later(lab):
    held = Held()
    await enqueue_background(lab, "gen_0", "gen_1")

    async with lab.worker(held, worker_slots=4, background_share=0.5) as worker:
        await eventually(lambda: len(held.running) == 2)
        await asyncio.sleep(0.1)  # It listens to the other bell alone.
        held.end_one()
        await eventually(lambda: worker.jobs_complete == 1)
        await enqueue_background(lab, "gen_2")

        await eventually(lambda: held.running == ["gen_1", "gen_2"])


@pytest.mark.usefixtures("no_poll")
async def test_a_worker_whose_share_is_full_takes_no_ring_from_one_that_has_room(lab):
    full, free = Held(), Held()
    await enqueue_background(lab, "gen_0")
    async with lab.worker(full, "full", worker_slots=2, background_share=0.5):
        await eventually(lambda: full.running == ["gen_0"])
        async with lab.worker(free, "free", worker_slots=2, background_share=0.5):
            for _ in range(3):
                await enqueue_background(lab, "gen_1")
                await eventually(lambda: free.running == ["gen_1"])
                free.end_one()
                await eventually(lambda: not free.running)
                free._ends.clear()


@pytest.mark.usefixtures("no_poll")
async def test_a_ring_that_there_is_no_room_for_any_more_is_put_back(lab, monkeypatch):
    async with lab.worker(Held()) as worker:
        await eventually(lambda: len(worker._listening) == 2)
        monkeypatch.setattr(worker, "_room_for", lambda bell: 0)
        await enqueue_background(lab, "gen_0")
        async with asyncio.timeout(120):
            while not await lab.redis.lpop(keyspace.BELL_BACKGROUND):
                await asyncio.sleep(0.01)


@pytest.mark.usefixtures("no_poll")
async def test_full_slots_are_not_polled_and_a_freed_one_is_used_at_once(lab, monkeypatch):
    held = Held()
    await enqueue(lab, "gen_0", "gen_1")
    async with lab.worker(held, worker_slots=1) as worker:
        await eventually(lambda: held.running == ["gen_0"])
        await asyncio.sleep(0.1)  # Its last turn before it waits.
        turns: list[None] = []
        turn = worker._turn
        monkeypatch.setattr(worker, "_turn", lambda: turns.append(None) or turn())
        await asyncio.sleep(0.7)
        assert not turns

        held.end_one()
        await eventually(lambda: held.running == ["gen_1"])
