"""Until when does what the queue keeps of a job count? Read from Redis itself, in whole seconds from now."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from common.access.principal import Budget
from common.config.settings import Settings
from common.limits.charges import BudgetAccount, Charges, Settlement, Slot, Window, periods
from common.queue.jobs import (
    JOB_EXPIRY_EXTRA_S,
    RECENT_S,
    ClaimedJob,
    IdempotencyKey,
    JobClass,
    JobQueue,
)
from common.redis import keyspace
from common.redis.pulse import Pulse

G = "gen_1"
WAIT, WAIT_BACKGROUND, TOTAL, LEASE, ONCE = 100, 5000, 300, 20, 700
SLOT_EXTRA = 2
SLOT = keyspace.slots("key", "k")
CHARGES = Charges(
    [Window("key", "k", "requests", 10, 60, 1), Window("key", "k", "tokens", 1000, 60, 30)], [Slot("key", "k", 5)]
)
INTERACTIVE, BACKGROUND = JobClass.INTERACTIVE, JobClass.BACKGROUND


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[JobQueue]:
    pulse = Pulse(redis)
    await pulse.start()
    times = {
        "queue_wait_s": WAIT,
        "queue_wait_background_s": WAIT_BACKGROUND,
        "total_timeout_s": TOTAL,
        "lease_s": LEASE,
        "idempotency_s": ONCE,
    }
    await redis.set(keyspace.SPENT_LOADED, "loaded")
    yield JobQueue(redis, pulse, Settings().model_copy(update=times))
    await pulse.stop()


async def claim(queue: JobQueue) -> ClaimedJob:
    (job,) = (await queue.claim(10, lapsed_max=0, excluded_ids=())).jobs
    return job


async def from_now(redis: Redis, ms: Any) -> int:
    seconds, micros = await redis.time()
    return round(float(ms) / 1000 - seconds - micros / 1_000_000)


async def score(redis: Redis, key: str, id_: str = G) -> int:
    """The seconds from now until the time that an id has in a sorted set."""
    return await from_now(redis, await redis.zscore(key, id_))


@pytest.mark.parametrize(("job_class", "wait"), [(INTERACTIVE, WAIT), (BACKGROUND, WAIT_BACKGROUND)])
async def test_an_enqueued_job_may_wait_for_as_long_as_its_class_does(queue, redis, job_class, wait):
    await queue.enqueue(G, "me", job_class, tenant="t", charges=CHARGES)

    job = await redis.hgetall(keyspace.JOB + G)
    assert await from_now(redis, job[b"enqueued_ms"]) == 0
    assert await from_now(redis, job[b"claim_by_ms"]) == wait
    assert (job[b"tenant"], job[b"class"], job[b"epoch"]) == (b"t", job_class.encode(), b"0")
    expiry = wait + TOTAL + JOB_EXPIRY_EXTRA_S
    assert await redis.ttl(keyspace.JOB + G) in (expiry - 1, expiry)
    assert await score(redis, SLOT) == wait
    assert await redis.ttl(SLOT) in (expiry - 1, expiry)
    assert await score(redis, keyspace.ENQUEUED) == 0
    assert await score(redis, keyspace.RECENT + "me") == 0
    assert await redis.ttl(keyspace.RECENT + "me") in (RECENT_S - 1, RECENT_S)


async def test_limits_are_kept_for_two_windows(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)

    for kind, amount in (("requests", b"1"), ("tokens", b"30")):
        key = keyspace.limit("key", "k", kind)
        assert await redis.hvals(key) == [amount]
        assert await redis.ttl(key) in (119, 120)


async def test_the_answer_says_what_is_left_and_when_all_of_it_is_free(queue):
    first = await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)
    second = await queue.enqueue("gen_2", "me", INTERACTIVE, charges=CHARGES)

    assert [limit.remaining for limit in first.limit_statuses] == [9, 970]
    assert [limit.reset_s for limit in first.limit_statuses] == [60, 60]
    assert [limit.remaining for limit in second.limit_statuses] == [8, 940]
    assert all(59 <= limit.reset_s <= 61 for limit in second.limit_statuses)


async def test_an_idempotency_key_counts_for_its_time(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE, IdempotencyKey("me:k", "digest"))

    assert await redis.get(keyspace.ONCE + "me:k") == f"{G} digest".encode()
    assert await redis.ttl(keyspace.ONCE + "me:k") in (ONCE - 1, ONCE)


async def test_a_claim_leases_a_job_and_keeps_its_slot_for_a_little_longer(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)

    job = await claim(queue)

    assert (job.epoch, job.is_background, job.attempts) == (1, False, 0)
    assert await score(redis, keyspace.RUNNING) == LEASE
    assert await score(redis, SLOT) == LEASE + SLOT_EXTRA
    assert await redis.zcard(keyspace.ENQUEUED) == 0


async def test_a_renewal_leases_it_anew(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)
    await claim(queue)
    await redis.zadd(keyspace.RUNNING, {G: 1})
    await redis.zadd(SLOT, {G: 1})

    assert await queue.renew({G: 1}) == []

    assert await score(redis, keyspace.RUNNING) == LEASE
    assert await score(redis, SLOT) == LEASE + SLOT_EXTRA


async def test_only_what_another_one_owns_is_lost(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)
    await claim(queue)
    await redis.zadd(keyspace.RUNNING, {G: 1})

    assert await queue.renew({G: 7, "gen_gone": 1}) == [G]

    assert await redis.zscore(keyspace.RUNNING, G) == 1


@pytest.mark.parametrize(("delay", "place"), [(0, keyspace.ENQUEUED), (50, keyspace.DELAYED)])
async def test_what_is_given_back_keeps_its_slot_for_as_long_as_it_may_wait_again(queue, redis, delay, place):
    await queue.enqueue(G, "me", INTERACTIVE, charges=CHARGES)
    job = await claim(queue)

    await queue.release(job, delay_s=delay)

    assert await score(redis, SLOT) == WAIT
    assert await score(redis, place) == delay
    assert await redis.zcard(keyspace.RUNNING) == 0
    assert [await redis.zcard(key) for key in (keyspace.ENQUEUED, keyspace.DELAYED)].count(1) == 1


async def test_what_is_given_back_twice_is_given_back_once(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE)
    job = await claim(queue)
    await queue.release(job)

    await queue.release(job, delay_s=50)

    assert await redis.zcard(keyspace.DELAYED) == 0


async def test_a_cost_counts_for_its_day_and_its_month(queue, redis):
    account = BudgetAccount("key", "k", Budget(day_usd=1, month_usd=1))
    await queue.enqueue(G, "me", INTERACTIVE, charges=Charges(accounts=[account]))

    await queue.finish(await claim(queue), Settlement(0, 7))

    for period, days in zip(periods(), (3, 40), strict=True):
        key = keyspace.spent("key", "k", period)
        assert await redis.get(key) == b"7"
        assert await redis.ttl(key) in (days * 86400 - 1, days * 86400)


async def test_a_worker_s_report_is_kept_for_its_time_and_older_ones_go(queue, redis):
    await redis.zadd(keyspace.WORKERS, {"dead 1": 1})

    await queue.report_alive("w", takes_jobs=True)

    (worker,) = await redis.zrange(keyspace.WORKERS, 0, -1)
    assert await score(redis, keyspace.WORKERS, worker) == 0
    assert 0 < await redis.pttl(keyspace.WORKERS) <= 60_000
    await queue.report_alive("w", takes_jobs=False)
    assert await redis.exists(keyspace.WORKERS) == 0


async def test_what_is_set_aside_is_kept_for_a_month(queue, redis):
    await queue.enqueue(G, "me", INTERACTIVE)
    job = await claim(queue)

    await queue.drop(job, "a reason", with_record=False)

    assert await redis.ttl(keyspace.UNREADABLE) in (30 * 86400 - 1, 30 * 86400)
    assert await redis.lrange(keyspace.ENDED, 0, -1) == [G.encode()]
    assert await redis.exists(keyspace.JOB + G) == 0
