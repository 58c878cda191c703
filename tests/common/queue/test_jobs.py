"""The queue's rules on real Redis; Redis' own clock runs, so waits are short and awaited, never measured."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.channel.base import Cursor, FrameId
from common.config.settings import Settings
from common.queue.jobs import CLAIM_BATCH, RECENT_S, ClaimedJob, ClaimResult, IdempotencyKey, JobClass, JobQueue, JobStatus
from common.redis import keyspace
from common.redis.pulse import Pulse

INTERACTIVE, BACKGROUND = JobClass.INTERACTIVE, JobClass.BACKGROUND


@pytest.fixture
async def pulse(redis: Redis) -> AsyncIterator[Pulse]:
    pulse = Pulse(redis)
    await pulse.start()
    yield pulse
    await pulse.stop()


@pytest.fixture
def make_queue(redis: Redis, pulse: Pulse):
    def make(**settings: Any) -> JobQueue:
        return JobQueue(redis, pulse, Settings().model_copy(update=settings))  # Also what is too short for real ones.

    return make


@pytest.fixture
def queue(make_queue) -> JobQueue:
    return make_queue()


async def claim(queue: JobQueue, room: int = 10, lapsed_max: int = 0, excluded_ids: tuple[str, ...] = ()) -> list[ClaimedJob]:
    return (await queue.claim(room, lapsed_max=lapsed_max, excluded_ids=excluded_ids)).jobs


def names(jobs: list[ClaimedJob]) -> list[str]:
    return [job.generation_id for job in jobs]


async def test_jobs_of_a_tenant_come_in_the_order_in_which_they_were_enqueued(queue):
    for n in range(4):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)

    assert names(await claim(queue, 3)) == ["gen_0", "gen_1", "gen_2"]
    assert names(await claim(queue)) == ["gen_3"]


async def test_one_claim_takes_no_more_than_a_batch(queue):
    for n in range(CLAIM_BATCH + 1):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)

    assert [len(await claim(queue, 100)), len(await claim(queue, 100))] == [CLAIM_BATCH, 1]


async def test_tenants_take_turns(queue):
    for n in range(1000):
        await queue.enqueue(f"burst_{n}", "loud", INTERACTIVE)
    await queue.enqueue("single", "quiet", INTERACTIVE)

    assert "single" in names(await claim(queue, 2))


@pytest.mark.parametrize("claims_kept", [0, 1])
async def test_a_server_that_lost_a_claim_never_gives_its_epoch_again(queue, redis, claims_kept: int):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    for _ in range(claims_kept):
        await queue.release((await claim(queue))[0])
    kept = {key: await redis.dump(key) for key in await redis.keys(keyspace.QUEUE_PREFIX + "*")}
    lost = (await claim(queue))[0]

    await redis.flushdb()
    for key, value in kept.items():
        await redis.restore(key, 0, value)
    await redis.slaveof("127.0.0.1", 1)  # Nobody there; but who was a replica is another master than before.
    await redis.slaveof("NO", "ONE")
    before_s = (await redis.time())[0]
    again = (await claim(queue))[0]
    after_s = (await redis.time())[0]
    await queue.release(again)
    third = (await claim(queue))[0]

    assert lost.epoch == claims_kept + 1
    assert before_s <= again.epoch + 1_700_000_000 <= after_s  # Another offset would repeat epochs of an earlier release.
    assert lost.epoch + 1_000_000 < again.epoch < third.epoch == again.epoch + 1
    assert not again.is_late
    assert Cursor.parse(f"{third.epoch}-1.1").frame == FrameId(third.epoch, 1)  # A cursor takes it.


async def test_background_waits_for_interactive(queue):
    await queue.enqueue("later", "a", BACKGROUND)
    await queue.enqueue("now", "b", INTERACTIVE)

    assert names(await claim(queue, 1)) == ["now"]
    assert names(await claim(queue, 1)) == ["later"]


async def test_background_is_not_put_off_for_ever(queue):
    for n in range(100):
        await queue.enqueue(f"now_{n}", "a", INTERACTIVE)
    for n in range(10):
        await queue.enqueue(f"later_{n}", "b", BACKGROUND)

    first = [job for _ in range(5) for job in await claim(queue, 16)]

    assert sum(job.is_background for job in first) == len(first) // 20


@pytest.mark.parametrize("job_class", JobClass)
async def test_where_one_class_waits_alone_every_turn_is_its_own(queue, job_class):
    for n in range(45):
        await queue.enqueue(f"gen_{n}", "a", job_class)

    counts = [len(await claim(queue, 10)) for _ in range(5)]

    assert counts == [10, 10, 10, 10, 5]


async def test_background_takes_no_more_slots_than_it_may_and_its_own_bell_tells_others_of_the_rest(queue, redis):
    for n in range(3):
        await queue.enqueue(f"later_{n}", "a", BACKGROUND)

    taken = (await queue.claim(10, background_max=2, lapsed_max=0, excluded_ids=())).jobs
    none = (await queue.claim(10, background_max=0, lapsed_max=0, excluded_ids=())).jobs

    assert (names(taken), none) == (["later_0", "later_1"], [])
    assert (await redis.llen(keyspace.BELL), await redis.llen(keyspace.BELL_BACKGROUND)) == (0, 1)
    await queue.enqueue("now", "b", INTERACTIVE)
    assert names((await queue.claim(10, background_max=0, lapsed_max=0, excluded_ids=())).jobs) == ["now"]


async def test_a_queue_full_of_background_has_room_for_interactive(make_queue):
    queue = make_queue(waiting_max=4, background_share=0.5)
    for n in range(2):
        await queue.enqueue(f"later_{n}", "a", BACKGROUND)

    with pytest.raises(GatewayError):
        await queue.enqueue("later_2", "b", BACKGROUND)
    await queue.enqueue("now", "b", INTERACTIVE)


async def test_a_full_queue_refuses_and_enqueues_nothing(make_queue):
    queue = make_queue(waiting_max=2, waiting_per_tenant_max=1)
    await queue.enqueue("gen_0", "a", INTERACTIVE)

    for tenant, code in [("a", "tenant_queue_full"), ("c", "queue_full")]:
        if tenant == "c":
            await queue.enqueue("gen_1", "b", INTERACTIVE)
        with pytest.raises(GatewayError) as caught:
            await queue.enqueue("gen_2", tenant, INTERACTIVE)
        assert (caught.value.failed.kind, caught.value.failed.code) == (ErrorKind.OVERLOADED, code)
        assert caught.value.failed.retry_after_s
        whose = "Too many of your requests are" if tenant == "a" else "Too many requests are"
        assert caught.value.failed.message.startswith(f"{whose} already waiting. Try again in")

    assert await queue.statuses(["gen_2"]) == [JobStatus.GONE]


async def test_a_claim_raises_the_epoch_and_a_former_owner_can_do_nothing(make_queue, redis):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (first,) = await claim(queue)
    await asyncio.sleep(0.06)
    (second,) = await claim(queue, lapsed_max=4)

    await queue.finish(first)
    await queue.release(first)

    assert (first.epoch, second.epoch, second.was_lapsed) == (1, 2, True)
    assert await queue.renew({"gen_0": 1}) == ["gen_0"]
    assert await queue.renew({"gen_0": 2}) == []


async def test_a_lapsed_lease_is_claimed_before_what_waits(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("dead", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)
    await queue.enqueue("waiting", "b", INTERACTIVE)

    assert names(await claim(queue, 1, lapsed_max=4)) == ["dead"]


async def test_a_lapsed_lease_that_nobody_took_is_renewed(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)
    assert await queue.statuses(["gen_0"]) == [JobStatus.LAPSED]

    assert await queue.renew({"gen_0": 1}) == []
    assert await queue.statuses(["gen_0"]) == [JobStatus.RUNNING]
    assert await claim(queue, lapsed_max=4) == []


async def test_a_lease_that_was_given_back_cannot_be_renewed(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)
    await queue.release(job)

    assert await queue.renew({"gen_0": job.epoch}) == ["gen_0"]
    assert await queue.statuses(["gen_0"]) == [JobStatus.WAITING]


async def test_a_renewal_answers_for_no_other_job(queue):
    for name in ("gen_0", "1"):  # The second is also an epoch.
        await queue.enqueue(name, "a", INTERACTIVE)
    await claim(queue)

    assert await queue.renew({"gen_0": 1}) == []


async def test_jobs_that_a_worker_runs_do_not_hide_other_lapsed_ones(make_queue):
    queue = make_queue(lease_s=0.05)
    for n in range(4):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)
        await claim(queue)  # One by one, so that their leases lapse in this order.
    await asyncio.sleep(0.1)

    found = await queue.claim(10, lapsed_max=1, excluded_ids=("gen_0", "gen_1"))

    assert (names(found.jobs), found.lapsed_left) == (["gen_2"], 3)


async def test_a_worker_is_never_handed_a_job_that_it_runs(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)

    found: ClaimResult = await queue.claim(10, lapsed_max=4, excluded_ids=("gen_0",))

    assert (found.jobs, found.lapsed_left) == ([], 1)


async def test_without_leave_to_take_lapsed_jobs_they_are_only_counted(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)

    assert (await queue.claim(10, lapsed_max=0, excluded_ids=())).lapsed_left == 1


async def test_a_handover_is_first_in_line_and_says_what_it_is(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)
    await queue.enqueue("gen_1", "a", INTERACTIVE)

    await queue.release(job, is_handover=True)

    handed, other = await claim(queue)
    assert (handed.generation_id, handed.epoch, handed.is_handover) == ("gen_0", 2, True)
    assert (other.generation_id, other.is_handover) == ("gen_1", False)


async def test_a_postponed_job_waits_without_a_worker_and_keeps_the_number_of_its_attempts(queue):
    await queue.enqueue("gen_0", "a", BACKGROUND)
    (job,) = await claim(queue)

    await queue.postpone(job, delay_s=0.2, attempts=3)

    assert (await queue.statuses(["gen_0"]), await claim(queue)) == ([JobStatus.WAITING], [])
    async with asyncio.timeout(5):
        while not (again := await claim(queue)):
            await asyncio.sleep(0.02)
    (again,) = again
    assert (again.was_postponed, again.is_handover, again.is_late, again.attempts) == (True, False, False, 3)
    assert (again.epoch, again.waited_ms >= 200) == (2, True)
    await queue.release(again, is_handover=True)
    (handed,) = await claim(queue)
    assert (handed.was_postponed, handed.is_handover, handed.attempts) == (False, True, 3)


async def test_a_postponed_job_can_be_withdrawn(queue):
    await queue.enqueue("gen_0", "a", BACKGROUND)
    (job,) = await claim(queue)
    await queue.postpone(job, delay_s=0.05, attempts=1)

    await queue.withdraw("gen_0")

    await asyncio.sleep(0.06)
    assert (await queue.statuses(["gen_0"]), await claim(queue)) == ([JobStatus.GONE], [])


async def test_a_delayed_release_waits_for_its_time(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)

    await queue.release(job, delay_s=0.2)

    assert await claim(queue) == []
    async with asyncio.timeout(120):
        while not (again := await claim(queue)):
            await asyncio.sleep(0.02)
    assert names(again) == ["gen_0"]


async def test_a_job_that_waited_too_long_is_late_and_its_claim_says_so(make_queue):
    queue = make_queue(queue_wait_s=0.02)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    assert await queue.statuses(["gen_0"]) == [JobStatus.WAITING]
    await asyncio.sleep(0.03)

    assert await queue.statuses(["gen_0"]) == [JobStatus.LATE]
    assert (await claim(queue))[0].is_late


async def test_a_job_that_was_taken_in_time_is_not_late_when_it_is_taken_over(make_queue):
    """However old it is by then: its answer has begun, and goes on."""
    queue = make_queue(lease_s=0.02, queue_wait_s=0.02)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (first,) = await claim(queue)
    await asyncio.sleep(0.06)

    (again,) = await claim(queue, lapsed_max=1)

    assert (first.is_late, again.was_lapsed, again.is_late) == (False, True, False)


@pytest.mark.parametrize(("has_log", "place"), [(False, JobStatus.LATE), (True, JobStatus.WAITING)])
async def test_a_job_that_was_given_back_is_late_where_no_claim_got_anywhere(make_queue, redis, has_log, place):
    queue = make_queue(queue_wait_s=0.02)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)
    if has_log:
        await redis.xadd(keyspace.log("gen_0"), {"k": "fence", "d": "0-0"}, "1-0")
    await queue.release(job)
    await asyncio.sleep(0.03)

    assert await queue.statuses(["gen_0"]) == [place]


async def test_a_job_whose_lease_lapsed_for_too_long_is_abandoned(make_queue):
    queue = make_queue(lease_s=0.02, queue_wait_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.1)

    assert await queue.statuses(["gen_0"]) == [JobStatus.ABANDONED]


async def test_just_after_an_outage_no_job_counts_as_abandoned(make_queue, pulse):
    queue = make_queue(lease_s=0.02, queue_wait_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.1)

    pulse.is_up = False  # Which ends with the next beat: its worker has had no time to renew.

    assert await queue.statuses(["gen_0"]) == [JobStatus.LAPSED]


async def test_withdrawing_removes_a_job_wherever_it_is(queue, redis):
    for name in ("waits", "runs"):
        await queue.enqueue(name, name, INTERACTIVE)
    (job,) = await claim(queue, 1)

    for name in ("waits", "runs"):
        await queue.withdraw(name)

    assert await queue.statuses(["waits", "runs"]) == [JobStatus.GONE, JobStatus.GONE]
    assert await queue.renew({job.generation_id: job.epoch}) == []  # Its log was ended first, and tells its worker.
    assert await claim(queue) == []


async def test_a_job_that_redis_forgot_stays_its_workers_and_is_listed_for_the_ledger_when_it_ends(queue, redis):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)
    await redis.delete(keyspace.JOB + "gen_0", keyspace.RUNNING)

    assert await queue.renew({"gen_0": job.epoch}) == []
    assert await queue.finish(job) == []

    assert await redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0"]
    assert await redis.keys(keyspace.JOB + "*") == []
    assert await redis.zcard(keyspace.RUNNING) == 0


async def test_however_many_jobs_run_a_new_one_is_found(queue):
    for n in range(1000):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)
    while await claim(queue, 16):
        pass
    await queue.enqueue("new", "a", INTERACTIVE)

    assert names(await claim(queue, 1)) == ["new"]


async def test_nothing_is_pickled_or_kept_under_keys_of_arq(queue, redis):
    await queue.enqueue("gen_0", "a", INTERACTIVE)

    assert not [key for key in await redis.keys("*") if not key.startswith(keyspace.QUEUE_PREFIX.encode())]
    assert all(value.decode().isprintable() for value in (await redis.hgetall(keyspace.JOB + "gen_0")).values())


async def test_finished_jobs_leave_no_key_behind(queue, redis):
    for n in range(5):
        await queue.enqueue(f"gen_{n}", f"tenant_{n % 2}", INTERACTIVE)
    for job in await claim(queue):
        await queue.finish(job)

    lasting = {key.decode() for key in await redis.keys("*") if await redis.ttl(key) == -1}
    assert lasting <= {*keyspace.PERMANENT, keyspace.ENDED}, "the ledger takes the list of what has ended"


async def test_work_that_is_left_rings_again(queue, redis):
    for n in range(3):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)
    await redis.delete(keyspace.BELL)

    await claim(queue, 1)
    assert await redis.llen(keyspace.BELL) == 1

    await redis.delete(keyspace.BELL)
    await claim(queue, 10)
    assert await redis.llen(keyspace.BELL) == 0


async def test_the_bell_never_holds_more_than_one_ring(queue, redis):
    for n in range(5):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)

    assert await redis.llen(keyspace.BELL) == 1


async def test_stale_commands_accept_and_hand_out_nothing(redis):
    now = 100.0
    pulse = Pulse(redis, lambda: now, interval_s=3600)
    await pulse.start()
    queue = JobQueue(redis, pulse, Settings())
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    now -= 10  # As if what is sent now had been on its way for so long.

    with pytest.raises(StoreUnavailable):
        await queue.enqueue("gen_1", "a", INTERACTIVE)
    assert await claim(queue) == []
    await pulse.beat()
    assert names(await claim(queue)) == ["gen_0"]
    await pulse.stop()


async def test_a_request_with_a_key_is_enqueued_once(queue):
    once = IdempotencyKey("a:key", "digest")

    assert (await queue.enqueue("gen_0", "a", INTERACTIVE, once)).id == "gen_0"
    assert (await queue.enqueue("gen_1", "a", INTERACTIVE, once)).id == "gen_0"
    assert (await queue.enqueue("gen_2", "b", INTERACTIVE, IdempotencyKey("b:key", "other"))).id == "gen_2"
    assert sorted(names(await claim(queue))) == ["gen_0", "gen_2"]
    assert (await queue.enqueue("gen_3", "a", INTERACTIVE, once)).id == "gen_0"  # Ended or not.


async def test_a_key_that_comes_with_another_request_is_refused(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE, IdempotencyKey("a:key", "digest"))

    with pytest.raises(GatewayError) as caught:
        await queue.enqueue("gen_1", "a", INTERACTIVE, IdempotencyKey("a:key", "other"))

    assert (caught.value.failed.http_status, caught.value.failed.param) == (422, "idempotency-key")
    assert names(await claim(queue)) == ["gen_0"]


async def test_a_key_counts_for_its_time_and_a_refused_request_takes_none(make_queue):
    queue = make_queue(idempotency_s=0.05, waiting_max=1)
    once = IdempotencyKey("a:key", "digest")
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    with pytest.raises(GatewayError):
        await queue.enqueue("gen_1", "a", INTERACTIVE, once)
    await claim(queue)

    assert (await queue.enqueue("gen_2", "a", INTERACTIVE, once)).id == "gen_2"
    assert (await queue.enqueue("gen_3", "a", INTERACTIVE, once)).id == "gen_2"  # Though the queue is full again.
    await asyncio.sleep(0.06)
    await claim(queue)
    assert (await queue.enqueue("gen_4", "a", INTERACTIVE, once)).id == "gen_4"


async def test_what_a_tenant_enqueued_is_listed_newest_first_and_the_list_is_bounded(queue, redis, monkeypatch):
    monkeypatch.setattr("common.queue.jobs.RECENT_MAX", 3)
    for n in range(5):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)
        await asyncio.sleep(0.002)  # Of one millisecond, the greater id comes first.
    await queue.enqueue("gen_b", "b", INTERACTIVE)

    assert await queue.recent("a", "", 10) == ["gen_4", "gen_3", "gen_2"]
    assert await queue.recent("a", "gen_4", 1) == ["gen_3"]
    assert await queue.recent("a", "gen_2", 10) == []
    assert await queue.recent("a", "gen_0", 10) is None
    assert await queue.recent("c", "", 10) == []
    assert 0 < await redis.ttl(keyspace.RECENT + "a") <= RECENT_S
