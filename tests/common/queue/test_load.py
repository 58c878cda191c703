"""How long would an interactive job wait that came now? What the queue holds is read on a real Redis."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from common.canonical.errors import StoreUnavailable
from common.config.settings import Settings
from common.queue.jobs import ALIVE_S, JobClass, JobQueue
from common.queue.load import RATE_JOBS, SLOTS_DEFAULT, QueueLoad, Reading, parse_reading
from common.redis import keyspace
from common.redis.pulse import Pulse


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[JobQueue]:
    pulse = Pulse(redis)
    await pulse.start()
    yield JobQueue(redis, pulse, Settings(worker_slots=8))
    await pulse.stop()


async def enqueue(queue: JobQueue, tenant: str, count: int, job_class: JobClass = JobClass.INTERACTIVE) -> None:
    for number in range(count):
        await queue.enqueue(f"gen_{tenant}_{job_class}_{number}", tenant, job_class)


async def read(queue: JobQueue, tenants_max: int = 10) -> Reading:
    return parse_reading(await queue.load(tenants_max))


def test_before_the_first_reading_nothing_is_known(queue):
    load = QueueLoad(queue)

    assert (load.has_free_slots, load.reading, load.wait_s("a")) == (False, Reading(0), 0)


async def test_interactive_jobs_are_counted_by_tenant_and_running_ones_beside_the_slots_there_are(redis, queue):
    await enqueue(queue, "loud", 5)
    await enqueue(queue, "quiet", 1)
    await enqueue(queue, "later", 3, JobClass.BACKGROUND)
    await queue.report_alive("one", takes_jobs=True)
    await queue.report_alive("gone", takes_jobs=True)
    await queue.report_alive("gone", takes_jobs=False)
    await redis.zadd(keyspace.WORKERS, {"of-before": (await read(queue)).at_ms})
    claimed = await queue.claim(2, lapsed_max=0, excluded_ids=())

    found = await read(queue)

    assert len(claimed.jobs) == 2
    assert (found.waiting, found.tenants, found.by_tenant) == (4, 1, {"loud": 4})
    assert (found.running, found.slots) == (2, 8 + SLOTS_DEFAULT)
    assert found.drained == 2


async def test_a_worker_counts_for_as_long_as_its_report_is_valid(redis, queue):
    at_ms = (await read(queue)).at_ms
    await redis.zadd(keyspace.WORKERS, {"a 8": at_ms - ALIVE_S * 1000 + 2000, "b 8": at_ms - ALIVE_S * 1000 - 1})

    assert (await read(queue)).slots == 8


async def test_who_gives_up_in_line_does_not_make_it_look_faster(queue):
    await enqueue(queue, "loud", 5)
    await queue.claim(1, lapsed_max=0, excluded_ids=())
    for number in range(5):  # One of them is with a worker.
        await queue.withdraw(f"gen_loud_{JobClass.INTERACTIVE}_{number}")

    found = await read(queue)

    assert (found.waiting, found.running, found.drained) == (0, 0, 1)


async def test_of_very_many_tenants_some_are_looked_at_and_the_others_taken_to_be_like_them(queue):
    for number in range(6):
        await enqueue(queue, f"tenant{number}", 2)

    found = await read(queue, tenants_max=3)

    assert (len(found.by_tenant), found.tenants, found.waiting) == (3, 6, 12)


async def test_it_is_read_again_and_again(queue):
    load = QueueLoad(queue)
    load.start()
    await enqueue(queue, "a", 3)
    async with asyncio.timeout(30):
        while load.reading.waiting != 3:
            await asyncio.sleep(0.01)
    await load.stop()


# The rate


def reading(at_s: float, drained: int, *, running: int = 20, **waiting: int) -> Reading:
    return Reading(int(at_s * 1000), drained, sum(waiting.values()), len(waiting), waiting, running, slots=20)


@pytest.fixture
def load() -> QueueLoad:
    return QueueLoad(None)  # type: ignore[arg-type]  # It is told, and asks nobody.


def test_what_waits_is_divided_by_how_fast_it_is_taken(load):
    load.record(reading(0, 0, a=300))
    load.record(reading(1, 50, a=300))

    assert load.wait_s("a") == 6


def test_a_moment_in_which_nothing_was_taken_belongs_to_the_rate(load):
    for second, drained in enumerate((0, 50, 50)):
        load.record(reading(second, drained, a=300))

    assert load.wait_s("a") == 12


@pytest.mark.parametrize(("at_s", "drained"), [(1, 60), (0.5, 60), (2, 49)])
def test_a_reading_that_goes_back_begins_the_rate_anew(load, at_s, drained):
    load.record(reading(0, 0, a=300))
    load.record(reading(1, 50, a=300))

    load.record(reading(at_s, drained, a=300))

    assert load.wait_s("a") is None


def test_whoever_has_nothing_in_line_waits_for_a_turn_of_the_others(load):
    load.record(reading(0, 0, loud=300, quiet=2))
    load.record(reading(1, 50, loud=300, quiet=2))

    assert load.wait_s("loud") == pytest.approx(302 / 50)
    assert load.wait_s("quiet") == pytest.approx(3 * 2 / 50)
    assert load.wait_s("new") == pytest.approx(2 / 50)


def test_the_rate_is_of_the_last_moments_as_far_as_they_tell_one(load):
    for second in range(10):
        load.record(reading(second, 2 * second, a=100))
    slow = load.wait_s("a")
    load.record(reading(10, 18 + 10 * RATE_JOBS, a=100))

    assert slow == pytest.approx(100 / 2)
    assert load.wait_s("a") == pytest.approx(100 / (10 * RATE_JOBS))


def test_where_nothing_is_taken_or_redis_is_another_one_nobody_knows(load):
    assert load.wait_s("a") == 0
    load.record(reading(0, 5, a=3))
    assert load.wait_s("a") is None
    load.record(reading(1, 5, a=3))
    assert load.wait_s("a") is None
    load.record(reading(2, 0, a=3))
    assert load.wait_s("a") is None


def test_while_no_worker_lives_nobody_knows(load):
    load.record(reading(0, 0, a=300))
    load.record(reading(1, 50, a=300))
    load.record(Reading(2000, 50, 300, 1, {"a": 300}, running=0, slots=0))

    assert load.wait_s("a") is None


def test_slots_are_free_where_two_readings_say_so(load):
    seen = []
    for number, running in enumerate([20, 2, 2, 19, 2]):
        load.record(reading(number, 0, running=running))
        seen.append(load.has_free_slots)

    assert seen == [False, False, True, False, False]


@pytest.mark.parametrize(("running", "has_free"), [(5, True), (6, False)])
def test_a_quarter_of_the_slots_is_free_or_it_is_none(running, has_free):
    assert Reading(0, running=running, slots=8).has_free_slots is has_free


def test_what_is_forgotten_is_known_no_more(load):
    for second in (0, 1):
        load.record(reading(second, 50 * second, a=300))
    assert load.wait_s("a") == 6

    load.forget()

    assert (load.wait_s("a"), load.has_free_slots, load.reading) == (0, False, Reading(0))
    load.record(reading(2, 100, a=300))
    assert load.wait_s("a") is None


def test_a_reading_of_the_same_moment_is_of_another_redis(load):
    load.record(reading(0, 0, a=300))
    load.record(reading(1, 50, a=300))
    load.record(reading(1, 60, a=300))

    assert load.wait_s("a") is None


def test_nobody_waits_for_more_jobs_than_there_are(load):
    load.record(reading(0, 0, a=30, b=2, c=1))
    load.record(reading(1, 10, a=30, b=2, c=1))

    assert load.wait_s("a") == pytest.approx(33 / 10)
    assert load.wait_s("b") == pytest.approx(9 / 10)


async def test_while_the_store_is_away_nobody_knows(monkeypatch):
    class Queue:
        is_away = False

        async def load(self, tenants_max: int) -> list:
            if self.is_away:
                raise StoreUnavailable("away")
            return [1000, 9, 4, 0, 1, [b"a", 4], [b"w 8"]]

    monkeypatch.setattr("common.queue.load.READ_INTERVAL_S", 0.001)
    queue = Queue()
    load = QueueLoad(queue)  # type: ignore[arg-type]
    load.start()
    async with asyncio.timeout(60):
        while load.reading.waiting != 4:
            await asyncio.sleep(0.001)
        queue.is_away = True
        while load.reading != Reading(0):
            await asyncio.sleep(0.001)
    await load.stop()
