"""What requests that share a job leave in Redis, and until when, to the millisecond. The test sets Redis' clock."""

import pytest

from common.canonical.job import Policy
from common.channel.base import Opening, Stop
from common.channel.redis import RedisChannel
from common.limits.charges import Charges, Slot, Window
from common.queue.jobs import (
    JOB_EXPIRY_EXTRA_S,
    CachedAnswer,
    Enqueued,
    IdempotencyKey,
    JobClass,
    Settlement,
    Sharing,
)
from common.records.end import End
from common.redis import keyspace
from tests.common.queue.test_moments import WAIT, Lab, T, lab  # noqa: F401 - a fixture.

FLIGHT = keyspace.flight("key", "grace:100:interactive")
SLOT = Slot("key", "k", 5)
LAST_MS = WAIT + 1000 * JOB_EXPIRY_EXTRA_S  # And the total timeout of the settings.
OPENING_S = 600


def opening(policy: Policy = Policy.GRACE) -> Opening:
    return Opening("", "openai-chat", True, "m", 1, policy, 0.1, 60, OPENING_S, b"")


async def send(lab: Lab, number: int, policy: Policy = Policy.GRACE, **more) -> Enqueued:  # noqa: F811
    """Send the same request once more: its reader's id is own_<number>, its job's would be log_<number>."""
    channel = RedisChannel(lab.redis, tombstone_s=60)
    log_id, own_id = f"log_{number}", f"own_{number}"
    await channel.open(log_id, opening(policy), "r")
    await channel.follow(own_id, log_id, opening(policy))
    flags = {name: more.pop(name) for name in ("only_joins", "has_read_again") if name in more}
    sharing = Sharing(FLIGHT, own_id, b"summary %d" % number, **flags)
    return await lab.queue.enqueue(log_id, "a", JobClass.INTERACTIVE, more.pop("key", None), sharing=sharing, **more)


async def end(lab: Lab, log_id: str, **fields) -> None:  # noqa: F811
    """Let a log end with an answer, as far as the queue looks at it."""
    await lab.redis.hset(keyspace.state(log_id), "ended", "1")
    await lab.redis.hset(keyspace.record(log_id), mapping={"end": End().pack(), **fields})


def last_ms(lab: Lab) -> int:  # noqa: F811
    return LAST_MS + int(1000 * lab.queue._settings.total_timeout_s)


async def lives_ms(lab: Lab, name: str) -> int:  # noqa: F811
    return await lab.redis.pttl(name)


@pytest.mark.parametrize(("ms", "log_id"), [(99, "log_1"), (100, "")])
async def test_a_job_whose_readers_left_is_joined_until_it_may_stop(lab, ms, log_id):  # noqa: F811
    await send(lab, 1)
    assert await RedisChannel(lab.redis, 60).leave("log_1", "r") is Stop.NO, "its grace has begun"
    await lab.at(ms)

    assert (await send(lab, 2)).log_id == log_id


@pytest.mark.parametrize("is_running", [False, True])
async def test_who_only_joins_starts_no_job(lab, is_running):  # noqa: F811
    if is_running:
        await send(lab, 1)

    sent = await send(lab, 2, only_joins=True)

    assert (sent.id, sent.log_id, sent.is_cached) == (("own_2", "log_1", False) if is_running else ("", "", False))
    assert len(await lab.claim()) == is_running
    assert await lab.redis.exists("{log_2}:followers") == 0


async def test_an_answer_that_came_into_the_cache_is_news_for_so_long(lab):  # noqa: F811
    await send(lab, 1)
    (job,) = await lab.claim()
    await end(lab, "log_1")
    await lab.queue.finish(job, Settlement(is_cached=True))

    assert 9_000 < await lives_ms(lab, FLIGHT) <= 10_000
    assert (await send(lab, 2)).is_cached
    assert not (await send(lab, 3, has_read_again=True)).is_cached
    assert (await send(lab, 4)).log_id == "log_3"


async def test_an_end_without_a_record_is_joined_by_nobody_and_one_with_it_is(lab):  # noqa: F811
    await send(lab, 1)
    await end(lab, "log_1")
    assert (await send(lab, 2)).log_id == "log_1"

    await lab.redis.delete(keyspace.record("log_1"))

    assert (await send(lab, 3)).log_id == ""


async def test_who_shares_a_job_is_known_for_as_long_as_it_may_last(lab):  # noqa: F811
    await send(lab, 1)
    await lab.redis.pexpire("{log_1}:followers", 1_000)
    await send(lab, 2)

    assert await lab.redis.hgetall("{log_1}:followers") == {b"own_1": b"summary 1", b"own_2": b"summary 2"}
    for name in ("{log_1}:followers", FLIGHT, keyspace.JOB + "log_1"):
        assert last_ms(lab) - 60_000 < await lives_ms(lab, name) <= last_ms(lab), name
    assert await lab.redis.get(FLIGHT) == b"log_1"
    assert await lab.redis.hget(keyspace.JOB + "log_1", "flight") == FLIGHT.encode()
    assert await lab.redis.exists(keyspace.JOB + "log_2", keyspace.JOB + "own_2") == 0


async def test_a_reader_s_state_names_the_log_that_it_reads_and_a_reader_without_a_state_gets_none(lab):  # noqa: F811
    await send(lab, 1)
    await send(lab, 2)
    await lab.queue.enqueue("log_3", "a", JobClass.INTERACTIVE, sharing=Sharing(FLIGHT, "own_3", b""))

    sources = [await lab.redis.hget(keyspace.state(f"own_{number}"), "source") for number in (1, 2, 3)]
    assert sources == [b"log_1", b"log_1", None]
    assert await lab.redis.exists(keyspace.state("own_3")) == 0


@pytest.mark.parametrize(("log_ms", "expected"), [(50_000, 50_000), (None, OPENING_S * 1000)])
async def test_a_reader_s_state_goes_with_the_log_s_unless_that_stays(lab, log_ms, expected):  # noqa: F811
    await send(lab, 1)
    if log_ms:
        await lab.redis.pexpire(keyspace.state("log_1"), log_ms)
    else:
        await lab.redis.persist(keyspace.state("log_1"))  # It is audited, and the ledger has not read it yet.
    await send(lab, 2)

    assert expected - 9_000 < await lives_ms(lab, keyspace.state("own_2")) <= expected


async def test_slots_of_those_that_joined_are_listed_with_the_job_and_count_as_long_as_it_may_last(lab):  # noqa: F811
    for number in (1, 2, 3):
        await send(lab, number, charges=Charges(slots=[SLOT]))

    held = await lab.redis.zrange(keyspace.slots("key", "k"), 0, -1, withscores=True)
    assert held == [(b"log_1", T + WAIT), (b"own_2", T + last_ms(lab)), (b"own_3", T + last_ms(lab))]
    sharers = f"{keyspace.QUEUE_PREFIX}sharers:log_1"
    slot = keyspace.slots("key", "k").encode()
    assert await lab.redis.lrange(sharers, 0, -1) == [slot, b"own_2", slot, b"own_3"]
    for name in (sharers, slot.decode()):
        assert last_ms(lab) - 60_000 < await lives_ms(lab, name) <= last_ms(lab)
    assert await lab.redis.hget(keyspace.JOB + "log_1", "slots") == slot


async def test_tokens_count_for_the_one_that_leads_and_requests_for_all(lab):  # noqa: F811
    charges = Charges([Window("key", "k", "requests", 9, 60, 1), Window("key", "k", "tokens", 100, 60, 30)])

    statuses = [(await send(lab, number, charges=charges)).limit_statuses for number in (1, 2)]
    answered = await lab.queue.enqueue("gen_3", "a", JobClass.INTERACTIVE, charges=charges, cached=CachedAnswer())

    remaining = [[status.remaining for status in each] for each in (*statuses, answered.limit_statuses)]
    assert remaining == [[8, 70], [7, 70], [6, 70]]
    reserved = await lab.redis.hget(keyspace.JOB + "log_1", "reserved")
    assert reserved.split()[1:] == [b"60000", str(T // 1000).encode(), b"30"]


async def test_readers_are_found_by_their_own_ids_and_a_retry_finds_the_same(lab):  # noqa: F811
    key = IdempotencyKey("a:k", "digest")
    await send(lab, 1)
    await lab.at(1)
    await send(lab, 2, key=key)

    assert await lab.queue.recent("a", "", 9) == ["own_2", "own_1"]
    assert await lab.redis.get(f"{keyspace.QUEUE_PREFIX}once:a:k") == b"own_2 digest"
    expiry_ms = 1000 * lab.queue._settings.idempotency_s
    assert expiry_ms - 60_000 < await lives_ms(lab, f"{keyspace.QUEUE_PREFIX}once:a:k") <= expiry_ms
    retried = await send(lab, 3, key=IdempotencyKey("a:k", "digest", ignored_id="own_2"))
    assert (retried.id, retried.log_id) == ("own_3", "log_1")


async def test_what_the_cache_answers_holds_no_slot_and_is_recorded_at_its_moment(lab):  # noqa: F811
    await lab.at(7)
    record = (b"asked", b"end")
    await lab.queue.enqueue("gen_1", "a", JobClass.INTERACTIVE, charges=Charges(slots=[SLOT]), cached=CachedAnswer(record))

    fields = await lab.redis.hgetall(keyspace.record("gen_1"))
    assert fields == {b"asked": b"asked", b"end": b"end", b"ended_ms": str(T + 7).encode()}
    assert await lab.redis.zcard(keyspace.slots("key", "k")) == 0
    assert await lab.redis.exists(keyspace.BELL) == 0


async def test_what_the_cache_answers_with_a_log_is_found_again_and_makes_no_record(lab):  # noqa: F811
    await lab.queue.enqueue("gen_1", "a", JobClass.INTERACTIVE, cached=CachedAnswer())

    assert await lab.queue.recent("a", "", 9) == ["gen_1"]
    assert await lab.redis.exists(keyspace.record("gen_1"), keyspace.ENDED) == 0


async def test_a_flight_that_another_job_has_taken_is_not_closed_by_the_first(lab):  # noqa: F811
    await send(lab, 1)
    (first,) = await lab.claim()
    await lab.redis.hset(keyspace.state("log_1"), "stop", "cancelled")
    assert (await send(lab, 2)).log_id == ""

    await lab.queue.finish(first, Settlement(is_cached=True))

    assert await lab.redis.get(FLIGHT) == b"log_2"
    assert (await send(lab, 3)).log_id == "log_2"
