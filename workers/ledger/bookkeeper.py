"""Which work is done for the whole fleet, when, and what happens if the database is away?

The worker that holds the lease does it, one turn per second. The database may be away for any time: records wait in Redis, we
retry with growing pauses, and the log has one line per change of state. Only the worker that holds the lease imports
SQLAlchemy.
"""

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from common.canonical.errors import StoreUnavailable
from common.channel.base import Channel
from common.config.settings import Settings
from common.database.errors import DatabaseUnavailable, RowRefused
from common.database.lazy import LazyDatabase
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.redis.client import Client
from common.redis.pulse import Pulse
from workers.ledger.collector import BATCH, Collector
from workers.ledger.lease import Lease
from workers.ledger.restore_budgets import BudgetRestorer
from workers.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from common.live.catalog import StoredSync

log = structlog.get_logger()

TURN_S = 1.0
BATCHES_PER_TURN = 20
BATCH_PAUSE_S = 0.01  # Lets the streams of this worker run, however much there is to catch up with.
SCAN_STEPS_PER_TURN = 10
SCAN_PAUSE_S = 60.0
AUDIT_PAUSE_S = 600.0
KEYS_PAUSE_S = 3.0
KEYS_LOOK_BACK_MS = 300_000  # Clocks differ, and a transaction may take a while.
AWAY_PAUSES_S = (1.0, 2.0, 5.0, 10.0)  # Between two attempts; the last one repeats.


class Bookkeeper:
    def __init__(
        self,
        redis: Client,
        pulse: Pulse,
        channel: Channel,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease = Lease(redis, pulse)
        self._redis = redis
        self._pulse = pulse
        self._metrics = metrics
        self._clock = clock
        self._database = LazyDatabase(settings.database_url)
        self._collector = Collector(redis, channel, settings, metrics)
        self._budgets = BudgetRestorer(redis)
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False
        self._failures = 0
        self._is_more = False
        self.problem: str | None = None  # Why bookkeeping does not work, if this worker does it.
        self._has_synced = False
        self._try_at = self._keys_at = self._stored_at = self._scan_at = self._audit_at = 0.0
        self._secrets = settings.secrets
        self._stored: StoredSync | None = None

    def use_settings(self, settings: Settings) -> None:
        """Use other prices from now on."""
        self._collector.settings = settings

    async def start(self) -> None:
        if await self.lease.renew():
            # Now, while this worker has no streams to delay: it takes half a second. The first turn calls the database.
            await asyncio.to_thread(importlib.import_module, "common.database.migrate")
        self.lease.start()
        self._task = supervised(self._run, "bookkeeping")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.lease.stop()
        await self._database.close()

    async def turn(self) -> bool:
        """Do the work that is due, if we hold the lease. Return whether more waits. It never raises."""
        if not (self.lease.is_held and self._pulse.is_up):
            await self._release_books()
            return False
        if not self._has_begun:
            self._has_begun = True
            log.info("bookkeeping_begun")
        is_more = await self._try_to_work() if self._clock() >= self._try_at else False
        with contextlib.suppress(StoreUnavailable):
            await self._collector.update_metrics(self._pulse.redis_ms)
        return is_more

    async def _try_to_work(self) -> bool:
        """Run all steps, even if one fails: an unreadable key or sum must not stop the ledger."""
        try:
            engine = await self._database.engine()
            failed = await self._work(engine)
        except StoreUnavailable:
            return False  # The Redis poll reports it. Unfinished work is done in a later turn.
        except Exception as error:
            failed = {"database": error}
        if failed:
            self._record_failure(failed)
        else:
            self._record_recovery()
        return self._is_more

    async def _work(self, engine: "AsyncEngine") -> dict[str, Exception]:
        """Run the steps. Return those that failed, with their errors."""
        failed: dict[str, Exception] = {}
        # If the budgets' counters cannot be loaded now, usage that is collected meanwhile counts twice later. Too much is
        # better than too little.
        steps = (self._budgets.load, self._sync_keys, self._sync_stored, self._collect, self._do_rare_work)
        for step in steps:
            try:
                await step(engine)
            except StoreUnavailable:
                raise
            except Exception as error:
                # A bug here must not end a worker's streams, or the streams of one worker after another.
                failed[step.__name__.strip("_")] = error
                if sum(isinstance(failure, DatabaseUnavailable) for failure in failed.values()) > 1:
                    break  # The database is away, and each further step would wait for it.
        return failed

    async def _run(self) -> None:
        while True:
            is_more = await self.turn()
            await (asyncio.sleep(0) if is_more else next_turn(TURN_S))

    async def _collect(self, engine: "AsyncEngine") -> None:
        self._is_more = False
        for _ in range(BATCHES_PER_TURN):
            if await self._collector.collect(engine) < BATCH:
                return  # New records wait for the next turn: a transaction costs more than many rows.
            await asyncio.sleep(BATCH_PAUSE_S)
        self._is_more = True

    async def _sync_keys(self, engine: "AsyncEngine") -> None:
        """Copy changed managed keys to Redis, in case their change did not reach it; all keys, if Redis was lost."""
        from common.access.key_ring import sync_keys

        if self._clock() < self._keys_at:
            return
        since_ms = self._pulse.redis_ms - KEYS_LOOK_BACK_MS if self._has_synced else 0
        if count := await sync_keys(engine, self._redis, since_ms):
            log.info("keys_synced", count=count)
        self._has_synced, self._keys_at = True, self._clock() + KEYS_PAUSE_S

    async def _sync_stored(self, engine: "AsyncEngine") -> None:
        """Copy what is managed at run time to Redis, if it lacks the newest revision."""
        from common.live.catalog import StoredSync

        if self._clock() < self._stored_at:
            return
        self._stored = self._stored or StoredSync(self._redis, self._secrets)
        if await self._stored.run(engine, self._pulse.redis_ms):
            log.info("stored_settings_copied")
        self._stored_at = self._clock() + KEYS_PAUSE_S

    async def _do_rare_work(self, engine: "AsyncEngine") -> None:
        from common.database.store import delete_expired_audit

        if self._is_more:
            return
        if self._clock() >= self._scan_at:
            for _ in range(SCAN_STEPS_PER_TURN):
                if await self._collector.scan(engine):
                    self._scan_at = self._clock() + SCAN_PAUSE_S
                    break
        if self._clock() >= self._audit_at:
            self._audit_at = self._clock() + AUDIT_PAUSE_S
            if count := await delete_expired_audit(engine, self._pulse.redis_ms):
                log.info("audit_entries_expired", count=count)

    async def _release_books(self) -> None:
        """Stop bookkeeping: another worker has the lease, or nobody. Its holder reports the ledger's metrics now."""
        if self._has_begun:
            self._has_begun = self._has_synced = False
            self._stored = None  # The next time, it looks at everything again.
            log.info("bookkeeping_passed_on")
            self._metrics.uncollected.set(0)
            self._metrics.oldest_uncollected.set(0)
            self._metrics.set_aside.set(0)
            self.problem = None
            await self._database.close()

    def _record_failure(self, failed: dict[str, Exception]) -> None:
        step, error = next(iter(failed.items()))
        is_away = len(failed) > 1 or step == "database"
        event = "database_away" if is_away and isinstance(error, DatabaseUnavailable) else "bookkeeping_failed"
        problem = f"{event}: {type(error).__name__}: {error}" if event != "database_away" else f"{event}: {error}"
        if problem != self.problem:
            is_ours = not isinstance(error, DatabaseUnavailable | RowRefused)
            log.error(event, step=step, error=str(error), exc_info=error if is_ours else None)
        self.problem = problem
        self._try_at = self._clock() + AWAY_PAUSES_S[min(self._failures, len(AWAY_PAUSES_S) - 1)]
        self._failures += 1

    def _record_recovery(self) -> None:
        if self._failures:
            log.info("database_back", attempts=self._failures)
        self._failures, self.problem = 0, None
