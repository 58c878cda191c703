"""What the leased worker claims, by what its queue answers. The queue is scripted."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.canonical.errors import StoreUnavailable
from common.limits.charges import Settlement
from common.queue.jobs import LAPSED_BATCH, ClaimedJob, ClaimResult
from common.redis import keyspace
from common.redis.client import Client
from tests.support.servers.scripted_queue import JOB, SETTLEMENT, Lab, eventually, settles, waits

AWAY = StoreUnavailable("away")


@pytest.fixture
async def lab(redis: Client, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("common.queue.worker.BELL_WAIT_S", 1000)
    monkeypatch.setattr("common.queue.worker.BELL_TIMEOUT_S", 1000)
    monkeypatch.setattr("common.queue.worker.RELEASE_DELAY_S", 0.25)
    return Lab(redis)


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


async def test_a_closed_worker_waits_for_no_bell(lab):
    async def waiting() -> int:
        return sum(client["cmd"] == "blpop" for client in await lab.redis.client_list())

    async with lab.running(waits) as worker:
        await eventually(lambda: len(worker._listening) == 2)
        async with asyncio.timeout(20):
            while await waiting() < 2:
                await asyncio.sleep(0.01)

    async with asyncio.timeout(20):
        while await waiting():
            await asyncio.sleep(0.01)


async def test_only_a_class_with_room_is_waited_for(lab):
    lab.queue.claims.append(ClaimResult([ClaimedJob("gen_0", 1, is_background=True)], 0, 0))

    async with lab.running(waits, worker_slots=2, background_share=0.5) as worker:
        await eventually(lambda: worker._listening)
        assert list(worker._listening) == [keyspace.BELL]


async def test_a_ring_for_a_class_without_room_is_put_back_for_another_worker(lab):
    async with lab.running(waits, worker_slots=3, background_share=0.4) as worker:
        await eventually(lambda: len(worker._listening) == 2)
        lab.queue.claims.append(ClaimResult([ClaimedJob("gen_0", 1, is_background=True)], 0, 0))
        await lab.redis.lpush(keyspace.BELL, 1)
        await eventually(lambda: "gen_0" in worker.tasks)  # The other bell is still waited for.
        await lab.redis.lpush(keyspace.BELL_BACKGROUND, 1)

        async with asyncio.timeout(20):
            while keyspace.BELL_BACKGROUND in worker._listening or not await lab.redis.llen(keyspace.BELL_BACKGROUND):
                await asyncio.sleep(0.005)


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
