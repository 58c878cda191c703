"""The rules for requests that share a job, and for those that the cache answers, on real Redis."""

import orjson
import pytest

from common.access.principal import Limits
from common.canonical.errors import GatewayError
from common.canonical.job import Policy
from common.channel.base import Claim, Opening
from common.channel.redis import RedisChannel
from common.config.settings import Settings
from common.limits.charges import Charges, Settlement, charges_for_limits
from common.queue.jobs import CachedAnswer, IdempotencyKey, JobClass, Sharing
from common.records.end import End, pack_failure
from common.redis import keyspace
from tests.common.queue.test_jobs import claim, make_queue, names, pulse, queue  # noqa: F401 - Fixtures.

FLIGHT = keyspace.flight("key", "stop:0:interactive")


@pytest.fixture
def channel(redis) -> RedisChannel:
    return RedisChannel(redis, tombstone_s=60)


async def send(queue, channel, number, *, charges=None, key=None, owner="a", has_read_again=False):  # noqa: F811
    """Send the same request once more, and return what became of it."""
    log_id, own_id = f"gen_log{number}", f"gen_own{number}"
    opening = Opening("", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b"")
    await channel.open(log_id, opening, "r")
    await channel.follow(own_id, log_id, opening)
    sharing = Sharing(FLIGHT, own_id, b"summary%d" % number, has_read_again=has_read_again)
    limits = {"charges": charges} if charges else {}
    return await queue.enqueue(log_id, owner, JobClass.INTERACTIVE, key, sharing=sharing, **limits)


async def end(channel, log_id, data):
    claimed = Claim(log_id, 9, "t")
    await channel.fence(claimed, is_handover=False)
    if data is not None:
        await channel._scripts.run("end_unowned", keys_of(log_id), ["t", data])


def keys_of(log_id):
    return [
        f"{{{log_id}}}:{name}" for name in ("state", "log", "live", "viewers", "request", "tombstone", "record", "followers")
    ]


async def test_one_job_for_all_that_come_while_it_runs(queue, channel, redis):  # noqa: F811
    first, second = await send(queue, channel, 1), await send(queue, channel, 2)
    jobs = await claim(queue)
    third = await send(queue, channel, 3)

    assert [(one.id, one.log_id) for one in (first, second, third)] == [
        ("gen_own1", ""),
        ("gen_own2", "gen_log1"),
        ("gen_own3", "gen_log1"),
    ]
    assert names(jobs) == ["gen_log1"]
    assert names(await claim(queue)) == []
    followers = await redis.hgetall("{gen_log1}:followers")
    assert followers == {b"gen_own%d" % n: b"summary%d" % n for n in (1, 2, 3)}
    assert await redis.hget(keyspace.state("gen_own2"), "source") == b"gen_log1"


async def test_a_job_that_is_over_is_joined_by_nobody(queue, channel):  # noqa: F811
    await send(queue, channel, 1)
    (job,) = await claim(queue)
    await end(channel, "gen_log1", End().pack())
    assert (await send(queue, channel, 2)).log_id == "gen_log1", "its answer is not in the cache yet"

    await queue.finish(job)

    assert (await send(queue, channel, 3)).log_id == ""


async def test_who_read_the_cache_before_the_answer_and_came_after_the_job_reads_it_again(queue, channel):  # noqa: F811
    await send(queue, channel, 1)
    (job,) = await claim(queue)
    await end(channel, "gen_log1", End().pack())
    await queue.finish(job, Settlement(is_cached=True))

    late = await send(queue, channel, 2)
    assert (late.is_cached, late.id) == (True, "gen_own2")
    assert names(await claim(queue)) == []
    # Its answer may have been removed since: then one of them leads, and the others join it.
    again, other = [await send(queue, channel, number, has_read_again=True) for number in (2, 3)]
    assert [(each.is_cached, each.log_id) for each in (again, other)] == [(False, ""), (False, "gen_log2")]
    assert (await send(queue, channel, 4)).log_id == "gen_log2"


@pytest.mark.parametrize("how", ["failed", "stopped", "left", "gone", "withdrawn", "collected"])
async def test_a_job_without_an_answer_to_come_is_joined_by_nobody(queue, channel, redis, how):  # noqa: F811
    from common.canonical.errors import ErrorKind, Failed

    await send(queue, channel, 1)
    match how:
        case "failed":
            await end(channel, "gen_log1", pack_failure(Failed(ErrorKind.INTERNAL, "no")))
        case "stopped":
            await channel.stop("gen_log1")
        case "left":
            await channel.leave("gen_log1", "r")
        case "gone":
            await channel.discard("gen_log1")
        case "withdrawn":
            await queue.withdraw("gen_log1")
        case "collected":
            await end(channel, "gen_log1", End().pack())
            await redis.delete(keyspace.record("gen_log1"))

    assert (await send(queue, channel, 2)).log_id == ""
    assert (await send(queue, channel, 3)).log_id == "gen_log2", "and the next one leads"


async def test_limits_count_for_all_but_tokens_only_once(queue, channel):  # noqa: F811
    windows, slots = charges_for_limits("key", "k", Limits(requests=2, tokens=100, concurrent=9), 60)
    charges = Charges(windows, slots)
    await send(queue, channel, 1, charges=charges)
    joined = await send(queue, channel, 2, charges=charges)

    assert joined.log_id == "gen_log1"
    assert [status.remaining for status in joined.limit_statuses] == [0, 40]
    with pytest.raises(GatewayError) as refused:
        await send(queue, channel, 3, charges=charges)
    assert refused.value.failed.code == "requests_limit"


async def test_a_slot_is_held_while_the_answer_is_read(queue, channel):  # noqa: F811
    _, slots = charges_for_limits("key", "k", Limits(concurrent=2), 1)
    charges = Charges((), slots)
    await send(queue, channel, 1, charges=charges)
    await send(queue, channel, 2, charges=charges)
    with pytest.raises(GatewayError) as refused:
        await send(queue, channel, 3, charges=charges)
    assert refused.value.failed.code == "concurrency_limit"

    await queue.free_slots("gen_own2", charges)

    assert (await send(queue, channel, 4, charges=charges)).log_id == "gen_log1"


@pytest.mark.parametrize("ends", ["finished", "dropped", "withdrawn"])
async def test_a_slot_is_freed_with_the_job_though_the_api_that_served_it_is_gone(queue, channel, redis, ends: str):  # noqa: F811
    _, slots = charges_for_limits("key", "k", Limits(concurrent=3), 1)
    charges = Charges((), slots)
    for number in (1, 2, 3):
        await send(queue, channel, number, charges=charges)
    name = keyspace.slots("key", "k")
    assert await redis.zcard(name) == 3

    jobs = await claim(queue) if ends != "withdrawn" else []
    match ends:
        case "finished":
            await queue.finish(jobs[0])
        case "dropped":
            await queue.drop(jobs[0], "unreadable", with_record=False)
        case "withdrawn":
            await queue.withdraw("gen_log1")

    assert await redis.zcard(name) == 0
    assert await redis.keys("sluice:q:sharers:*") == []


async def test_the_slot_of_one_that_joined_counts_for_as_long_as_the_job_may_last(queue, channel, redis):  # noqa: F811
    _, slots = charges_for_limits("key", "k", Limits(concurrent=3), 1)
    for number in (1, 2):
        await send(queue, channel, number, charges=Charges((), slots))

    until = dict(await redis.zrange(keyspace.slots("key", "k"), 0, -1, withscores=True))
    may_last_s = Settings().total_timeout_s
    assert until[b"gen_own2"] - until[b"gen_log1"] >= 1000 * may_last_s  # The leader's is renewed with its lease.


async def test_a_retry_gets_its_own_generation_not_the_log(queue, channel):  # noqa: F811
    await send(queue, channel, 1)
    key = IdempotencyKey("a:k", "digest")
    await send(queue, channel, 2, key=key)

    assert (await send(queue, channel, 3, key=key)).id == "gen_own2"


async def test_what_the_cache_answers_is_counted_and_recorded_and_is_no_job(queue, redis):  # noqa: F811
    windows, _ = charges_for_limits("key", "k", Limits(requests=1, tokens=100), 60)
    record = (b"asked", orjson.dumps({"error": None}))

    answered = await queue.enqueue("gen_1", "a", JobClass.INTERACTIVE, charges=Charges(windows), cached=CachedAnswer(record))

    assert (answered.id, answered.log_id) == ("gen_1", "")
    assert [status.remaining for status in answered.limit_statuses] == [0, 100]
    stored = await redis.hgetall(keyspace.record("gen_1"))
    assert (stored[b"asked"], stored[b"end"]) == record
    assert await redis.lrange(keyspace.ENDED, 0, -1) == [b"gen_1"]
    assert names(await claim(queue)) == []
    assert await queue.recent("a", "", 9) == [], "it has no log to read"
    with pytest.raises(GatewayError):
        await queue.enqueue("gen_2", "a", JobClass.INTERACTIVE, charges=Charges(windows), cached=CachedAnswer(record))


async def test_a_full_queue_refuses_neither(make_queue, channel):  # noqa: F811
    small = make_queue(waiting_max=1)
    await send(small, channel, 1)
    with pytest.raises(GatewayError):
        await small.enqueue("gen_9", "a", JobClass.INTERACTIVE)

    assert (await send(small, channel, 2)).log_id == "gen_log1"
    assert (await small.enqueue("gen_3", "a", JobClass.INTERACTIVE, cached=CachedAnswer())).id == "gen_3"


async def test_the_end_of_a_log_dates_the_state_of_its_readers(queue, channel, redis):  # noqa: F811
    await send(queue, channel, 1)
    await send(queue, channel, 2)
    await end(channel, "gen_log1", End().pack())

    for own in ("gen_own1", "gen_own2"):
        assert 0 < await redis.pttl(keyspace.state(own)) <= 60_000
        assert await redis.get(keyspace.tombstone(own)) == b""
    assert await redis.pttl("{gen_log1}:followers") == -1, "until the ledger has it"
    await send(queue, channel, 3)
    assert 0 < await redis.pttl(keyspace.state("gen_own3")) <= 60_000, "one that came after the end, too"
