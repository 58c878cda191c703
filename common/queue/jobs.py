"""How does a job get from an API to exactly one worker?

Jobs are in one of two structures: *waiting* (by class, then by tenant in rotation) or *running* (id by lease deadline).
Every step is one Lua script. Every step of an owner names (id, epoch). A claim raises the epoch, so earlier owners can no
longer change the job. What the client sees is decided by the generation's log, not by this queue: see ``common.channel``.
``common/redis/keyspace.py`` lists the keys.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import structlog

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.wording import try_again
from common.channel.base import Fenced
from common.channel.redis import STEPS, parse_fenced
from common.config.settings import Settings
from common.limits.charges import (
    NO_CHARGES,
    Charges,
    LimitStatus,
    Settlement,
    all_budgets_error,
    budget_error,
    concurrency_error,
    enqueue_arguments,
    limit_error,
    pack_account,
    periods,
    read_limit_statuses,
    spending_unknown_error,
)
from common.limits.shared_lua import COUNTERS, SETTLING, WINDOW
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, ms
from common.redis.errors import redis_errors
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts

log = structlog.get_logger()

CLAIM_BATCH = 16  # Jobs per claim: few enough to keep the script short, and to leave work for other workers.
LAPSED_BATCH = 4  # Lapsed leases per claim, so that a dead worker's jobs spread over the remaining workers.
POISON_DEATHS = 3  # After this many lost workers we assume that the job kills them, and it must not kill more.
JOB_EXPIRY_EXTRA_S = 3600  # A job is removed when it ends. This expiry removes jobs that nobody ended.
RETRY_AFTER_FULL_S = 5
ALIVE_S = 6.0  # A worker reports every ALIVE_BEAT_S that it takes jobs. Its report is valid for this long.
ALIVE_BEAT_S = 2.0
BOOKKEEPER_PREFIX = (
    "2."  # Begins the bookkeeper's token. The version before has none; a worker that has also says that it is alive.
)
RECENT_MAX = 1_000  # Generations in a principal's index.
RECENT_S = 86_400  # How long the index is kept after its last entry: longer than any log.


class JobClass(StrEnum):
    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class JobStatus(StrEnum):
    """The state of a job."""

    GONE = "gone"
    WAITING = "waiting"
    LATE = "late"  # No worker has started it, and its waiting time is over.
    RUNNING = "running"
    LAPSED = "lapsed"  # Its worker stopped renewing the lease, and no other worker has claimed it yet.
    ABANDONED = "abandoned"  # The same, for longer than a job may wait: there is no worker.


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Makes a request run only once.

    ``key`` is made of the principal and the client's key, ``digest`` identifies the request's content. ``ignored_id`` is a
    generation that no longer counts for this key, because its log is gone.
    """

    key: str
    digest: str
    ignored_id: str = ""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker has leased. ``was_postponed``: it waited for its upstream, called ``attempts`` times so far.

    ``fenced``: the claim has fenced the log too, with ``token``. None: that is still to be done.
    """

    generation_id: str
    epoch: int
    was_lapsed: bool = False
    is_handover: bool = False  # Its last worker handed it over, or Redis failed over: it is not counted as a failed claim.
    is_late: bool = False
    waited_ms: int = 0
    is_background: bool = False
    was_postponed: bool = False
    deaths: int = 0  # How many workers died while they ran it, counted by lapsed leases.
    attempts: int = 0
    token: str = ""
    fenced: Fenced | None = field(default=None, repr=False)


def is_old_bookkeeper(token: bytes | None) -> bool:
    """Whether the bookkeeper (the worker that writes the ledger) is of the previous version, which reports nothing else."""
    return bool(token) and not (token or b"").startswith(BOOKKEEPER_PREFIX.encode())


class ClaimResult(NamedTuple):
    jobs: list[ClaimedJob]
    lapsed_left: int
    waiting_left: int
    set_aside: Sequence[str] = ()  # Ids of jobs whose records cannot be read. They have been removed from the queue.


class Enqueued(NamedTuple):
    """The id of the generation that answers the request, and the present state of its principal's limits.

    ``log_id``: the job that the request has joined, whose log it reads; empty if it has not joined any. ``id`` is empty if it
    only wanted to join one, and there is none. ``is_cached``: nothing was enqueued. The answer of an identical request has come
    into the cache, and the caller must read the cache again.
    """

    id: str
    limit_statuses: list[LimitStatus]
    log_id: str = ""
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class Sharing:
    """A request that may share a job with others. ``flight`` is the Redis key under which they find the job.

    ``reader_id`` is the request's own generation: it reads the log of whichever job it shares. ``summary`` is for the ledger.
    ``only_joins``: the request must not start a job. ``has_read_again``: it has read the cache again, after ``is_cached``.
    """

    flight: str
    reader_id: str
    summary: bytes = field(repr=False)
    only_joins: bool = False
    has_read_again: bool = False


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The cache answers a request, so there is no job.

    ``record`` is the ledger's record of it, as request summary and end. None: whoever ends its log writes the record.
    """

    record: tuple[bytes, bytes] | None = None


UNUSED = Settlement()
_HANDOVER, _POSTPONED = 1, 2  # How a job was released, see claim.lua.
_NO_IDEMPOTENCY_KEY = ["", "", 0, ""]
_NOT_SHARED = ["", "", "", 0, 0]


class JobQueue:
    """Both ends of the queue. Every method may raise ``StoreUnavailable``."""

    def __init__(self, redis: Client, pulse: Pulse, settings: Settings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent, WINDOW, COUNTERS, SETTLING, *STEPS)
        self._pulse = pulse
        self._settings = settings
        self._alive = 0
        self._has_bookkeeper = False
        pulse.watch(self._alive_command, self._set_alive)
        # Workers of the previous version do not report that they are alive, but one of them is the bookkeeper.
        pulse.watch(("GET", keyspace.BOOKKEEPER), self._set_bookkeeper)

    @property
    def workers_alive(self) -> int:
        """How many workers take jobs, by the pulse's last answer."""
        return self._alive or int(self._has_bookkeeper)

    def _alive_command(self) -> tuple[str, ...]:
        return ("ZCOUNT", keyspace.WORKERS, str(self._pulse.redis_ms - ms(ALIVE_S)), "+inf")

    def _set_alive(self, count: int) -> None:
        self._alive = int(count)

    def _set_bookkeeper(self, token: bytes | None) -> None:
        self._has_bookkeeper = is_old_bookkeeper(token)

    async def report_alive(self, worker: str, *, takes_jobs: bool) -> None:
        """Report that a worker takes jobs (valid for ``ALIVE_S``), or that it no longer does."""
        # The number of its slots follows its name. The previous version neither writes nor reads it.
        member = f"{worker} {self._settings.worker_slots}"
        await self._scripts.run("alive", [], [member, ms(ALIVE_S) if takes_jobs else 0])

    async def load(self, tenants_max: int) -> list[Any]:
        """Return the raw answer of load.lua; see ``common/queue/load.py``."""
        answer: list[Any] = await self._scripts.run("load", [], [ms(ALIVE_S), tenants_max])
        return answer

    async def enqueue(
        self,
        generation_id: str,
        owner: str,
        job_class: JobClass,
        idempotency_key: IdempotencyKey | None = None,
        *,
        tenant: str = "",
        charges: Charges = NO_CHARGES,
        sharing: Sharing | None = None,
        cached: CachedAnswer | None = None,
    ) -> Enqueued:
        """Enqueue a job and ring the bell. It waits for a turn of ``tenant``, or of the owner if ``tenant`` is empty.

        If the same request came before with the same idempotency key, its generation answers: then nothing is enqueued or
        charged.
        With ``sharing``, the request joins the job of an identical request if there is one. With ``cached``, there is no job at
        all. Both count against all limits, except for tokens.

        Raises:
            GatewayError: OVERLOADED, RATE_LIMITED, BUDGET_EXCEEDED, or INVALID_REQUEST for an idempotency key that came with
                another request. Nothing is enqueued.
        """
        s = self._settings
        wait_s = s.queue_wait_s if job_class is JobClass.INTERACTIVE else s.queue_wait_background_s
        args = [
            self._pulse.redis_ms,
            generation_id,
            tenant or owner,
            owner,
            job_class.value,
            s.waiting_max if job_class is JobClass.INTERACTIVE else int(s.waiting_max * s.background_share),
            s.waiting_per_tenant_max,
            ms(wait_s),
            ms(wait_s + s.total_timeout_s + JOB_EXPIRY_EXTRA_S),
            RECENT_MAX,
            ms(RECENT_S),
        ]
        args += (
            [idempotency_key.key, idempotency_key.digest, ms(s.idempotency_s), idempotency_key.ignored_id]
            if idempotency_key
            else _NO_IDEMPOTENCY_KEY
        )
        spends, *limits = enqueue_arguments(charges)
        record = cached.record if cached and cached.record else (b"", b"")
        args += [spends, int(cached is not None), *record, *(_pack(sharing) if sharing else _NOT_SHARED), *limits]
        verdict, *results = await self._scripts.run("enqueue", [], args)
        own_id = sharing.reader_id if sharing else generation_id
        if verdict == b"ok":
            return Enqueued(own_id, read_limit_statuses(charges, results))
        if verdict == b"joined":
            return Enqueued(own_id, read_limit_statuses(charges, results[1:]), results[0].decode())
        if verdict == b"cached":
            return Enqueued(own_id, [], is_cached=True)
        if verdict == b"alone":
            return Enqueued("", [])
        if verdict == b"held":
            return Enqueued(results[0].decode(), [])
        raise _refusal_error(verdict.decode(), results, charges)

    async def free_slots(self, generation_id: str, charges: Charges) -> None:
        """Free the concurrency slots of a request that shared another one's job, and has left before its end.

        All slots that are still held then are freed with the job.
        """
        if charges.slots:
            commands: list[tuple[Any, ...]] = [
                ("ZREM", keyspace.slots(slot.scope, slot.name), generation_id) for slot in charges.slots
            ]
            with redis_errors():
                await self._redis.exchanges.run([hiredis.pack_command(command) for command in commands])

    async def recent(self, tenant: str, after: str, count: int) -> list[str] | None:
        """Return the ids that a tenant enqueued before ``after`` (empty: all), newest first. None if ``after`` is unknown."""
        name = keyspace.RECENT + tenant
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                rank = await self._redis.zrevrank(name, after) if after else -1
                if rank is None:
                    return None
                return [member.decode() for member in await self._redis.zrevrange(name, rank + 1, rank + count)]

    async def claim(
        self,
        room: int,
        *,
        lapsed_max: int,
        excluded_ids: Collection[str],
        background_max: int = CLAIM_BATCH,
        fences: bool = False,
    ) -> ClaimResult:
        """Claim up to ``room`` jobs, of them at most ``background_max`` waiting background jobs. Each is leased from now on.

        Jobs of ``excluded_ids`` are not claimed when their lease has lapsed.
        With ``fences``, the logs of the jobs are fenced too, but not that of a job with a large request, or that kills workers.
        """
        s = self._settings
        token = secrets.token_hex(8) if fences else ""
        limits = [min(room, CLAIM_BATCH), background_max, lapsed_max]
        args = [self._pulse.redis_ms, ms(s.lease_s), *limits, token, POISON_DEATHS, *excluded_ids]
        answer = await self._scripts.run("claim", [], args)
        if answer == b"stale":
            return ClaimResult([], 0, 0)
        lapsed_left, waiting_left, claimed, set_aside_ids = answer
        jobs = [_claimed(token, *fields) for fields in claimed]
        return ClaimResult(jobs, lapsed_left, waiting_left, [fields.decode(errors="replace") for fields in set_aside_ids])

    async def renew(self, epochs: dict[str, int]) -> list[str]:
        """Renew the leases of ``epochs`` (id → epoch); returns the ids that another worker owns now, without removed jobs."""
        flat = [item for pair in epochs.items() for item in pair]
        lost = await self._scripts.run("renew", [], [ms(self._settings.lease_s), *flat])
        return [generation_id.decode() for generation_id in lost]

    async def release(
        self, job: ClaimedJob, *, delay_s: float = 0, is_handover: bool = False, has_failed: bool = False
    ) -> None:
        """Put a job back as the first in line. ``has_failed`` counts as a worker's death."""
        how = "handover" if is_handover else "failed" if has_failed else ""
        await self._scripts.run("release", [], [job.generation_id, job.epoch, ms(delay_s), how, job.attempts])

    async def postpone(self, job: ClaimedJob, *, delay_s: float, attempts: int) -> None:
        """Put a job back that will call its upstream again after ``delay_s``. Until then it uses no slot of a worker."""
        await self._scripts.run("release", [], [job.generation_id, job.epoch, ms(delay_s), "postponed", attempts])

    async def finish(self, job: ClaimedJob, settlement: Settlement = UNUSED) -> list[str]:
        """Remove a job that has ended, and settle what it was charged for, unless Redis has lost it.

        Returns the counters of ``keyspace.spent`` that passed a mark of their budgets now, each with the mark in percent.
        """
        shares = [item for account, nano in settlement.shares for item in (pack_account(account), nano)]
        figures = [settlement.tokens, settlement.cost_nano_usd, *periods(), int(settlement.is_cached), *shares]
        crossed = await self._scripts.run("finish", [], [job.generation_id, job.epoch, *figures])
        return [counter.decode() for counter in crossed]

    async def drop(self, job: ClaimedJob, reason: str, *, with_record: bool) -> None:
        """Remove a job that cannot be finished and set it aside, unsettled. ``with_record``: also the ledger's record."""
        await self._scripts.run("drop", [], [job.generation_id, job.epoch, reason, int(with_record)])

    async def withdraw(self, generation_id: str) -> None:
        """Remove a job from wherever it is, after somebody other than its worker has ended its log."""
        if await self._scripts.run("withdraw", [], [generation_id]) == -1:
            log.error("job_set_aside", generation_id=generation_id)

    async def statuses(self, generation_ids: list[str]) -> list[JobStatus]:
        args = [ms(self._settings.queue_wait_s), *generation_ids]
        statuses = [JobStatus(status.decode()) for status in await self._scripts.run("statuses", [], args)]
        if self._pulse.healthy_s() > self._settings.lease_s:
            return statuses
        # Just after an outage all leases have lapsed long ago, and their workers are about to renew them.
        return [JobStatus.LAPSED if status is JobStatus.ABANDONED else status for status in statuses]


def _pack(sharing: Sharing) -> list[Any]:
    """Return the enqueue script's arguments for a request that may share a job."""
    return [sharing.flight, sharing.reader_id, sharing.summary, int(sharing.only_joins), int(sharing.has_read_again)]


def _claimed(
    token: str,
    generation_id: bytes,
    epoch: int,
    lapsed: int,
    release_kind: int,
    late: int,
    waited_ms: int,
    background: int,
    deaths: int,
    attempts: int,
    fenced: list[Any] | None = None,
) -> ClaimedJob:
    is_handover, was_postponed = release_kind == _HANDOVER, release_kind == _POSTPONED
    flags = (bool(lapsed), is_handover, bool(late), waited_ms, bool(background), was_postponed)
    return ClaimedJob(generation_id.decode(), epoch, *flags, deaths, attempts, token, parse_fenced(fenced) if fenced else None)


def _refusal_error(verdict: str, results: list[int], charges: Charges) -> Exception:
    match verdict:
        case "limited":
            number, wait_ms, *figures = results
            return limit_error(charges.windows[number - 1], wait_ms, read_limit_statuses(charges, figures))
        case "busy":
            return concurrency_error(charges.slots[results[0] - 1])
        case "spent":
            return budget_error(charges, results[0])
        case "all_spent":
            return all_budgets_error(charges)
        case "spent_unknown":
            return spending_unknown_error()
        case "tenant_full":
            return _queue_full_error("Too many of your requests are already waiting.", "tenant_queue_full")
        case "full":
            return _queue_full_error("Too many requests are already waiting.", "queue_full")
        case "differs":
            return GatewayError(
                ErrorKind.INVALID_REQUEST,
                "This idempotency-key was used for another request before. Use a new key for each request.",
                status=422,
                code="idempotency_key_reused",
                param="idempotency-key",
            )
    return StoreUnavailable("the command waited too long in Redis")


def _queue_full_error(reason: str, code: str) -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"{reason} {try_again(RETRY_AFTER_FULL_S)}",
        code=code,
        retry_after_s=RETRY_AFTER_FULL_S,
    )
