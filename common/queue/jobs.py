"""How does a job get from an API to exactly one worker?

Two structures: *waiting* (by class, then by tenant in rotation) and *running* (id by lease deadline). Every step is one
script, and every step of an owner names (id, epoch): a claim raises the epoch, so whoever held the job before can do
nothing to it any more. The log of the generation, not this queue, decides what the client sees: see ``common.channel``.
The keys are listed in ``common/keys.py``.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis

from common.errors import ErrorKind, GatewayError
from common.redis_client import Pulse, RedisUnavailable, Scripts
from common.settings import Settings

CLAIM_BATCH = 16  # Jobs per claim: enough to keep a script short, and to leave work for a sibling that rings too.
LAPSED_BATCH = 4  # Lapsed leases per claim, so that a dead worker's jobs spread over those that are left.
JOB_EXPIRY_EXTRA_S = 3600  # A job is removed when it ends; this is the net for one that nobody ended.
RETRY_AFTER_FULL_S = 5


class JobClass(StrEnum):
    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class Place(StrEnum):
    """Where a job stands."""

    GONE = "gone"
    WAITING = "waiting"
    LATE = "late"  # Never claimed, and waiting for longer than it may.
    RUNNING = "running"
    LAPSED = "lapsed"  # Its worker stopped renewing, and nobody has claimed it yet.
    ABANDONED = "abandoned"  # The same, for longer than a job may wait: there is no worker.


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    generation_id: str
    epoch: int
    was_lapsed: bool = False
    is_handover: bool = False
    is_late: bool = False
    waited_ms: int = 0


class Claimed(NamedTuple):
    jobs: list[ClaimedJob]
    lapsed_left: int
    waiting_left: int


class JobQueue:
    """Both ends of the queue. Every method may raise ``RedisUnavailable``."""

    def __init__(self, redis: Redis, pulse: Pulse, settings: Settings) -> None:
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._pulse = pulse
        self._settings = settings

    async def enqueue(self, generation_id: str, tenant: str, job_class: JobClass) -> None:
        """Put a job among the waiting and ring the bell.

        Raises:
            GatewayError: OVERLOADED; nothing was enqueued.
        """
        s = self._settings
        wait_s = s.queue_wait_s if job_class is JobClass.INTERACTIVE else s.queue_wait_background_s
        args = [
            self._pulse.redis_ms,
            generation_id,
            tenant,
            job_class.value,
            s.waiting_max,
            s.waiting_per_tenant_max,
            _ms(wait_s),
            _ms(wait_s + s.total_timeout_s + JOB_EXPIRY_EXTRA_S),
        ]
        answer = (await self._scripts.run("enqueue", [], args)).decode()
        if answer == "stale":
            raise RedisUnavailable("the command waited too long in Redis")
        if answer == "tenant_full":
            raise _full("Too many of your requests are waiting already.", "tenant_queue_full")
        if answer == "full":
            raise _full("Too many requests are waiting already.", "queue_full")

    async def claim(self, room: int, *, lapsed_max: int, not_these: Collection[str]) -> Claimed:
        """Return up to ``room`` jobs, each leased from now on. ``not_these`` are never handed out as lapsed."""
        s = self._settings
        args = [self._pulse.redis_ms, _ms(s.lease_s), min(room, CLAIM_BATCH), lapsed_max, *not_these]
        answer = await self._scripts.run("claim", [], args)
        if answer == b"stale":
            return Claimed([], 0, 0)
        lapsed_left, waiting_left, taken = answer
        jobs = [ClaimedJob(t[0].decode(), t[1], bool(t[2]), bool(t[3]), bool(t[4]), t[5]) for t in taken]
        return Claimed(jobs, lapsed_left, waiting_left)

    async def renew(self, held: dict[str, int]) -> list[str]:
        """Renew the leases of ``held`` (id → epoch); returns the ids that are no longer ours."""
        flat = [item for pair in held.items() for item in pair]
        lost = await self._scripts.run("renew", [], [_ms(self._settings.lease_s), *flat])
        return [generation_id.decode() for generation_id in lost]

    async def release(self, job: ClaimedJob, *, delay_s: float = 0, is_handover: bool = False) -> None:
        """Give a job back, first in line; a handover does not count as a failed claim."""
        await self._scripts.run("release", [], [job.generation_id, job.epoch, _ms(delay_s), int(is_handover)])

    async def finish(self, job: ClaimedJob) -> None:
        await self._scripts.run("finish", [], [job.generation_id, job.epoch])

    async def withdraw(self, generation_id: str) -> None:
        """Remove a job wherever it is, once its log has been ended by somebody else than its worker."""
        await self._scripts.run("withdraw", [], [generation_id])

    async def look(self, generation_ids: list[str]) -> list[Place]:
        args = [_ms(self._settings.queue_wait_s), *generation_ids]
        return [Place(place.decode()) for place in await self._scripts.run("look", [], args)]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _full(reason: str, code: str) -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"{reason} Try again in {RETRY_AFTER_FULL_S} seconds.",
        code=code,
        retry_after_s=RETRY_AFTER_FULL_S,
    )
