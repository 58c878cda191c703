"""The queue's rules on real Redis; Redis' own clock runs, so waits are short and awaited, never measured."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from common import keys
from common.errors import ErrorKind, GatewayError
from common.queue.jobs import Claimed, ClaimedJob, JobClass, JobQueue, Place
from common.redis_client import Pulse, RedisUnavailable
from common.settings import Settings

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
        return JobQueue(redis, pulse, Settings(**settings))

    return make


@pytest.fixture
def queue(make_queue) -> JobQueue:
    return make_queue()


async def claim(queue: JobQueue, room: int = 10, lapsed_max: int = 0, not_these: tuple[str, ...] = ()) -> list[ClaimedJob]:
    return (await queue.claim(room, lapsed_max=lapsed_max, not_these=not_these)).jobs


def names(jobs: list[ClaimedJob]) -> list[str]:
    return [job.generation_id for job in jobs]


async def test_jobs_of_a_tenant_come_in_the_order_in_which_they_were_enqueued(queue):
    for n in range(4):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)

    assert names(await claim(queue, 3)) == ["gen_0", "gen_1", "gen_2"]
    assert names(await claim(queue)) == ["gen_3"]


async def test_tenants_take_turns(queue):
    for n in range(1000):
        await queue.enqueue(f"burst_{n}", "loud", INTERACTIVE)
    await queue.enqueue("single", "quiet", INTERACTIVE)

    assert "single" in names(await claim(queue, 2))


async def test_background_waits_for_interactive(queue):
    await queue.enqueue("later", "a", BACKGROUND)
    await queue.enqueue("now", "b", INTERACTIVE)

    assert names(await claim(queue, 1)) == ["now"]
    assert names(await claim(queue, 1)) == ["later"]


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

    assert await queue.look(["gen_2"]) == [Place.GONE]


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
    assert await queue.look(["gen_0"]) == [Place.LAPSED]

    assert await queue.renew({"gen_0": 1}) == []
    assert await queue.look(["gen_0"]) == [Place.RUNNING]
    assert await claim(queue, lapsed_max=4) == []


async def test_a_worker_is_never_handed_a_job_that_it_runs(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)

    found: Claimed = await queue.claim(10, lapsed_max=4, not_these=("gen_0",))

    assert (found.jobs, found.lapsed_left) == ([], 1)


async def test_without_leave_to_take_lapsed_jobs_they_are_only_counted(make_queue):
    queue = make_queue(lease_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.06)

    assert (await queue.claim(10, lapsed_max=0, not_these=())).lapsed_left == 1


async def test_a_handover_is_first_in_line_and_says_what_it_is(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)
    await queue.enqueue("gen_1", "a", INTERACTIVE)

    await queue.release(job, is_handover=True)

    handed, other = await claim(queue)
    assert (handed.generation_id, handed.epoch, handed.is_handover) == ("gen_0", 2, True)
    assert (other.generation_id, other.is_handover) == ("gen_1", False)


async def test_a_delayed_release_waits_for_its_time(queue):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    (job,) = await claim(queue)

    await queue.release(job, delay_s=0.2)

    assert await claim(queue) == []
    async with asyncio.timeout(5):
        while not (again := await claim(queue)):
            await asyncio.sleep(0.02)
    assert names(again) == ["gen_0"]


async def test_a_job_that_waited_too_long_is_late_and_its_claim_says_so(make_queue):
    queue = make_queue(queue_wait_s=0.02)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    assert await queue.look(["gen_0"]) == [Place.WAITING]
    await asyncio.sleep(0.03)

    assert await queue.look(["gen_0"]) == [Place.LATE]
    assert (await claim(queue))[0].is_late


async def test_a_job_whose_lease_lapsed_for_too_long_is_abandoned(make_queue):
    queue = make_queue(lease_s=0.02, queue_wait_s=0.05)
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    await claim(queue)
    await asyncio.sleep(0.1)

    assert await queue.look(["gen_0"]) == [Place.ABANDONED]


async def test_withdrawing_removes_a_job_wherever_it_is(queue, redis):
    for name in ("waits", "runs"):
        await queue.enqueue(name, name, INTERACTIVE)
    (job,) = await claim(queue, 1)

    for name in ("waits", "runs"):
        await queue.withdraw(name)

    assert await queue.look(["waits", "runs"]) == [Place.GONE, Place.GONE]
    assert await queue.renew({job.generation_id: job.epoch}) == [job.generation_id]
    assert await claim(queue) == []


async def test_finished_jobs_leave_no_key_behind(queue, redis):
    for n in range(5):
        await queue.enqueue(f"gen_{n}", f"tenant_{n % 2}", INTERACTIVE)
    for job in await claim(queue):
        await queue.finish(job)

    left = {key.decode() for key in await redis.keys("*")}
    assert left <= {keys.BELL, keys.QUEUE_PREFIX + "turn"}


async def test_work_that_is_left_rings_again(queue, redis):
    for n in range(3):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)
    await redis.delete(keys.BELL)

    await claim(queue, 1)
    assert await redis.llen(keys.BELL) == 1

    await redis.delete(keys.BELL)
    await claim(queue, 10)
    assert await redis.llen(keys.BELL) == 0


async def test_the_bell_never_holds_more_than_one_ring(queue, redis):
    for n in range(5):
        await queue.enqueue(f"gen_{n}", "a", INTERACTIVE)

    assert await redis.llen(keys.BELL) == 1


async def test_stale_commands_accept_and_hand_out_nothing(queue, pulse):
    await queue.enqueue("gen_0", "a", INTERACTIVE)
    fresh = pulse.redis_ms
    await pulse.stop()  # Else it would refresh what we set.
    pulse.redis_ms = fresh - 10_000

    with pytest.raises(RedisUnavailable):
        await queue.enqueue("gen_1", "a", INTERACTIVE)
    assert await claim(queue) == []
    await pulse.start()
    assert names(await claim(queue)) == ["gen_0"]
