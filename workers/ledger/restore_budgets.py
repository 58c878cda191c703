"""How do the budgets' counters come back when Redis has lost them?

A marker beside the counters says that they include what the database knows. If it is missing, the sums of this day and this
month are added to what was spent since. Nothing may be collected before that: generations that ended meanwhile are in the
counters already, and must not be in the sums too.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from common.limits.charges import periods, safe_name
from common.limits.shared_lua import COUNTERS
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import redis_errors
from common.redis.scripts import Scripts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger()

DAY_EXPIRY_S, MONTH_EXPIRY_S = 3 * 86_400, 40 * 86_400


class BudgetRestorer:
    """Loads the counters from the database. Every method may raise ``StoreUnavailable`` and ``DatabaseUnavailable``."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent, COUNTERS)

    async def load(self, engine: "AsyncEngine") -> None:
        """Add the sums from the database to the counters, if they do not include them yet."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                if await self._redis.get(keyspace.SPENT_LOADED) == b"loaded":
                    return
                seconds, micros = await self._redis.time()
                now_ms = seconds * 1000 + micros // 1000
                # Overwrite any earlier value: a worker that began before us is dead, or will see that we have started again.
                loading = f"loading {now_ms}"
                await self._redis.set(keyspace.SPENT_LOADED, loading)
        counters = await _counters(engine, now_ms)
        args: list[object] = [loading]
        for amount, expiry_s in counters.values():
            args += (amount, expiry_s)
        is_done = await self._scripts.run("load_spent", [keyspace.SPENT_LOADED, *counters], args)
        log.info("budgets_loaded", counters=len(counters), is_done=bool(is_done))


async def _counters(engine: "AsyncEngine", now_ms: int) -> dict[str, tuple[int, int]]:
    """Return the amount in nano-dollars and the expiry in seconds by the counter's key."""
    from common.ledger.reports import day_begins_ms, month_begins_ms, spent

    day, month = periods(datetime.fromtimestamp(now_ms / 1000, UTC))
    counters: dict[str, tuple[int, int]] = {}
    spans = [(day, day_begins_ms(now_ms), DAY_EXPIRY_S), (month, month_begins_ms(now_ms), MONTH_EXPIRY_S)]
    for period, since_ms, expiry_s in spans:
        for (scope, name), nano in (await spent(engine, since_ms, now_ms)).items():
            counter = keyspace.spent(scope, safe_name(name), period)
            counters[counter] = (counters.get(counter, (0, 0))[0] + nano, expiry_s)
    return counters
