"""What limits and budgets hold of a job, to the token and to the millisecond, until it ends. The test sets Redis' clock."""

import time
from decimal import Decimal

import pytest

from common.access.principal import Budget
from common.canonical.errors import GatewayError
from common.limits.charges import BudgetAccount, Charges, Settlement, Slot, Window, periods
from common.queue.jobs import JobClass, JobQueue, JobStatus
from common.redis import keyspace
from tests.common.queue.test_moments import Lab, T, lab  # noqa: F401 - a fixture.

REQUESTS = Charges([Window("key", "k", "requests", 2, 60, 1)])
TOKENS = Charges([Window("key", "k", "tokens", 100, 60, 30)], [Slot("key", "k", 5)])
LIMIT = 1_000  # Nano-dollars.
ACCOUNT = BudgetAccount("key", "k", Budget(day_usd=Decimal("0.000001"), month_usd=Decimal("0.00001")))
SECOND = 1_000  # A bucket of a window of one minute, in ms.


async def remaining(lab: Lab, charges: Charges = REQUESTS) -> list[tuple[int, float]]:  # noqa: F811
    result = await lab.queue.enqueue(f"gen_{lab.clock.now_ms}", "a", JobClass.INTERACTIVE, charges=charges)
    return [(status.remaining, status.reset_s) for status in result.limit_statuses]


# Windows


async def test_a_window_says_what_is_left_and_when_it_is_empty(lab):  # noqa: F811
    assert await remaining(lab) == [(1, 60.0)]
    await lab.at(10 * SECOND + 250)

    assert await remaining(lab) == [(0, pytest.approx(50.75))]  # By what was used before this request.


@pytest.mark.parametrize(("ms", "wait_s"), [(500, 60.5), (60 * SECOND, 1.0), (61 * SECOND - 1, 0.001), (61 * SECOND, None)])
async def test_what_was_used_counts_until_all_of_its_bucket_is_older_than_the_window(lab, ms, wait_s):  # noqa: F811
    await lab.enqueue("gen_0", "gen_1", charges=REQUESTS)
    await lab.at(ms)

    if wait_s is None:
        await lab.enqueue("gen_2", charges=REQUESTS)
        return
    with pytest.raises(GatewayError) as refused:
        await lab.enqueue("gen_2", charges=REQUESTS)
    assert refused.value.failed.retry_after_s == pytest.approx(wait_s)


async def test_a_refusal_waits_only_for_as_much_as_it_needs(lab):  # noqa: F811
    await lab.enqueue("gen_0", charges=REQUESTS)
    await lab.at(20 * SECOND)
    await lab.enqueue("gen_1", charges=REQUESTS)

    with pytest.raises(GatewayError) as refused:
        await lab.enqueue("gen_2", charges=REQUESTS)

    assert refused.value.failed.retry_after_s == pytest.approx(41.0)


async def test_a_window_s_key_lasts_for_two_of_them(lab):  # noqa: F811
    await lab.enqueue("gen_0", charges=REQUESTS)

    (key,) = [key for key in await lab.redis.keys("*") if await lab.redis.type(key) == b"hash" and b":job:" not in key]
    assert 110_000 < await lab.redis.pttl(key) <= 120_000
    assert await lab.redis.hgetall(key) == {str(T // SECOND).encode(): b"1"}


async def used(lab: Lab) -> int:  # noqa: F811
    """The tokens of the window, now."""
    keys = [key for key in await lab.redis.keys("*") if await lab.redis.type(key) == b"hash" and b":job:" not in key]
    return sum([int(amount) for key in keys for amount in (await lab.redis.hgetall(key)).values()])


@pytest.mark.parametrize(("tokens", "left"), [(0, 0), (10, 10), (30, 30), (50, 50)])
async def test_an_ended_job_has_used_its_tokens_and_holds_no_slot(lab, tokens, left):  # noqa: F811
    await lab.enqueue("gen_0", charges=TOKENS)
    (job,) = await lab.claim()
    assert await used(lab) == 30
    await lab.at(2 * SECOND)

    assert await lab.queue.finish(job, Settlement(tokens=tokens)) == []

    assert await used(lab) == left
    assert await lab.redis.zcard(keyspace.slots("key", "k")) == 0


async def test_more_tokens_than_were_reserved_count_from_their_own_moment(lab):  # noqa: F811
    await lab.enqueue("gen_0", charges=TOKENS)
    (job,) = await lab.claim()
    await lab.at(5 * SECOND)
    await lab.queue.finish(job, Settlement(tokens=70))

    await lab.at(61 * SECOND)
    assert await remaining(lab, TOKENS) == [(30, pytest.approx(5.0))]


@pytest.mark.parametrize(("is_claimed", "left"), [(False, 0), (True, 30)])
async def test_a_withdrawn_job_gives_its_tokens_back_unless_a_worker_had_it(lab, is_claimed, left):  # noqa: F811
    await lab.enqueue("gen_0", charges=TOKENS)
    if is_claimed:
        await lab.claim()

    await lab.queue.withdraw("gen_0")

    assert await used(lab) == left
    assert await lab.redis.zcard(keyspace.slots("key", "k")) == 0
    assert await lab.status() is JobStatus.GONE


async def test_a_withdrawn_job_s_tenant_has_no_turn_any_more(lab):  # noqa: F811
    await lab.enqueue("gen_0", "gen_1")
    rotation = f"{keyspace.QUEUE_PREFIX}rotation:interactive"

    await lab.queue.withdraw("gen_0")
    assert await lab.redis.lrange(rotation, 0, -1) == [b"a"]
    await lab.queue.withdraw("gen_1")
    assert await lab.redis.lrange(rotation, 0, -1) == []

    assert await lab.redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0", b"gen_1"]
    assert await lab.redis.zcard(keyspace.ENQUEUED) == 0


async def test_withdrawn_jobs_are_not_jobs_that_workers_took(lab):  # noqa: F811
    await lab.enqueue("gen_0", "gen_1", "gen_2")
    await lab.claim_one()
    before = (await lab.queue.load(10))[1]

    await lab.queue.withdraw("gen_0")  # It runs.
    assert (await lab.queue.load(10))[1] == before
    await lab.queue.withdraw("gen_1")
    assert (await lab.queue.load(10))[1] == before - 1
    await lab.queue.withdraw("gen_1")
    assert (await lab.queue.load(10))[1] == before - 1


# Budgets


async def spend(queue: JobQueue, lab: Lab, *costs: int, account: BudgetAccount = ACCOUNT) -> list[list[str]]:  # noqa: F811
    marks = []
    for cost in costs:
        await lab.redis.delete(keyspace.JOB + "gen_0")
        await lab.redis.set(keyspace.SPENT_LOADED, "loaded")
        await queue.enqueue("gen_0", "a", JobClass.INTERACTIVE, charges=Charges(accounts=[account]))
        (job,) = await lab.claim()
        marks.append(await queue.finish(job, Settlement(cost_nano_usd=cost)))
    return marks


@pytest.mark.parametrize(
    ("costs", "percents"),
    [
        ([799], [[]]),
        ([800], [["80"]]),
        ([799, 1], [[], ["80"]]),
        ([800, 199], [["80"], []]),
        ([800, 1, 198, 0], [["80"], [], [], []]),
        ([1_000], [["80", "100"]]),
        ([999, 1], [["80"], ["100"]]),
    ],
)
async def test_a_mark_is_passed_once_and_at_its_very_amount(lab, costs, percents):  # noqa: F811
    day = keyspace.spent("key", "k", periods()[0])

    marks = await spend(lab.queue, lab, *costs)

    assert marks == [[f"{day} {percent}" for percent in each] for each in percents]


async def test_a_budget_without_a_limit_has_no_mark(lab):  # noqa: F811
    unlimited = BudgetAccount("key", "k", Budget())

    assert await spend(lab.queue, lab, LIMIT * 1_000, account=unlimited) == [[]]
    assert await lab.redis.get(keyspace.spent("key", "k", periods()[0])) == b"1000000"


async def test_counters_last_for_longer_than_their_period(lab):  # noqa: F811
    began_at = time.monotonic()
    await spend(lab.queue, lab, 5)

    counters = [keyspace.spent("key", "k", period) for period in periods()]
    left_ms = [await lab.redis.pttl(key) for key in counters]
    took_ms = (time.monotonic() - began_at) * 1000
    assert [await lab.redis.get(key) for key in counters] == [b"5", b"5"]
    for days, ms in zip((3, 40), left_ms, strict=True):
        assert days * 86_400_000 - took_ms - 1 <= ms <= days * 86_400_000


async def test_what_costs_nothing_makes_no_counter(lab):  # noqa: F811
    await spend(lab.queue, lab, 0)

    assert await lab.redis.exists(keyspace.spent("key", "k", periods()[0])) == 0
