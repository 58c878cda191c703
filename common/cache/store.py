"""Where are cached answers kept, and what bounds them?

In Redis: the one of both tiers, or one of its own (``SLUICE_CACHE_REDIS_URL``). All entries together have a maximum size; the
oldest are removed first, and no other key is ever removed for one. The cache only saves work, so it never fails a request:
where its Redis is away, full or slow, requests run without it, and it is left alone for a few seconds.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import hiredis
import structlog

from common.cache.entry import Entry
from common.config.groups.cache import CacheSettings
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import Client
from common.redis.errors import redis_errors
from common.redis.scripts import Scripts

log = structlog.get_logger()

TIMEOUT_S = 0.5  # A cache that needs longer does not make anything faster.
PAUSE_S = 5.0  # After a failure, requests do without the cache for so long.

Result = TypeVar("Result")


class CacheStore:
    """The cached answers. ``get`` and ``put`` never raise."""

    def __init__(self, redis: Client, settings: CacheSettings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._bytes_max = settings.cache_bytes_max
        self._entry_bytes_max = settings.cache_entry_bytes_max
        self._away_until_s = 0.0

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key. None: there is none, or the cache cannot say."""
        packed = await self._attempt("get", lambda: self._get(key))
        if not packed:
            return None
        try:
            return Entry.unpack(packed)
        except ValueError as error:
            log.warning("cache_entry_unreadable", error=str(error))
            return None

    async def put(self, entry: Entry) -> bool:
        """Store an entry. Return whether it is stored."""
        packed = entry.pack()
        if len(packed) > self._entry_bytes_max:
            return False
        args = [entry.key, packed, entry.ttl_ms, self._bytes_max, entry.tenant, entry.model, entry.target]
        return bool(await self._attempt("put", lambda: self._scripts.run("put", [], args)))

    async def _get(self, key: str) -> bytes | None:
        command: tuple[Any, ...] = ("GET", keyspace.cache_entry(key))
        with redis_errors():
            (answer,) = await self._redis.reads.run([hiredis.pack_command(command)])
            if isinstance(answer, Exception):
                raise answer
        return answer if isinstance(answer, bytes) else None

    async def _attempt(self, name: str, run: Callable[[], Awaitable[Result]]) -> Result | None:
        """Return the result of a command; None if there is none."""
        now_s = time.monotonic()
        if now_s < self._away_until_s:
            return None
        if self._away_until_s:
            self._away_until_s = (
                now_s + PAUSE_S
            )  # One request tries it again. The others must not wait for a cache that is away.
        try:
            with redis_errors():
                async with lag_aware_timeout(TIMEOUT_S):
                    result = await run()
            self._away_until_s = 0.0
            return result
        except Exception as error:  # Whatever is wrong with the cache, the request goes on without it.
            self._away_until_s = time.monotonic() + PAUSE_S
            log.warning(
                "cache_away", command=name, error=str(error), mend="check SLUICE_CACHE_REDIS_URL; requests run uncached"
            )
            return None
