"""What is kept of a job that no worker can process, for how long, and how many of them. The test sets Redis' clock."""

import time

import pytest

from common.ledger import set_aside
from common.redis import keyspace
from tests.common.queue.test_moments import Lab, T, lab  # noqa: F401 - a fixture.


async def set_one_aside(lab: Lab, name: str = "gen_0") -> None:  # noqa: F811
    """Let a claim find a job whose record cannot be read."""
    await lab.enqueue(name)
    await lab.redis.hset(keyspace.JOB + name, "class", "unknown")
    assert await lab.claim() == []


async def entries(lab: Lab) -> list[set_aside.SetAsideEntry]:  # noqa: F811
    return [set_aside.unpack(raw) for raw in await lab.redis.lrange(keyspace.UNREADABLE, 0, -1)]


async def test_the_whole_record_is_kept_with_its_moment_and_what_is_wrong(lab):  # noqa: F811
    await lab.at(7)
    await set_one_aside(lab)

    (entry,) = await entries(lab)
    assert (entry.kind, entry.id, entry.reason, entry.at_ms) == ("job", "gen_0", "the job's record cannot be read", T + 7)
    assert (entry.record["tenant"], entry.record["class"], entry.record["epoch"]) == ("a", "unknown", "0")
    assert b'"format":1' in entry.raw
    assert len(entry.record) >= 8


async def test_what_is_no_record_at_all_leaves_an_entry_without_one(lab):  # noqa: F811
    await lab.enqueue("gen_0")
    await lab.redis.delete(keyspace.JOB + "gen_0")
    await lab.redis.set(keyspace.JOB + "gen_0", "none of ours")

    assert await lab.claim() == []

    (entry,) = await entries(lab)
    assert (entry.id, entry.record) == ("gen_0", {})


async def test_the_newest_are_kept_up_to_the_same_number_and_for_the_same_time_as_the_ledger_s_records(lab):  # noqa: F811
    await lab.redis.lpush(keyspace.UNREADABLE, *[b"{}"] * set_aside.ENTRIES_MAX)
    began_at = time.monotonic()
    await set_one_aside(lab)
    left_ms = await lab.redis.pttl(keyspace.UNREADABLE)
    took_ms = (time.monotonic() - began_at) * 1000

    assert await lab.redis.llen(keyspace.UNREADABLE) == set_aside.ENTRIES_MAX
    assert set_aside.unpack(await lab.redis.lindex(keyspace.UNREADABLE, 0)).id == "gen_0"
    assert set_aside.RETENTION_S * 1000 - took_ms - 1 <= left_ms <= set_aside.RETENTION_S * 1000


@pytest.mark.parametrize("place", ["waiting", "running", "delayed"])
async def test_it_is_in_no_place_of_the_queue_any_more_and_the_others_still_are(lab, place):  # noqa: F811
    await lab.enqueue("gen_0", "gen_1")
    if place != "waiting":
        for job in await lab.claim():
            if place == "delayed":
                await lab.queue.release(job, delay_s=1)
    await lab.redis.hset(keyspace.JOB + "gen_0", "class", "unknown")
    await lab.at(6_000)

    assert [job.generation_id for job in await lab.claim(lapsed_max=4)] == ["gen_1"]

    assert await lab.redis.zrange(keyspace.RUNNING, 0, -1) == [b"gen_1"]
    assert [await lab.redis.zcard(key) for key in (keyspace.ENQUEUED, keyspace.DELAYED)] == [0, 0]
    assert await lab.redis.exists(keyspace.JOB + "gen_0") == 0
    assert await lab.redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_0"]
