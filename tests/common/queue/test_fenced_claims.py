"""A claim that fences the logs of its jobs in the same script does what a claim and a fence after it do."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Fenced, Frame, FrameId, FrameKind, Opening, WriteStatus
from common.channel.redis import RedisChannel
from common.config.settings import Settings
from common.queue.jobs import POISON_DEATHS, ClaimedJob, JobClass, JobQueue
from common.redis import keyspace
from common.redis.client import Client, connect
from common.redis.pulse import Pulse

WRITES = ("xadd", "hset", "hdel", "publish", "pexpire", "zadd", "zrem", "lpop", "rpush", "get", "xrange")


class Lab:
    """``fences``: the script that claims fences too. Otherwise the channel does it afterwards."""

    def __init__(self, redis: Client, pulse: Pulse, *, fences: bool) -> None:
        settings = Settings().model_copy(update={"lease_s": 0.0})  # Every lease has lapsed as soon as it is given.
        self.redis, self.fences = redis, fences
        self.pulse = pulse
        self.queue = JobQueue(redis, pulse, settings)
        self.channel = RedisChannel(redis, tombstone_s=60)

    async def open(self, name: str = "gen_1", request: bytes = b"request") -> None:
        opening = Opening("me", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, request, b"{}")
        await self.channel.open(name, opening, "replica")
        await self.queue.enqueue(name, "me", JobClass.INTERACTIVE)

    async def claim_all(self, *, lapsed_max: int = 0) -> list[ClaimedJob]:
        return (await self.queue.claim(16, lapsed_max=lapsed_max, excluded_ids=(), fences=self.fences)).jobs

    async def claim(self, *, lapsed_max: int = 0) -> tuple[Claim, Fenced]:
        (job,) = await self.claim_all(lapsed_max=lapsed_max)
        return await self.fenced(job)

    async def fenced(self, job: ClaimedJob) -> tuple[Claim, Fenced]:
        """Do what a worker does with a job."""
        claim = Claim(job.generation_id, job.epoch, job.token or f"token_{job.epoch}")
        fenced = job.fenced or await self.channel.fence(claim, is_handover=job.is_handover, was_postponed=job.was_postponed)
        return claim, fenced

    async def frames(self, name: str = "gen_1") -> list[tuple[FrameId, FrameKind, bytes]]:
        return [(frame.id, frame.kind, frame.data) for frame in await self.channel.read(name, START, 100)]

    async def append(self, claim: Claim, *frames: tuple[int, FrameKind, bytes], previous: int = 0) -> WriteStatus:
        made = [Frame(FrameId(claim.epoch, n), kind, data) for n, kind, data in frames]
        (answer,) = await self.channel.append([Append(claim, FrameId(claim.epoch, previous), made)])
        return answer.status


@pytest.fixture
async def pulse(redis: Redis) -> AsyncIterator[Pulse]:
    pulse = Pulse(redis)
    await pulse.start()
    yield pulse
    await pulse.stop()


@pytest.fixture(params=[True, False], ids=["in one script", "afterwards"])
def lab(redis: Redis, pulse: Pulse, request: pytest.FixtureRequest) -> Lab:
    return Lab(redis, pulse, fences=request.param)


@pytest.fixture
async def one_script(redis: Redis, pulse: Pulse, redis_server: Any) -> AsyncIterator[Lab]:
    """Of a user who may be kept from a command."""
    await redis.execute_command("ACL", "SETUSER", "writer", "reset", "on", ">pw", "~*", "allchannels", "+@all")
    client = connect(redis_server.url.replace("unix://", "unix://writer:pw@"))
    yield Lab(client, pulse, fences=True)
    await client.aclose()
    await redis.execute_command("ACL", "DELUSER", "writer")


async def test_the_log_has_the_fence_and_the_claim_has_the_request(lab):
    await lab.open()

    claim, fenced = await lab.claim()

    assert await lab.frames() == [(FrameId(1, 0), FrameKind.FENCE, b"0-0")]
    assert (fenced.answer.status, fenced.answer.last, fenced.request) == (WriteStatus.OK, START, b"request")
    assert (fenced.has_head, fenced.empty_claims, fenced.note) == (False, 1, None)
    assert 0 < await lab.redis.pttl(keyspace.log("gen_1")) <= 600_000
    assert await lab.append(claim, (1, FrameKind.HEAD, b"{}")) is WriteStatus.OK


async def test_the_next_claim_fences_the_one_before_and_knows_what_it_left(lab):
    await lab.open()
    first, _ = await lab.claim()
    await lab.append(first, (1, FrameKind.HEAD, b"{}"))
    await lab.channel.heartbeat([first], [b"note"])

    second, fenced = await lab.claim(lapsed_max=1)

    assert (second.epoch, fenced.answer.last) == (2, FrameId(1, 1))
    assert (fenced.has_head, fenced.empty_claims, fenced.note) == (True, 1, b"note")
    assert await lab.append(first, (2, FrameKind.DATA, b"late"), previous=1) is WriteStatus.FENCED
    (state,) = await lab.channel.describe(["gen_1"], "me")
    assert state.claims == 2


async def test_claims_without_a_frame_are_counted_but_not_those_that_were_handed_over_or_waited(lab):
    await lab.open()
    counts = []
    for release in (None, "handover", "postponed", None):
        (job,) = await lab.claim_all(lapsed_max=1)
        counts.append((await lab.fenced(job))[1].empty_claims)
        if release == "handover":
            await lab.queue.release(job, is_handover=True)
        elif release == "postponed":
            await lab.queue.postpone(job, delay_s=0, attempts=1)

    assert counts == [1, 2, 2, 2]
    (state,) = await lab.channel.describe(["gen_1"], "me")
    assert state.claims == 3, "the claim after the wait for an upstream is none of its own"


async def test_a_log_that_has_ended_or_is_gone_says_so(lab):
    await lab.open("ended")
    await lab.open("gone")
    await lab.channel.end_unowned("ended", "t", Failed(ErrorKind.CANCELLED, "stopped"))
    await lab.redis.delete(keyspace.state("gone"))

    results = {job.generation_id: (await lab.fenced(job))[1] for job in await lab.claim_all()}

    assert [results[name].answer.status for name in ("ended", "gone")] == [WriteStatus.ENDED, WriteStatus.GONE]
    assert [kind for _, kind, _ in await lab.frames("ended")] == [FrameKind.END]
    assert await lab.frames("gone") == []


async def test_a_stop_flag_is_told(lab):
    await lab.open()
    await lab.channel.stop("gen_1")

    _, fenced = await lab.claim()

    assert fenced.answer.stop == "cancelled"


async def test_a_job_that_kills_its_workers_is_not_fenced_and_its_request_not_read(redis, pulse):
    lab = Lab(redis, pulse, fences=True)
    await lab.open()
    for _ in range(POISON_DEATHS):
        assert [job.fenced is not None for job in await lab.claim_all(lapsed_max=1)] == [True]

    (job,) = await lab.claim_all(lapsed_max=1)

    assert (job.deaths, job.fenced) == (POISON_DEATHS, None)
    assert len(await lab.frames()) == POISON_DEATHS


async def test_a_large_request_is_left_to_its_claim(lab, monkeypatch):
    monkeypatch.setattr("common.channel.redis.LARGE_BYTES", 3)
    await lab.open(request=b"large")

    (job,) = await lab.claim_all()

    assert job.fenced is None
    assert (await lab.fenced(job))[1].request == b"large"
    assert len(await lab.frames()) == 1


async def test_requests_of_one_claim_are_bounded(redis, pulse):
    lab = Lab(redis, pulse, fences=True)
    for n in range(4):
        await lab.open(f"gen_{n}", b"x" * 131_072)

    jobs = await lab.claim_all()

    assert [job.fenced is not None for job in jobs] == [True, True, False, False]
    assert [len((await lab.fenced(job))[1].request or b"") for job in jobs] == [131_072] * 4


async def test_a_log_that_cannot_be_read_does_not_affect_other_jobs(redis, pulse):
    lab = Lab(redis, pulse, fences=True)
    for name in ("bad", "good"):
        await lab.open(name)
    await redis.delete(keyspace.state("bad"))
    await redis.set(keyspace.state("bad"), "not a hash")

    jobs = {job.generation_id: job for job in await lab.claim_all()}

    assert jobs["bad"].fenced is None
    assert jobs["good"].fenced and jobs["good"].fenced.request == b"request"


async def test_two_workers_claim_and_fence_different_jobs(redis, pulse):
    labs = [Lab(redis, pulse, fences=True) for _ in range(2)]
    for name in ("a", "b"):
        await labs[0].open(name)

    jobs = [(await lab.queue.claim(1, lapsed_max=0, excluded_ids=(), fences=True)).jobs for lab in labs]

    assert [job.generation_id for claimed in jobs for job in claimed] == ["a", "b"]
    assert len({job.token for claimed in jobs for job in claimed}) == 2
    assert [len(await labs[0].frames(name)) for name in ("a", "b")] == [1, 1]


async def test_a_claim_that_waited_too_long_in_redis_fences_nothing(redis, pulse):
    lab = Lab(redis, pulse, fences=True)
    await lab.open()
    pulse._redis_ms -= 60_000  # What it sends now is as old as that when it runs.

    assert await lab.claim_all() == []
    assert await lab.frames() == []


async def test_a_claim_whose_answer_was_lost_is_fenced_by_the_next(redis, pulse):
    lab = Lab(redis, pulse, fences=True)
    await lab.open()
    (lost,) = await lab.claim_all()  # Nobody works on it: the answer did not arrive.

    claim, fenced = await lab.claim(lapsed_max=1)

    assert (claim.epoch, fenced.empty_claims, fenced.request) == (2, 2, b"request")
    assert await lab.append(claim, (1, FrameKind.HEAD, b"{}")) is WriteStatus.OK
    late = Claim("gen_1", lost.epoch, lost.token)
    assert await lab.append(late, (1, FrameKind.HEAD, b"{}")) is WriteStatus.FENCED


@pytest.mark.parametrize("command", WRITES)
async def test_a_claim_that_redis_ends_half_way_loses_no_job_and_fences_it_once(redis, one_script, command):
    lab = one_script
    await lab.open()
    await redis.execute_command("ACL", "SETUSER", "writer", f"-{command}")
    try:
        jobs = await lab.claim_all()
    except StoreUnavailable:
        jobs = []
        assert await lab.frames() == [], "a claim that fails has fenced nothing"
    finally:
        await redis.execute_command("ACL", "SETUSER", "writer", f"+{command}")

    (job,) = jobs or await lab.claim_all() or await lab.claim_all(lapsed_max=1)
    claim, fenced = await lab.fenced(job)

    assert (fenced.answer.status, fenced.empty_claims, fenced.request) == (WriteStatus.OK, 1, b"request")
    assert [kind for _, kind, _ in await lab.frames()] == [FrameKind.FENCE]
    assert await lab.append(claim, (1, FrameKind.HEAD, b"{}")) is WriteStatus.OK
