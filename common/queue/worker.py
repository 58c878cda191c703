"""How does an arq worker run leased jobs?

arq's life cycle stays: its functions, start-up and shutdown hooks, signals, task bookkeeping and health record. This class
overrides what a fleet of long streams needs differently: a bell wakes a script that claims jobs, instead of a poll that
reads all jobs; leases are renewed instead of set once; and every end of a job is written to the generation's log.
docs/decisions/ has the measurements.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func

from common.canonical.errors import StoreUnavailable
from common.config.groups.queue import QueueSettings
from common.limits.charges import Settlement
from common.process.loop_lag import lag_aware_timeout, loop_lag
from common.process.process import supervised
from common.process.rhythm import next_turn, until_turn_s
from common.queue.jobs import ALIVE_BEAT_S, LAPSED_BATCH, ClaimedJob, ClaimResult, JobQueue
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import REDIS_ERRORS, as_unavailable, error_text
from common.redis.pipe import Exchanges
from common.redis.pulse import Pulse

log = structlog.get_logger()

BELL_WAIT_S = 1  # After this wait the worker claims anyway: a bell may be lost, and delayed jobs become due without one.
BELL_TIMEOUT_S = 3.0  # Longer than the wait: only a dead connection reaches it.
PAUSE_AFTER_ERROR_S = 0.2
REASON_MAX = 300
STUCK_S = 10.0  # Longer than several turns with all their timeouts.
# A worker whose event loop is later than CLAIM_LAG_S claims at most CLAIM_LATE_MAX jobs at a time. Another worker may be free,
# and the APIs see how long jobs wait.
CLAIM_LAG_S, CLAIM_LATE_MAX = 0.05, 2
RELEASE_DELAY_S = 1.0  # A job whose handler could not start waits this long, so that it is not claimed in a tight loop.

Handler = Callable[[ClaimedJob], Awaitable[Settlement]]


class HandBack(Exception):
    """The handler cannot work on the job now. The job is put back in line."""


class UnusableJob(Exception):
    """No worker can process the job. It is removed from the queue and set aside, see ``common/ledger/set_aside.py``."""


class Postponed(Exception):
    """The handler waits for an upstream. The job is put back for ``delay_s``, after ``attempts`` upstream calls so far."""

    def __init__(self, delay_s: float, attempts: int) -> None:
        super().__init__(f"for {delay_s:.0f} s")
        self.delay_s, self.attempts = delay_s, attempts


class _ArqClient(Client, ArqRedis):  # type: ignore[misc]  # redis-py disagrees with itself.
    """The client that arq requires, with the errors of our own client."""


class LeasedWorker(Worker):
    """Runs ``handler`` for each claimed job, in a task that is cancelled when the job is no longer ours.

    A handler returns the job's settlement once the generation has ended; the job is then finished. It raises ``HandBack`` or
    ``Postponed`` to put the job back, and ``UnusableJob`` to remove it. It is cancelled when the drain time is over (the job
    is handed over) or when the lease is lost (another worker has the job).
    """

    def __init__(
        self, redis: Client, queue: JobQueue, pulse: Pulse, settings: QueueSettings, handler: Handler, name: str
    ) -> None:
        async def run_generation(ctx: dict[str, Any], generation_id: str) -> Settlement:
            return await handler(self._jobs[generation_id])

        super().__init__(
            functions=[func(run_generation, name="generation")],
            redis_pool=_ArqClient(redis.connection_pool),
            queue_name=keyspace.ENQUEUED,  # Only arq's health record reads it, for the number of waiting jobs.
            health_check_key=f"{keyspace.QUEUE_PREFIX}health:{name}",
            health_check_interval=30,
            max_jobs=settings.worker_slots,
            poll_delay=0,
            keep_result=0,
            max_tries=2**31,  # We count attempts and timeouts ourselves. arq's limits are never reached.
            job_timeout=2**31,
            job_completion_wait=max(1, int(settings.worker_drain_s)),
        )
        self._queue = queue
        self._pulse = pulse
        self._settings = settings
        # One connection per bell: BLPOP blocks its connection, and we wait for a bell only while there is room for its jobs.
        self._bells = {bell: Exchanges(redis.open_pipe, BELL_TIMEOUT_S) for bell in (keyspace.BELL, keyspace.BELL_BACKGROUND)}
        self._listening: dict[str, asyncio.Task[list[Any]]] = {}
        self._wake = asyncio.Event()  # A bell has rung, or a slot has become free after all were taken.
        self._jobs: dict[str, ClaimedJob] = {}
        self._background = 0  # How many of them are background jobs. Jobs that were taken over may exceed the limit.
        self._background_max = max(1, int(settings.worker_slots * settings.background_share))
        self._lost: set[str] = set()
        self._has_seen_lapsed = False  # Whether the last claim reported lapsed leases. Only then we claim lapsed jobs too.
        self._renewed_at = time.monotonic()
        self._name = name
        self._tasks: list[asyncio.Task[None]] = []  # The loops that run beside the claiming.
        self._turn_error = self._turn_problem = ""
        self._turned_at = time.monotonic()
        self.on_takeover: Callable[[], object] = lambda: None
        self.on_budget_mark: Callable[[str, str], object] = lambda counter, percent: None

    # Claiming

    async def main(self) -> None:
        """Like arq's ``main``, but without its check of Redis' version: an outage at that moment would end the worker."""
        if not self.allow_pick_jobs:
            return  # The stop signal came before the start: arq's handler had nothing to cancel.
        while True:
            await self._poll_iteration()

    async def _poll_iteration(self) -> None:
        """One turn: claim while there is work and a free slot, then wait for a bell or a slot."""
        self._tasks = self._tasks or [
            supervised(self._renew_for_ever, "renewals"),
            supervised(self._report_alive_for_ever, "liveness reports"),
        ]
        try:
            await self._turn()
            self._turn_error, self._turned_at = "", time.monotonic()
        except Exception as error:  # arq would end the process here.
            self._log_turn_error(error)
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
        for generation_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[generation_id]

    def _log_turn_error(self, error: Exception) -> None:
        """Log once what prevents claiming. Pulse and probe report failures of Redis as a whole."""
        self._turn_problem = error_text(error)
        is_redis = isinstance(error, StoreUnavailable) or as_unavailable(error) is not None
        if not is_redis and str(error) != self._turn_error:
            self._turn_error = str(error)
            log.error("claiming_failed", exc_info=error)

    async def _turn(self) -> None:
        await self._collect_bells()
        if not self.allow_pick_jobs or not self._pulse.is_up:
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
            return
        self._wake.clear()  # Before the claim: the claim does not see a slot that becomes free while it runs.
        if not await self._claim():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self.heart_beat()
            self._listen()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._listening else BELL_WAIT_S):
                    await self._wake.wait()

    async def _claim(self) -> bool:
        """Claim jobs; returns whether there may be more."""
        if self.free_slots <= 0:
            return False
        claimed = await self._claim_jobs(with_lapsed=self._has_seen_lapsed)
        if claimed.lapsed_left and not claimed.jobs and not self._has_seen_lapsed:
            claimed = await self._claim_jobs(with_lapsed=True)  # The first lapsed lease: a client is waiting, so claim at once.
        self._has_seen_lapsed = claimed.lapsed_left > 0
        for generation_id in claimed.set_aside:
            log.error("job_set_aside", generation_id=generation_id, reason="its record cannot be read")
        for job in claimed.jobs:
            self._start(job)
        return bool(claimed.jobs) and (claimed.waiting_left > 0 or claimed.lapsed_left > 0)

    def _listen(self) -> None:
        """Start to wait for the bells of all classes that have room. A wait continues while we claim for another reason."""
        for bell, exchanges in self._bells.items():
            if bell not in self._listening and self._room_for(bell) > 0:
                wait: tuple[Any, ...] = ("BLPOP", bell, BELL_WAIT_S)
                task = self._listening[bell] = self.loop.create_task(exchanges.run([hiredis.pack_command(wait)]))
                task.add_done_callback(lambda _: self._wake.set())

    async def _collect_bells(self) -> None:
        """Collect the bells that have rung. If we no longer have room, ring again for another worker."""
        for bell in [bell for bell, task in self._listening.items() if task.done()]:
            (answer,) = self._listening.pop(bell).result()
            if isinstance(answer, Exception):
                raise answer
            if answer and not (self.allow_pick_jobs and self._room_for(bell) > 0):
                ring: tuple[Any, ...] = ("LPUSH", bell, "1")
                await self._bells[bell].run([hiredis.pack_command(ring)])

    def _room_for(self, bell: str) -> int:
        return self._background_room if bell == keyspace.BELL_BACKGROUND else self.free_slots

    async def _claim_jobs(self, *, with_lapsed: bool) -> ClaimResult:
        # A lease that lapsed during an outage may belong to a running job. So a worker claims lapsed jobs only after Redis has
        # been healthy for one lease: in that time every other worker could renew.
        may_take_lapsed = with_lapsed and self._pulse.healthy_s() > self._settings.lease_s
        is_late = loop_lag().now_s > CLAIM_LAG_S
        return await self._queue.claim(
            min(self.free_slots, CLAIM_LATE_MAX) if is_late else self.free_slots,
            background_max=self._background_room,
            lapsed_max=LAPSED_BATCH if may_take_lapsed else 0,
            excluded_ids=self._jobs.keys() if may_take_lapsed else (),
            fences=True,
        )

    @property
    def problem(self) -> str | None:
        """Why no job is claimed although Redis answers. None where claiming works."""
        stuck_s = time.monotonic() - self._turned_at
        if not self._tasks or not self.allow_pick_jobs or stuck_s < STUCK_S:
            return None
        return f"No job could be claimed for {stuck_s:.0f} s: {self._turn_problem or 'the claiming loop hangs'}"

    @property
    def free_slots(self) -> int:
        return self.max_jobs - len(self._jobs)

    @property
    def _background_room(self) -> int:
        return max(0, min(self.free_slots, self._background_max - self._background))

    def _start(self, job: ClaimedJob) -> None:
        if job.was_lapsed:
            log.warning("job_taken_over", generation_id=job.generation_id, epoch=job.epoch)
            self.on_takeover()
        self._jobs[job.generation_id] = job
        self._background += job.is_background
        self.tasks[job.generation_id] = self.loop.create_task(self._run_claimed(job), name=job.generation_id)

    # Running

    async def _run_claimed(self, job: ClaimedJob) -> None:
        """Run one claimed job to its end. Raises nothing."""
        generation_id = job.generation_id
        try:
            settlement = await self.functions["generation"].coroutine({**self.ctx, "job_id": generation_id}, generation_id)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()  # We obey it. Before Python 3.11.3 a timeout inside a task that is being cancelled breaks.
            if generation_id not in self._lost:
                self.jobs_retried += 1
                await self._give_back(job, is_handover=True)
        except HandBack as reason:
            log.warning("job_handed_back", generation_id=generation_id, epoch=job.epoch, reason=str(reason))
            self.jobs_retried += 1
            await self._give_back(job, delay_s=RELEASE_DELAY_S)
        except UnusableJob as reason:
            self.jobs_failed += 1
            await self._drop(job, str(reason), with_record=True)
        except Postponed as postponed:
            self.jobs_retried += 1
            await self._postpone(job, postponed)
        except Exception:  # The handler ends every log that it can. What it could not end, another claim must end.
            log.exception("job_failed", generation_id=generation_id, epoch=job.epoch)
            self.jobs_failed += 1
            await self._give_back(job, delay_s=RELEASE_DELAY_S, has_failed=True)
        else:
            self.jobs_complete += 1
            await self._finish(job, settlement)
        finally:
            self._forget(job)
            self._lost.discard(generation_id)

    def _forget(self, job: ClaimedJob) -> None:
        if self._jobs.get(job.generation_id) is job:  # We may have claimed the job again after we released it.
            if self.free_slots <= 0 or (job.is_background and self._background_room == 0):
                self._wake.set()
            del self._jobs[job.generation_id]
            self._background -= job.is_background

    async def _finish(self, job: ClaimedJob, settlement: Settlement) -> None:
        self._forget(job)  # First: a concurrent renewal must not mistake a finished job for a lost one.
        try:
            for crossed in await self._queue.finish(job, settlement):
                self.on_budget_mark(*crossed.removeprefix(keyspace.SPENT).rsplit(" ", 1))
        except StoreUnavailable:
            pass  # Its lease lapses, and the next claim sees that the log has ended.
        except Exception as error:
            await self._drop(job, f"it could not be settled: {error_text(error)}")

    async def _give_back(
        self, job: ClaimedJob, *, delay_s: float = 0, is_handover: bool = False, has_failed: bool = False
    ) -> None:
        self._forget(job)
        try:
            await self._queue.release(job, delay_s=delay_s, is_handover=is_handover, has_failed=has_failed)
        except StoreUnavailable:
            pass  # Its lease lapses, and another claim takes it.
        except Exception as error:
            await self._drop(job, f"it could not be released: {error_text(error)}")

    async def _postpone(self, job: ClaimedJob, postponed: Postponed) -> None:
        self._forget(job)
        try:
            await self._queue.postpone(job, delay_s=postponed.delay_s, attempts=postponed.attempts)
        except StoreUnavailable:
            pass  # Its lease lapses, and another claim takes it.
        except Exception as error:
            await self._drop(job, f"it could not be released: {error_text(error)}")

    async def _drop(self, job: ClaimedJob, reason: str, *, with_record: bool = False) -> None:
        """Remove a job that no worker can process from the queue, so that it does not go from worker to worker."""
        self._forget(job)
        reason = reason[:REASON_MAX]
        log.error("job_set_aside", generation_id=job.generation_id, epoch=job.epoch, reason=reason)
        try:
            await self._queue.drop(job, reason, with_record=with_record)
        except StoreUnavailable:
            pass  # Its lease lapses, and the next claim drops it.
        except Exception:  # Its record may be what broke it. The worker goes on with its other jobs.
            log.exception("job_not_set_aside", generation_id=job.generation_id)

    # Owning

    async def _renew_for_ever(self) -> None:
        while True:
            due_in = self._renewed_at + self._settings.renew_s - time.monotonic()
            # After an outage, renew first: within the pulse's half second.
            await asyncio.sleep(min(max(due_in, 0.05), until_turn_s(0.5)))
            if time.monotonic() - self._renewed_at >= self._settings.renew_s and self._pulse.is_up:
                await self._renew()

    async def _report_alive_for_ever(self) -> None:
        """Report that this worker is alive for as long as it takes jobs."""
        while self.allow_pick_jobs:
            if self._pulse.is_up:
                with contextlib.suppress(StoreUnavailable):
                    await self._queue.report_alive(self._name, takes_jobs=True)
            await next_turn(ALIVE_BEAT_S)
        log.info("draining", running=len(self._jobs), ends_within_s=self._settings.worker_drain_s)
        await self._report_stopped()

    async def _report_stopped(self) -> None:
        if self._pulse.is_up:
            with contextlib.suppress(StoreUnavailable):
                await self._queue.report_alive(self._name, takes_jobs=False)

    async def _renew(self) -> None:
        epochs = {generation_id: job.epoch for generation_id, job in self._jobs.items()}
        try:
            lost = await self._queue.renew(epochs) if epochs else []
        except StoreUnavailable:
            return
        self._renewed_at = time.monotonic()
        for generation_id in lost:
            self.drop(generation_id, epochs.get(generation_id, 0))

    def drop(self, generation_id: str, epoch: int) -> None:
        """Cancel a job that is no longer ours, so that its upstream is closed at once."""
        job, task = self._jobs.get(generation_id), self.tasks.get(generation_id)
        if job and job.epoch == epoch and task and not task.done():
            log.warning("job_lost", generation_id=generation_id, epoch=epoch)
            self._lost.add(generation_id)
            task.cancel()

    async def close(self) -> None:
        tasks = [*self._tasks, *self._listening.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # arq's own close fails on a task that was cancelled before its first step, and where Redis is away.
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        for exchanges in self._bells.values():
            await exchanges.close()
        with contextlib.suppress(Exception):  # If this fails, the last report expires by itself.
            await self._report_stopped()
        with contextlib.suppress(*REDIS_ERRORS):
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self.pool.delete(self.health_check_key)
