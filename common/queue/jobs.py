"""How does a job get from an API to exactly one worker?

Two structures: *waiting* (by class, then by tenant in rotation) and *running* (id by lease deadline). Every step is one
script, and every step of an owner names (id, epoch): a claim raises the epoch, so whoever held the job before can do
nothing to it any more. The log of the generation, not this queue, decides what the client sees: see ``common.channel``.
The keys are listed in ``common/redis/keyspace.py``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.config.settings import Settings
from common.limits.charges import (
    NOTHING,
    Charges,
    Settlement,
    Stand,
    all_spent,
    arguments,
    busy,
    limited,
    periods,
    spends,
    spent,
    spent_unknown,
    stands,
)
from common.limits.shared_lua import COUNTERS, SETTLING, WINDOW
from common.process.loop_lag import able_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, ms
from common.redis.errors import redis_errors
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts

log = structlog.get_logger()

CLAIM_BATCH = 16  # Jobs per claim: enough to keep a script short, and to leave work for a sibling that rings too.
LAPSED_BATCH = 4  # Lapsed leases per claim, so that a dead worker's jobs spread over those that are left.
JOB_EXPIRY_EXTRA_S = 3600  # A job is removed when it ends; this is the net for one that nobody ended.
RETRY_AFTER_FULL_S = 5
ALIVE_S = 6.0  # A worker says each ALIVE_BEAT_S that it takes jobs; its word counts for so long.
ALIVE_BEAT_S = 2.0
BOOKS_MARK = "2."  # Begins the bookkeeper's token. The version before has none; a worker that has also says that it is alive.
RECENT_MAX = 1_000  # Generations in a principal's index.
RECENT_S = 86_400  # How long the index outlives its last entry: longer than any log.


class JobClass(StrEnum):
    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class Place(StrEnum):
    """Where a job stands."""

    GONE = "gone"
    WAITING = "waiting"
    LATE = "late"  # Nobody has begun with it, and it has waited for longer than it may.
    RUNNING = "running"
    LAPSED = "lapsed"  # Its worker stopped renewing, and nobody has claimed it yet.
    ABANDONED = "abandoned"  # The same, for longer than a job may wait: there is no worker.


@dataclass(frozen=True, slots=True)
class Once:
    """What makes a request run only once: its key, made of the principal and the client's words, and what it asks for.

    ``spent`` is a generation that the key does not count for any more, as its log tells.
    """

    key: str
    digest: str
    spent: str = ""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """``was_postponed``: it waited for its upstream, which it has called ``attempts`` times."""

    generation_id: str
    epoch: int
    was_lapsed: bool = False
    is_handover: bool = False  # Its last worker gave it up in order, or was perhaps lost with Redis: it is not to blame.
    is_late: bool = False
    waited_ms: int = 0
    is_background: bool = False
    was_postponed: bool = False
    deaths: int = 0  # Workers that died while they ran it, by what its lapsed leases tell.
    attempts: int = 0


def keeps_books_as_before(token: bytes | None) -> bool:
    """Whether the worker that keeps the books is of the version before, which says nothing else of itself."""
    return bool(token) and not (token or b"").startswith(BOOKS_MARK.encode())


class Claimed(NamedTuple):
    jobs: list[ClaimedJob]
    lapsed_left: int
    waiting_left: int
    set_aside: Sequence[str] = ()  # Ids of jobs whose records cannot be read; they are gone from the queue.


class Enqueued(NamedTuple):
    """The id of the generation that answers the request, and where its principal's limits stand now."""

    id: str
    stands: list[Stand]


UNUSED = Settlement()
_HANDOVER, _POSTPONED = 1, 2  # How a job was given back, see claim.lua.
_ONCE_UNSAID = ["", "", 0, ""]


class JobQueue:
    """Both ends of the queue. Every method may raise ``StoreUnavailable``."""

    def __init__(self, redis: Client, pulse: Pulse, settings: Settings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent, WINDOW, COUNTERS, SETTLING)
        self._pulse = pulse
        self._settings = settings
        self._alive = 0
        self._has_bookkeeper = False
        pulse.watch(self._alive_command, self._note_alive)
        # Workers of the version before say nothing of themselves; but one of them keeps the books.
        pulse.watch(("GET", keyspace.BOOKKEEPER), self._note_bookkeeper)

    @property
    def workers_alive(self) -> int:
        """How many workers take jobs, as of the pulse's last answer."""
        return self._alive or int(self._has_bookkeeper)

    def _alive_command(self) -> tuple[str, ...]:
        return ("ZCOUNT", keyspace.WORKERS, str(self._pulse.redis_ms - ms(ALIVE_S)), "+inf")

    def _note_alive(self, count: int) -> None:
        self._alive = int(count)

    def _note_bookkeeper(self, token: bytes | None) -> None:
        self._has_bookkeeper = keeps_books_as_before(token)

    async def note_alive(self, worker: str, *, takes_jobs: bool) -> None:
        """Say for ``ALIVE_S`` that a worker takes jobs, or that it takes none any more."""
        # Behind its name stands how many it can run: the version before does not say, nor does it read the names.
        member = f"{worker} {self._settings.worker_slots}"
        await self._scripts.run("alive", [], [member, ms(ALIVE_S) if takes_jobs else 0])

    async def load(self, tenants_max: int) -> list[Any]:
        """Return what load.lua tells; see ``common/queue/load.py``."""
        answer: list[Any] = await self._scripts.run("load", [], [ms(ALIVE_S), tenants_max])
        return answer

    async def enqueue(
        self,
        generation_id: str,
        owner: str,
        job_class: JobClass,
        once: Once | None = None,
        *,
        tenant: str = "",
        charges: Charges = NOTHING,
    ) -> Enqueued:
        """Put a job among the waiting and ring the bell; ``tenant`` is whose turn it takes, the owner's own if not said.

        Where the request has come before, another generation answers it, and nothing was enqueued or charged.

        Raises:
            GatewayError: OVERLOADED, RATE_LIMITED, BUDGET_EXCEEDED, or INVALID_REQUEST for a key that came with another
                request; nothing was enqueued.
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
        args += [once.key, once.digest, ms(s.idempotency_s), once.spent] if once else _ONCE_UNSAID
        args += arguments(charges)
        verdict, *rest = await self._scripts.run("enqueue", [], args)
        if verdict == b"ok":
            return Enqueued(generation_id, stands(charges, rest))
        if verdict == b"held":
            return Enqueued(rest[0].decode(), [])
        raise _refusal(verdict.decode(), rest, charges)

    async def recent(self, tenant: str, after: str, count: int) -> list[str] | None:
        """Return ids that a tenant enqueued, newest first, those older than ``after`` (empty: all); None if that is unknown."""
        name = keyspace.RECENT + tenant
        with redis_errors():
            async with able_timeout(COMMAND_TIMEOUT_S):
                rank = await self._redis.zrevrank(name, after) if after else -1
                if rank is None:
                    return None
                return [member.decode() for member in await self._redis.zrevrange(name, rank + 1, rank + count)]

    async def claim(
        self, room: int, *, lapsed_max: int, not_these: Collection[str], background_max: int = CLAIM_BATCH
    ) -> Claimed:
        """Return up to ``room`` jobs, each leased from now on, of them at most ``background_max`` waiting background ones.

        ``not_these`` are never handed out as lapsed.
        """
        s = self._settings
        args = [self._pulse.redis_ms, ms(s.lease_s), min(room, CLAIM_BATCH), background_max, lapsed_max, *not_these]
        answer = await self._scripts.run("claim", [], args)
        if answer == b"stale":
            return Claimed([], 0, 0)
        lapsed_left, waiting_left, taken, aside = answer
        jobs = [_claimed(*each) for each in taken]
        return Claimed(jobs, lapsed_left, waiting_left, [each.decode(errors="replace") for each in aside])

    async def renew(self, held: dict[str, int]) -> list[str]:
        """Renew the leases of ``held`` (id → epoch); returns the ids that are another's now. A job that is gone is nobody's."""
        flat = [item for pair in held.items() for item in pair]
        lost = await self._scripts.run("renew", [], [ms(self._settings.lease_s), *flat])
        return [generation_id.decode() for generation_id in lost]

    async def release(
        self, job: ClaimedJob, *, delay_s: float = 0, is_handover: bool = False, has_failed: bool = False
    ) -> None:
        """Give a job back, first in line; ``has_failed`` counts as if its worker had died."""
        how = "handover" if is_handover else "failed" if has_failed else ""
        await self._scripts.run("release", [], [job.generation_id, job.epoch, ms(delay_s), how, job.attempts])

    async def postpone(self, job: ClaimedJob, *, delay_s: float, attempts: int) -> None:
        """Give a job back that is to call its upstream again later; it holds no slot of a worker until then."""
        await self._scripts.run("release", [], [job.generation_id, job.epoch, ms(delay_s), "postponed", attempts])

    async def finish(self, job: ClaimedJob, settlement: Settlement = UNUSED) -> list[str]:
        """Remove a job that has ended, and settle what it was charged for, unless Redis has lost it.

        Returns the counters of ``keys.spent`` that this took past a mark of their budgets, each with the mark in percent.
        """
        shares = [item for purse, nano in settlement.shares for item in (spends(purse), nano)]
        figures = [settlement.tokens, settlement.cost_nano_usd, *periods(), *shares]
        crossed = await self._scripts.run("finish", [], [job.generation_id, job.epoch, *figures])
        return [each.decode() for each in crossed]

    async def drop(self, job: ClaimedJob, reason: str, *, with_record: bool) -> None:
        """Remove a job that cannot be finished, settle nothing, and set it aside; ``with_record``: the ledger's record too."""
        await self._scripts.run("drop", [], [job.generation_id, job.epoch, reason, int(with_record)])

    async def withdraw(self, generation_id: str) -> None:
        """Remove a job wherever it is, once its log has been ended by somebody else than its worker."""
        if await self._scripts.run("withdraw", [], [generation_id]) == -1:
            log.error("job_set_aside", generation_id=generation_id)

    async def look(self, generation_ids: list[str]) -> list[Place]:
        args = [ms(self._settings.queue_wait_s), *generation_ids]
        places = [Place(place.decode()) for place in await self._scripts.run("look", [], args)]
        if self._pulse.healthy_s() > self._settings.lease_s:
            return places
        # Just after an outage all leases are long lapsed, and their workers about to renew them.
        return [Place.LAPSED if place is Place.ABANDONED else place for place in places]


def _claimed(
    generation_id: bytes,
    epoch: int,
    lapsed: int,
    given_back: int,
    late: int,
    waited_ms: int,
    background: int,
    deaths: int,
    attempts: int,
) -> ClaimedJob:
    is_handover, was_postponed = given_back == _HANDOVER, given_back == _POSTPONED
    flags = (bool(lapsed), is_handover, bool(late), waited_ms, bool(background), was_postponed)
    return ClaimedJob(generation_id.decode(), epoch, *flags, deaths, attempts)


def _refusal(verdict: str, rest: list[int], charges: Charges) -> Exception:
    match verdict:
        case "limited":
            number, wait_ms, *figures = rest
            return limited(charges.windows[number - 1], wait_ms, stands(charges, figures))
        case "busy":
            return busy(charges.slots[rest[0] - 1])
        case "spent":
            return spent(charges, rest[0])
        case "all_spent":
            return all_spent(charges)
        case "spent_unknown":
            return spent_unknown()
        case "tenant_full":
            return _full("Too many of your requests are waiting already.", "tenant_queue_full")
        case "full":
            return _full("Too many requests are waiting already.", "queue_full")
        case "differs":
            return GatewayError(
                ErrorKind.INVALID_REQUEST,
                "This idempotency-key came with another request before. Use a new key for each request.",
                status=422,
                code="idempotency_key_reused",
                param="idempotency-key",
            )
    return StoreUnavailable("the command waited too long in Redis")


def _full(reason: str, code: str) -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"{reason} Try again in {RETRY_AFTER_FULL_S} seconds.",
        code=code,
        retry_after_s=RETRY_AFTER_FULL_S,
    )
