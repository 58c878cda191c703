"""Limits and budgets on real Redis, as two replicas see them at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from cli.dev.embedded_redis import EmbeddedRedis
from common.access.principal import Budget, Limits
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.config.settings import Settings
from common.limits.charges import (
    NO_CHARGES,
    RETRY_AFTER_BUSY_S,
    BudgetAccount,
    Charges,
    LimitReached,
    LimitStatus,
    Settlement,
    Slot,
    Window,
    charges_for_limits,
    limit_headers,
    periods,
    read_limit_statuses,
)
from common.queue.jobs import ClaimedJob, IdempotencyKey, JobClass, JobQueue
from common.redis import keyspace
from common.redis.client import connect
from common.redis.pulse import Pulse

CLIENTS = 50
Ask = Callable[[Charges], Awaitable[str | GatewayError]]


class Replicas:
    """Two API processes' ends of the queue, each with connections of its own, asked in turn."""

    def __init__(self, queues: list[JobQueue], redis: Redis) -> None:
        self.queues, self.redis, self.asked = queues, redis, 0

    def new_name(self) -> str:
        """Of somebody who has not asked for anything yet: examples come again when one fails."""
        return f"name_{self.asked}"

    async def ask(self, charges: Charges = NO_CHARGES) -> str | GatewayError:
        """Return the id of the generation, or the refusal."""
        self.asked += 1
        generation_id = f"gen_{self.asked}"
        queue = self.queues[self.asked % len(self.queues)]
        while True:
            try:
                return (await queue.enqueue(generation_id, "me", JobClass.INTERACTIVE, charges=charges)).id
            except GatewayError as error:
                return error
            except StoreUnavailable as error:
                if "waited too long" not in str(error):
                    raise
                await asyncio.sleep(0.1)  # This process was too busy to read Redis' clock. Nothing was done.

    async def ask_at_once(self, count: int, charges: Charges) -> tuple[list[str], list[GatewayError]]:
        answers = await asyncio.gather(*(self.ask(charges) for _ in range(count)))
        refused = [answer for answer in answers if isinstance(answer, GatewayError)]
        return [answer for answer in answers if isinstance(answer, str)], refused

    async def claim(self, room: int = 16) -> list[ClaimedJob]:
        return (await self.queues[0].claim(room, lapsed_max=0, excluded_ids=())).jobs

    async def finish(self, job: ClaimedJob, settlement: Settlement) -> list[str]:
        return await self.queues[0].finish(job, settlement)


@pytest.fixture
async def replicas(redis: Redis, redis_server: EmbeddedRedis) -> AsyncIterator[Replicas]:
    clients = [connect(redis_server.url), connect(redis_server.url)]
    pulses = [Pulse(client) for client in clients]
    for pulse in pulses:
        await pulse.start()
    await redis.set(keyspace.SPENT_LOADED, "loaded")
    yield Replicas(
        [
            JobQueue(client, pulse, Settings().model_copy(update={"lease_s": 0.2}))
            for client, pulse in zip(clients, pulses, strict=True)
        ],
        redis,
    )
    for pulse, client in zip(pulses, clients, strict=True):
        await pulse.stop()
        await client.aclose()


def windows(limits: Limits, tokens: int = 0, name: str = "k") -> Charges:
    return Charges(*charges_for_limits("key", name, limits, tokens))


def day_budget(usd: str, name: str = "k") -> BudgetAccount:
    return BudgetAccount("key", name, Budget(day_usd=Decimal(usd)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, CLIENTS + 5))
async def test_a_limit_of_n_requests_admits_n_of_fifty_at_once(replicas, limit):
    charges = windows(Limits(requests=limit), name=replicas.new_name())

    admitted, refused = await replicas.ask_at_once(CLIENTS, charges)

    assert len(admitted) == min(limit, CLIENTS)
    assert {error.failed.code for error in refused} <= {"requests_limit"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 20_000), each=st.integers(1, 2_000))
async def test_a_limit_on_tokens_admits_as_many_as_fit(replicas, limit, each):
    charges = windows(Limits(tokens=limit), each, name=replicas.new_name())

    admitted, _ = await replicas.ask_at_once(CLIENTS, charges)

    # One that asks for more than there is at all is let in alone.
    assert len(admitted) == min(max(1, limit // each), CLIENTS)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, CLIENTS + 5))
async def test_a_limit_of_n_at_a_time_admits_n_of_fifty_at_once(replicas, limit):
    charges = Charges(slots=[Slot("key", replicas.new_name(), limit)])

    admitted, refused = await replicas.ask_at_once(CLIENTS, charges)

    assert len(admitted) == min(limit, CLIENTS)
    assert {error.failed.code for error in refused} <= {"concurrency_limit"}
    assert {error.failed.retry_after_s for error in refused} <= {RETRY_AFTER_BUSY_S}


async def test_a_refusal_takes_nothing_of_the_other_limits(replicas):
    charges = Charges([*windows(Limits(requests=100), name="wide").windows], [Slot("key", "narrow", 1)])

    await replicas.ask_at_once(10, charges)

    assert sum(map(int, await replicas.redis.hvals(keyspace.limit("key", "wide", "requests")))) == 1


async def test_what_was_used_is_free_again_when_its_window_has_passed(replicas):
    charges = windows(Limits(requests=2, window_s=1))
    await replicas.ask_at_once(2, charges)
    refused = await replicas.ask(charges)
    assert isinstance(refused, LimitReached)
    assert 0 < refused.failed.retry_after_s <= 1 + 1 / 30

    await asyncio.sleep(refused.failed.retry_after_s)

    assert isinstance(await replicas.ask(charges), str), "Retry-After is exact: no fewer than the limit"


async def test_never_more_than_the_limit_fits_into_any_window(replicas):
    charges = windows(Limits(requests=3, window_s=1))
    loop, admitted_at = asyncio.get_running_loop(), []
    began_at = loop.time()
    while loop.time() < began_at + 2.5:
        before = loop.time()
        if isinstance(await replicas.ask(charges), str):
            admitted_at.append((before, loop.time()))

    assert len(admitted_at) >= 6
    for index, (_, answered_at) in enumerate(admitted_at[:-3]):
        # From the answer of one to the asking of the third behind it is less than between the two decisions.
        assert admitted_at[index + 3][1] - admitted_at[index][0] > 1, answered_at


async def test_tokens_are_settled_by_what_was_used(replicas):
    charges = windows(Limits(tokens=1000), 600)
    await replicas.ask(charges)
    assert isinstance(await replicas.ask(charges), LimitReached)
    (job,) = await replicas.claim()

    await replicas.finish(job, Settlement(tokens=100))

    assert isinstance(await replicas.ask(windows(Limits(tokens=1000), 900)), str)
    assert isinstance(await replicas.ask(windows(Limits(tokens=1000), 1)), LimitReached)


async def test_what_exceeds_the_estimate_counts_too(replicas):
    await replicas.ask(windows(Limits(tokens=1000), 100))
    (job,) = await replicas.claim()

    await replicas.finish(job, Settlement(tokens=950))

    assert isinstance(await replicas.ask(windows(Limits(tokens=1000), 51)), LimitReached)
    assert isinstance(await replicas.ask(windows(Limits(tokens=1000), 50)), str)


async def test_a_job_is_settled_once(replicas):
    await replicas.ask(Charges(windows(Limits(tokens=1000), 600).windows, accounts=[day_budget("1")]))
    (job,) = await replicas.claim()

    for _ in range(3):
        await replicas.finish(job, Settlement(tokens=100, cost_nano_usd=7))

    day, month = periods()
    assert sum(map(int, await replicas.redis.hvals(keyspace.limit("key", "k", "tokens")))) == 100
    assert [int(await replicas.redis.get(keyspace.spent("key", "k", period))) for period in (day, month)] == [7, 7]


async def test_what_is_withdrawn_before_a_worker_had_it_gives_all_of_it_back(replicas):
    charges = Charges(windows(Limits(tokens=1000), 600).windows, [Slot("key", "k", 1)])
    generation_id = await replicas.ask(charges)

    await replicas.queues[1].withdraw(generation_id)

    assert isinstance(await replicas.ask(charges), str)


async def test_a_place_is_free_when_its_generation_ends(replicas):
    charges = Charges(slots=[Slot("key", "k", 1)])
    await replicas.ask(charges)
    (job,) = await replicas.claim()
    assert isinstance(await replicas.ask(charges), LimitReached)

    await replicas.finish(job, Settlement())

    assert isinstance(await replicas.ask(charges), str)


async def test_the_place_of_a_dead_worker_lapses_with_its_lease_and_a_live_one_s_is_kept(replicas):
    charges = Charges(slots=[Slot("key", "k", 2)])
    await replicas.ask_at_once(2, charges)
    dead, alive = await replicas.claim()
    key, queue = keyspace.slots("key", "k"), replicas.queues[0]

    async def slots_in_use() -> int:
        await queue.renew({alive.generation_id: alive.epoch})
        seconds, micros = await replicas.redis.time()
        return await replicas.redis.zcount(key, seconds * 1000 + micros // 1000, "+inf")

    async with asyncio.timeout(120):  # The lease of 0.2 s, and two seconds for another worker to take the job.
        while await slots_in_use() > 1:
            await asyncio.sleep(0.05)

    assert isinstance(await replicas.ask(charges), str)
    assert await replicas.redis.zscore(key, dead.generation_id) is None


async def test_a_job_that_is_handed_back_keeps_its_place(replicas):
    charges = Charges(slots=[Slot("key", "k", 1)])
    await replicas.ask(charges)
    (job,) = await replicas.claim()

    await replicas.queues[0].release(job, is_handover=True)

    assert isinstance(await replicas.ask(charges), LimitReached)


async def test_a_spent_budget_refuses_with_its_own_error(replicas):
    charges = Charges(accounts=[day_budget("0.000001")])
    await replicas.ask(charges)
    (job,) = await replicas.claim()
    await replicas.finish(job, Settlement(cost_nano_usd=1000))

    refused = await replicas.ask(charges)

    assert refused.failed.kind is ErrorKind.BUDGET_EXCEEDED
    assert "Your key's budget for this day is spent" in refused.failed.message
    assert isinstance(await replicas.ask(Charges(accounts=[day_budget("0.000002")])), str), "one with more goes on"


@pytest.mark.parametrize("marker", [None, "loading 5"])
async def test_counters_that_redis_has_lost_are_not_taken_for_unspent(replicas, marker):
    await replicas.redis.delete(keyspace.SPENT_LOADED)
    if marker:
        await replicas.redis.set(keyspace.SPENT_LOADED, marker)
    provider = BudgetAccount("provider", "openai", Budget(day_usd=Decimal(1)))

    for charges in (Charges(accounts=[day_budget("1")]), Charges(alternatives=[provider])):
        refused = await replicas.ask(charges)

        assert refused.failed.kind is ErrorKind.OVERLOADED
        assert refused.failed.code == "budget_unknown"
    no_budget = Charges(windows(Limits(requests=5)).windows, accounts=[BudgetAccount("key", "k", Budget())])
    assert isinstance(await replicas.ask(no_budget), str), "whoever has no budget goes on"


async def test_a_mark_of_a_budget_is_told_by_the_one_that_passes_it(replicas):
    charges = Charges(accounts=[day_budget("0.000001")])
    for _ in range(4):
        await replicas.ask(charges)
    told = [await replicas.finish(job, Settlement(cost_nano_usd=300)) for job in await replicas.claim()]

    day = periods()[0]
    assert told == [[], [], [f"{keyspace.spent('key', 'k', day)} 80"], [f"{keyspace.spent('key', 'k', day)} 100"]]


MOST = 9 * 10**18  # Where a counter stops.


@pytest.mark.parametrize("before", [-(2**63), -1, 2**53 + 1, MOST - 1, MOST, 2**63 - 1])
@pytest.mark.parametrize("cost", [1, 10**15, MOST, 2**63 - 1])
async def test_no_counter_overflows_and_no_budget_opens_again(replicas, before, cost):
    counter = keyspace.spent("key", "k", periods()[0])
    await replicas.ask(Charges(accounts=[BudgetAccount("key", "k", Budget())]))
    await replicas.redis.set(counter, before)
    (job,) = await replicas.claim()

    await replicas.finish(job, Settlement(cost_nano_usd=cost))

    expected = MOST if before < 0 or before + cost >= MOST else before + cost
    assert int(await replicas.redis.get(counter)) == expected
    assert (await replicas.ask(Charges(accounts=[day_budget("0.000001")]))).failed.kind is ErrorKind.BUDGET_EXCEEDED


async def test_sums_are_exact_where_doubles_are_not(replicas):
    for cost in (2**53, 1, 1):
        await replicas.ask(Charges(accounts=[BudgetAccount("key", "k", Budget())]))
        (job,) = await replicas.claim()
        await replicas.finish(job, Settlement(cost_nano_usd=cost))

    assert int(await replicas.redis.get(keyspace.spent("key", "k", periods()[0]))) == 2**53 + 2


async def test_each_provider_is_charged_its_share_and_the_key_all_of_it(replicas):
    shares = [(BudgetAccount("provider", name, Budget()), nano) for name, nano in (("dear", 900), ("cheap", 5))]
    await replicas.ask(Charges(accounts=[BudgetAccount("key", "k", Budget())]))
    (job,) = await replicas.claim()
    await replicas.finish(job, Settlement(cost_nano_usd=905, shares=shares))

    day, month = periods()
    for scope, name, nano in (("key", "k", 905), ("provider", "dear", 900), ("provider", "cheap", 5)):
        for period in (day, month):
            assert int(await replicas.redis.get(keyspace.spent(scope, name, period))) == nano


async def test_one_provider_with_money_is_enough(replicas):
    rich, poor = (BudgetAccount("provider", name, Budget(day_usd=Decimal("0.000001"))) for name in ("rich", "poor"))
    await replicas.ask()
    (job,) = await replicas.claim()
    await replicas.finish(job, Settlement(cost_nano_usd=5000, shares=[(poor, 5000)]))

    assert isinstance(await replicas.ask(Charges(alternatives=[rich, poor])), str)
    refused = await replicas.ask(Charges(alternatives=[poor]))
    assert refused.failed.kind is ErrorKind.BUDGET_EXCEEDED
    assert "poor" in refused.failed.message


@pytest.mark.parametrize(("day_usd", "month_usd"), [("0.000001", "1"), ("1", "0.000001")])
async def test_a_provider_is_out_of_money_if_one_of_its_budgets_is_spent(replicas, day_usd, month_usd):
    budget = Budget(day_usd=Decimal(day_usd), month_usd=Decimal(month_usd))
    poor = BudgetAccount("provider", "poor", budget)
    await replicas.ask()
    (job,) = await replicas.claim()
    await replicas.finish(job, Settlement(cost_nano_usd=5000, shares=[(poor, 5000)]))

    refused = await replicas.ask(Charges(alternatives=[poor]))

    assert refused.failed.kind is ErrorKind.BUDGET_EXCEEDED


async def test_a_retry_takes_nothing(replicas):
    charges = Charges(windows(Limits(requests=1)).windows, [Slot("key", "k", 1)])
    once = IdempotencyKey("me:key", "digest")

    for n in range(3):
        enqueued = await replicas.queues[n % 2].enqueue(f"gen_{n}", "me", JobClass.INTERACTIVE, once, charges=charges)
        assert enqueued.id == "gen_0"


async def test_all_keys_of_limits_expire(replicas):
    charges = Charges(windows(Limits(requests=5, tokens=50), 5).windows, [Slot("key", "k", 5)], [day_budget("1")])
    await replicas.ask(charges)
    (job,) = await replicas.claim()
    await replicas.finish(job, Settlement(tokens=9, cost_nano_usd=9))

    lasting = {key.decode() for key in await replicas.redis.keys("*") if await replicas.redis.ttl(key) == -1}
    assert lasting <= {*keyspace.PERMANENT, keyspace.ENDED}


def test_headers_name_the_limit_of_which_least_is_left():
    wide, narrow = (Window("key", name, "requests", limit, 60, 1) for name, limit in (("a", 100), ("b", 5)))
    found = read_limit_statuses(Charges([wide, narrow]), [40, 30_500, 2, 1_000])

    assert found == [LimitStatus(wide, 40, 30.5), LimitStatus(narrow, 2, 1.0)]
    assert limit_headers(found) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "1s",
    }


def test_days_and_months_are_those_of_utc():
    assert periods(datetime(2026, 2, 28, 23, 59, tzinfo=UTC)) == ("20260228", "202602")
