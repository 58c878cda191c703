"""What the queue does at the very millisecond at which something is due, and one before. The test sets Redis' clock."""

from typing import Any

import pytest
from redis.asyncio import Redis

from common.access.principal import Budget
from common.canonical.errors import GatewayError, StoreUnavailable
from common.config.settings import Settings
from common.limits.charges import BudgetAccount, Charges, Settlement, Slot, Window
from common.queue.jobs import ALIVE_S, ClaimedJob, IdempotencyKey, JobClass, JobQueue, JobStatus
from common.queue.load import parse_reading
from common.redis import keyspace
from tests.support.servers.redis_clock import RedisClock

T = 1_800_000_000_000
LEASE, WAIT, STALE, SLOT_EXTRA = 6_000, 60_000, 3_000, 2_000
SLOT, WINDOW = Slot("key", "k", 1), Window("key", "k", "requests", 2, 60, 1)


class Pulse:
    """A pulse that saw Redis' time ``redis_ms`` last."""

    is_up = True

    def __init__(self) -> None:
        self.redis_ms = T

    def healthy_s(self) -> float:
        return 1_000.0

    def watch(self, *_: Any) -> None:
        pass


class Lab:
    def __init__(self, redis: Redis, clock: RedisClock) -> None:
        self.redis, self.clock, self.pulse = redis, clock, Pulse()
        settings = Settings().model_copy(update={"lease_s": LEASE / 1000, "queue_wait_s": WAIT / 1000})
        self.queue = JobQueue(redis, self.pulse, settings)  # type: ignore[arg-type]

    async def at(self, ms: int, *, seen_at: int | None = None) -> None:
        """Let it be ``ms`` after T. The pulse saw it then, or at ``seen_at``."""
        await self.clock.set(T + ms)
        self.pulse.redis_ms = T + (ms if seen_at is None else seen_at)

    async def enqueue(self, *names: str, **more: Any) -> None:
        for name in names:
            await self.queue.enqueue(name, "a", JobClass.INTERACTIVE, **more)

    async def claim(self, lapsed_max: int = 0) -> list[ClaimedJob]:
        return (await self.queue.claim(10, lapsed_max=lapsed_max, excluded_ids=())).jobs

    async def claim_one(self) -> ClaimedJob:
        (job,) = (await self.queue.claim(1, lapsed_max=0, excluded_ids=())).jobs
        return job

    async def status(self) -> JobStatus:
        (status,) = await self.queue.statuses(["gen_0"])
        return status


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Lab:
    lab = Lab(redis, RedisClock(redis, monkeypatch, tmp_path))
    await lab.at(0)
    return lab


@pytest.mark.parametrize(("late_ms", "count"), [(STALE, 1), (STALE + 1, 0)])
async def test_a_command_that_was_on_its_way_for_too_long_does_nothing(lab, late_ms, count):
    await lab.enqueue("gen_0")
    await lab.at(late_ms, seen_at=0)

    if not count:
        with pytest.raises(StoreUnavailable):
            await lab.enqueue("gen_1")
    assert len(await lab.claim()) == count


@pytest.mark.parametrize(
    ("ms", "status", "count"),
    [
        (LEASE - 1, JobStatus.RUNNING, 0),
        (LEASE, JobStatus.LAPSED, 1),
        (LEASE + WAIT, JobStatus.LAPSED, 1),
        (LEASE + WAIT + 1, JobStatus.ABANDONED, 1),
    ],
)
async def test_a_lease_lapses_at_its_moment(lab, ms, status, count):
    await lab.enqueue("gen_0")
    (first,) = await lab.claim()
    await lab.at(ms)

    assert await lab.status() is status
    result = await lab.queue.claim(10, lapsed_max=0, excluded_ids=())
    assert (result.jobs, result.lapsed_left) == ([], count)
    again = await lab.claim(lapsed_max=4)
    assert [(job.epoch, job.was_lapsed, job.deaths) for job in again] == [(2, True, 1)] * count
    assert (first.was_lapsed, first.deaths) == (False, 0)


async def test_a_renewed_lease_lapses_a_lease_later(lab):
    await lab.enqueue("gen_0")
    await lab.claim()
    await lab.at(2_000)
    assert await lab.queue.renew({"gen_0": 1}) == []

    await lab.at(2_000 + LEASE - 1)
    assert await lab.status() is JobStatus.RUNNING
    await lab.at(2_000 + LEASE)
    assert await lab.status() is JobStatus.LAPSED


@pytest.mark.parametrize(("ms", "status", "is_late"), [(WAIT, JobStatus.WAITING, False), (WAIT + 1, JobStatus.LATE, True)])
async def test_a_job_is_late_when_its_wait_is_over(lab, ms, status, is_late):
    await lab.enqueue("gen_0")
    await lab.at(ms)

    assert await lab.status() is status
    (job,) = await lab.claim()
    assert (job.is_late, job.waited_ms) == (is_late, ms)


@pytest.mark.parametrize("delay_ms", [1, 250])
async def test_a_delayed_job_is_there_at_its_moment(lab, delay_ms):
    await lab.enqueue("gen_0")
    (job,) = await lab.claim()
    await lab.queue.release(job, delay_s=delay_ms / 1000)

    await lab.at(delay_ms - 1)
    assert await lab.claim() == []
    await lab.at(delay_ms)
    (again,) = await lab.claim()
    assert (again.epoch, again.is_handover, again.was_postponed, again.deaths) == (2, False, False, 0)


async def test_a_job_without_delay_is_first_in_line_at_once(lab):
    await lab.enqueue("gen_0", "gen_1")
    first, second = await lab.claim()
    await lab.enqueue("gen_2")
    await lab.queue.release(second)
    await lab.queue.release(first, has_failed=True)

    again = await lab.claim()

    assert [(job.generation_id, job.deaths) for job in again] == [("gen_1", 0), ("gen_0", 1), ("gen_2", 0)]


@pytest.mark.parametrize(("ms", "is_free"), [(LEASE + SLOT_EXTRA - 1, False), (LEASE + SLOT_EXTRA, True)])
async def test_a_concurrency_slot_is_free_a_little_after_its_lease(lab, ms, is_free):
    await lab.enqueue("gen_0", charges=Charges(slots=[SLOT]))
    await lab.claim()
    await lab.at(int(ms))

    if is_free:
        await lab.enqueue("gen_1", charges=Charges(slots=[SLOT]))
    else:
        with pytest.raises(GatewayError, match="1 generation at a time"):
            await lab.enqueue("gen_1", charges=Charges(slots=[SLOT]))


@pytest.mark.parametrize(("ms", "is_free"), [(WAIT - 1, False), (WAIT, True)])
async def test_a_waiting_job_s_concurrency_slot_is_free_when_its_wait_is_over(lab, ms, is_free):
    await lab.enqueue("gen_0", charges=Charges(slots=[SLOT]))
    await lab.at(ms)

    if is_free:
        await lab.enqueue("gen_1", charges=Charges(slots=[SLOT]))
    else:
        with pytest.raises(GatewayError):
            await lab.enqueue("gen_1", charges=Charges(slots=[SLOT]))


async def test_a_released_job_s_slot_is_kept_for_as_long_as_it_may_wait_again(lab):
    await lab.enqueue("gen_0", charges=Charges(slots=[SLOT]))
    (job,) = await lab.claim()
    await lab.at(1_000)
    await lab.queue.release(job)

    assert await lab.redis.zscore(keyspace.slots("key", "k"), "gen_0") == T + 1_000 + WAIT


@pytest.mark.parametrize(("ms", "slots"), [(ALIVE_S * 1000, 8), (ALIVE_S * 1000 + 1, 0)])
async def test_a_worker_counts_for_as_long_as_its_report_is_valid(lab, ms, slots):
    lab.queue._settings = Settings(worker_slots=8)
    await lab.queue.report_alive("one", takes_jobs=True)
    await lab.at(int(ms))

    assert parse_reading(await lab.queue.load(10)).slots == slots


async def test_reports_that_are_no_longer_valid_are_removed_with_the_next_one(lab):
    for ms, name in ((0, "first"), (1, "second"), (int(ALIVE_S * 1000), "third")):
        await lab.at(ms)
        await lab.queue.report_alive(name, takes_jobs=True)

    workers = await lab.redis.zrange(keyspace.WORKERS, 0, -1, withscores=True)
    assert [(name.split()[0], score) for name, score in workers] == [(b"second", T + 1), (b"third", T + ALIVE_S * 1000)]


async def test_a_budget_is_spent_at_its_limit(lab):
    await lab.redis.set(keyspace.SPENT_LOADED, "loaded")
    account = BudgetAccount("key", "k", Budget(day_usd="0.000001"))
    for cost, is_spent in ((999, False), (1, True)):
        await lab.enqueue("gen_0", charges=Charges(accounts=[account]))
        (job,) = await lab.claim()
        await lab.queue.finish(job, Settlement(cost_nano_usd=cost))
        if is_spent:
            with pytest.raises(GatewayError, match="budget"):
                await lab.enqueue("gen_1", charges=Charges(accounts=[account]))


async def test_the_keys_have_the_names_that_other_versions_know(lab):
    charges = Charges([WINDOW], [SLOT], [BudgetAccount("key", "k", Budget(day_usd="1"))])
    await lab.redis.set(keyspace.SPENT_LOADED, "loaded")
    await lab.queue.enqueue("gen_0", "owner", JobClass.BACKGROUND, IdempotencyKey("k", "d"), tenant="t", charges=charges)
    waiting = set(await lab.redis.keys(f"{keyspace.QUEUE_PREFIX}*")) - {keyspace.SPENT_LOADED.encode()}
    (job,) = await lab.claim()
    claimed = set(await lab.redis.keys(f"{keyspace.QUEUE_PREFIX}*"))
    await lab.queue.release(job, delay_s=1)
    delayed = set(await lab.redis.keys(f"{keyspace.QUEUE_PREFIX}*"))

    names = ("bell:background", "enqueued", "job:gen_0", "once:k", "recent:owner", "rotation:background", "turn")
    others = {keyspace.slots("key", "k"), keyspace.limit("key", "k", "requests"), "sluice:q:waiting:background:t"}
    assert waiting == {name.encode() for name in {*others, *(keyspace.QUEUE_PREFIX + name for name in names)}}
    assert keyspace.RUNNING.encode() in claimed
    assert keyspace.DELAYED.encode() in delayed


async def test_a_window_holds_its_limit_and_no_more(lab):
    await lab.enqueue("gen_0", "gen_1", charges=Charges(windows=[WINDOW]))

    with pytest.raises(GatewayError) as refused:
        await lab.enqueue("gen_2", charges=Charges(windows=[WINDOW]))

    assert 0 < refused.value.failed.retry_after_s <= 61
    assert await lab.queue.statuses(["gen_2"]) == [JobStatus.GONE]
