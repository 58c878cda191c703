"""One bad job stops nothing: on real Redis, jobs whose records are none of ours, and jobs on which workers die."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from common.canonical.errors import StoreUnavailable
from common.config.settings import Settings
from common.ledger import set_aside
from common.queue.jobs import ALIVE_S, ClaimedJob, JobClass, JobQueue, JobStatus
from common.redis import keyspace
from common.redis.client import Client, connect
from common.redis.pulse import Pulse

LEASE_S = 0.05
BROKEN = "the job's record cannot be read"


@pytest.fixture
async def pulse(redis: Redis) -> AsyncIterator[Pulse]:
    pulse = Pulse(redis)
    await pulse.start()
    yield pulse
    await pulse.stop()


@pytest.fixture
def queue(redis: Client, pulse: Pulse) -> JobQueue:
    return JobQueue(redis, pulse, Settings().model_copy(update={"lease_s": LEASE_S}))


async def claim(queue: JobQueue) -> list[ClaimedJob]:
    return (await queue.claim(10, lapsed_max=4, excluded_ids=())).jobs


async def enqueue(queue: JobQueue, *names: str) -> None:
    for name in names:
        await queue.enqueue(name, "a", JobClass.INTERACTIVE)


async def kept(redis: Redis) -> list[set_aside.SetAsideEntry]:
    return [set_aside.unpack(raw) for raw in await redis.lrange(keyspace.UNREADABLE, 0, -1)]


async def is_text(redis: Redis, job: str) -> None:
    await redis.delete(job)
    await redis.set(job, "none of ours")


def without(name: str) -> Callable[[Redis, str], Awaitable[Any]]:
    return lambda redis, job: redis.hdel(job, name)


def with_(name: str, value: str) -> Callable[[Redis, str], Awaitable[Any]]:
    return lambda redis, job: redis.hset(job, name, value)


SPOILS = {
    "it is a text": is_text,
    **{f"it has no {name}": without(name) for name in ("epoch", "enqueued_ms", "claim_by_ms", "class", "tenant")},
    "its epoch is no number": with_("epoch", "soon"),
    "its time is no number": with_("enqueued_ms", "\xff"),
    "its class is unknown": with_("class", "urgent"),
}
STEPS = ("waiting", "lapsed", "delayed")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
async def test_a_job_whose_record_is_none_is_set_aside_and_the_others_go_on(redis, queue, step, spoil):
    await enqueue(queue, "gen_0")
    if step != "waiting":
        (job,) = await claim(queue)
        if step == "delayed":
            await queue.release(job, delay_s=0.01)
        await asyncio.sleep(LEASE_S)
    await spoil(redis, keyspace.JOB + "gen_0")
    await enqueue(queue, "gen_1", "gen_2")

    first = await queue.claim(10, lapsed_max=4, excluded_ids=())

    assert [job.generation_id for job in first.jobs] == ["gen_1", "gen_2"]
    assert list(first.set_aside) == ["gen_0"]
    (entry,) = await kept(redis)
    assert (entry.kind, entry.id, entry.reason) == ("job", "gen_0", BROKEN)
    assert not await redis.exists(keyspace.JOB + "gen_0")
    assert await queue.statuses(["gen_0", "gen_1"]) == [JobStatus.GONE, JobStatus.RUNNING]
    assert [await redis.zscore(place, "gen_0") for place in (keyspace.RUNNING, keyspace.ENQUEUED, keyspace.DELAYED)] == [
        None
    ] * 3
    assert await redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0"]


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
async def test_a_spoilt_job_keeps_no_lease_from_being_renewed_and_no_look_from_an_answer(redis, queue, spoil):
    await enqueue(queue, "gen_0", "gen_1")
    await claim(queue)
    await spoil(redis, keyspace.JOB + "gen_0")
    await asyncio.sleep(LEASE_S)

    lost = await queue.renew({"gen_0": 1, "gen_1": 1})

    assert "gen_1" not in lost
    assert (await queue.statuses(["gen_0", "gen_1"]))[1] is JobStatus.RUNNING
    await queue.withdraw("gen_0")
    assert await queue.statuses(["gen_0"]) == [JobStatus.GONE]
    assert await redis.zscore(keyspace.RUNNING, "gen_0") is None


# Deaths


async def die_on(queue: JobQueue) -> ClaimedJob:
    (job,) = await claim(queue)
    await asyncio.sleep(LEASE_S)
    return job


async def test_each_lapsed_lease_is_a_death(queue):
    await enqueue(queue, "gen_0")

    assert [(await die_on(queue)).deaths for _ in range(4)] == [0, 1, 2, 3]


async def test_whoever_gives_a_job_back_has_not_died_on_it(queue):
    await enqueue(queue, "gen_0")
    for is_handover in (True, False, True):
        (job,) = await claim(queue)
        await queue.release(job, is_handover=is_handover)

    assert (await die_on(queue)).deaths == 0


async def test_a_handler_that_broke_counts_as_a_death(queue):
    await enqueue(queue, "gen_0")
    for _ in range(3):
        (job,) = await claim(queue)
        await queue.release(job, has_failed=True)

    assert (await die_on(queue)).deaths == 3


async def test_a_lease_that_lapsed_with_redis_is_no_death(redis, queue):
    await enqueue(queue, "gen_0")
    for _ in range(4):
        await die_on(queue)
        await redis.hset(keyspace.JOB + "gen_0", "reign", "another master's")

    job = await die_on(queue)

    assert job.deaths == 0
    assert job.is_handover  # Nor does the log count it as a claim that got nowhere.


async def test_a_job_of_the_version_before_can_be_claimed(redis, queue):
    await enqueue(queue, "gen_0")
    await die_on(queue)
    await redis.hdel(keyspace.JOB + "gen_0", "deaths")  # It knows no such field.

    assert [(await die_on(queue)).deaths for _ in range(2)] == [1, 2]


# What is dropped


@pytest.mark.parametrize("with_record", [False, True])
async def test_a_job_that_is_dropped_is_gone_with_its_places_and_is_kept_once(redis, queue, with_record):
    await enqueue(queue, "gen_0")
    await redis.hset(keyspace.JOB + "gen_0", mapping={"slots": "sluice:q:slots:key:a", "reserved": "not what it was"})
    await redis.zadd("sluice:q:slots:key:a", {"gen_0": 9e15})
    await redis.hset(keyspace.record("gen_0"), mapping={"end": "{}"})
    (job,) = await claim(queue)

    await queue.drop(job, "why", with_record=with_record)

    assert await queue.statuses(["gen_0"]) == [JobStatus.GONE]
    assert not await redis.exists(keyspace.JOB + "gen_0", "sluice:q:slots:key:a")
    assert await redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0"]
    if with_record:  # The ledger's collector sets it aside.
        assert await redis.hget(keyspace.record("gen_0"), "set_aside") == b"why"
        assert await kept(redis) == []
    else:
        assert [(entry.id, entry.reason) for entry in await kept(redis)] == [("gen_0", "why")]
        assert (await kept(redis))[0].record["reserved"] == "not what it was"


async def test_a_job_that_is_another_s_by_now_is_not_dropped(queue):
    await enqueue(queue, "gen_0")
    first = await die_on(queue)
    (second,) = await claim(queue)

    await queue.drop(first, "why", with_record=True)

    assert await queue.statuses(["gen_0"]) == [JobStatus.RUNNING]
    assert second.epoch == 2


# Who is alive


async def test_the_pulse_reads_how_many_workers_take_jobs(redis, pulse, queue):
    counts = []
    for worker, takes_jobs in (("one", True), ("two", True), ("one", True), ("one", False), ("two", False)):
        await queue.report_alive(worker, takes_jobs=takes_jobs)
        await pulse.beat()
        counts.append(queue.workers_alive)

    assert counts == [1, 2, 2, 1, 0]


async def test_a_worker_that_has_not_spoken_for_long_is_not_counted(redis, pulse, queue):
    await queue.report_alive("one", takes_jobs=True)
    await redis.zadd(keyspace.WORKERS, {"dead": pulse.redis_ms - ALIVE_S * 1000 - 1})
    await pulse.beat()

    assert queue.workers_alive == 1
    assert 0 < await redis.pttl(keyspace.WORKERS) <= ALIVE_S * 1000
    await queue.report_alive("one", takes_jobs=True)
    assert await redis.zrange(keyspace.WORKERS, 0, -1) == [b"one 2000"]


async def test_a_worker_of_the_version_before_is_known_by_its_books(redis, pulse, queue):
    await redis.set(keyspace.BOOKKEEPER, "somebody")
    await pulse.beat()

    assert queue.workers_alive == 1


# What Redis ends half-way

WRITES = ("hset", "zadd", "zrem", "hdel", "lpop", "rpush", "lpush", "incr", "hincrby")


@pytest.mark.parametrize("command", WRITES)
@pytest.mark.parametrize("step", ["claim", "release", "delay"])
async def test_a_job_is_not_lost_where_redis_refuses_a_part_of_a_step(redis, pulse, redis_server, command, step):
    await redis.execute_command("ACL", "SETUSER", "queue", "reset", "on", ">pw", "~*", "allchannels", "+@all")
    client = connect(redis_server.url.replace("unix://", "unix://queue:pw@"))
    queue = JobQueue(client, pulse, Settings().model_copy(update={"lease_s": LEASE_S}))
    try:
        await enqueue(queue, "gen_0", "gen_1")
        jobs = await claim(queue) if step != "claim" else []
        await redis.execute_command("ACL", "SETUSER", "queue", f"-{command}")
        with contextlib.suppress(StoreUnavailable):
            if step == "claim":
                await claim(queue)
            else:
                await queue.release(jobs[0], delay_s=0.01 if step == "delay" else 0, has_failed=True)
        await redis.execute_command("ACL", "SETUSER", "queue", f"+{command}")

        found: set[str] = set()
        async with asyncio.timeout(10):
            while found != {"gen_0", "gen_1"}:
                await asyncio.sleep(LEASE_S)
                found |= {job.generation_id for job in await claim(queue)}
    finally:
        await client.aclose()
        await redis.execute_command("ACL", "DELUSER", "queue")
    assert await kept(redis) == []


@pytest.mark.parametrize("with_record", [False, True])
async def test_a_job_whose_record_is_none_can_be_dropped(queue, redis, with_record: bool):
    await enqueue(queue, "gen_0")
    (job,) = await claim(queue)
    await is_text(redis, keyspace.JOB + "gen_0")
    await redis.hset(keyspace.record("gen_0"), "end", "{}")

    await queue.drop(job, "it cannot be settled", with_record=with_record)

    assert await queue.statuses(["gen_0"]) == [JobStatus.GONE]
    assert await redis.zscore(keyspace.RUNNING, "gen_0") is None
    assert await redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0"]
    reasons = [entry.reason for entry in await kept(redis)]
    assert reasons == ([] if with_record else ["it cannot be settled"])
    assert (await redis.hget(keyspace.record("gen_0"), "set_aside") is not None) == with_record


@pytest.mark.parametrize("value", ["none of ours", "0", ""])
async def test_a_job_that_says_nothing_of_its_release_was_not_handed_over(queue, redis, value: str):
    await enqueue(queue, "gen_0")
    await redis.hset(keyspace.JOB + "gen_0", "handover", value)

    (job,) = await claim(queue)

    assert (job.is_handover, job.was_postponed) == (False, False)


async def test_a_lapsed_lease_without_a_job_is_forgotten(queue, redis):
    await enqueue(queue, "gen_0")
    await claim(queue)
    await redis.delete(keyspace.JOB + "gen_0")
    await redis.zadd(keyspace.RUNNING, {"gen_0": 1})

    assert await claim(queue) == []

    assert await redis.zscore(keyspace.RUNNING, "gen_0") is None
    assert await redis.lrange(keyspace.UNREADABLE, 0, -1) == []
