"""Which managed keys does this process know, and are its copies still true?

The cache is valid until the version of all records changes. The pulse reads that version twice a second. So a key in use costs
no round trip, and a revocation takes effect here within two seconds. If Redis does not answer, no managed key is accepted. A
key that Redis does not have is read from the database, since Redis may have lost it.
"""

import asyncio
import importlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import structlog

from common.access.key_records import DeletedKey, KeyRecord, KeyRecords
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.wording import try_again
from common.config.groups.access import AccessSettings
from common.database.lazy import LazyDatabase
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pulse import Pulse

if TYPE_CHECKING:
    from common.access.key_ring import KeyRing

log = structlog.get_logger()

KEYS_MAX = 10_000
UNKNOWN_S = 5.0  # For how long an id that does not exist is not looked up again. Normally only a deleted key has such an id.
DATABASE_TIMEOUT_S = 3.0
RETRY_AFTER_S = 2


class CachedKey(NamedTuple):
    """``record`` is None if there is no such key. ``fetched_at`` is a moment of the monotonic clock."""

    record: KeyRecord | None
    fetched_at: float


class KeyRings:
    """Makes a key ring for code that needs the database. Most API processes never need one, so its imports are lazy."""

    def __init__(self, database: LazyDatabase, redis: Client, settings: AccessSettings) -> None:
        self._database = database
        self._redis = redis
        self._secret = settings.secret

    async def load(self) -> None:
        """Import the modules in a thread. SQLAlchemy takes a large part of a second, and that must not delay any token."""
        await asyncio.to_thread(importlib.import_module, "common.access.key_ring")

    async def open(self) -> "KeyRing":
        """Return a key ring on an open database.

        Raises:
            DatabaseUnavailable
        """
        await self.load()
        from common.access.key_ring import KeyRing

        return KeyRing(await self._database.engine(), self._redis, self._secret)


class KeyCache:
    def __init__(self, redis: Client, pulse: Pulse, rings: KeyRings) -> None:
        self._records = KeyRecords(redis)
        self._pulse = pulse
        self._rings = rings
        self._version: bytes | None = None
        self._keys: OrderedDict[str, CachedKey] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[CachedKey]] = {}
        self._origins: frozenset[str] | None = None
        self._origins_before: frozenset[str] = frozenset()
        self._is_database_healthy = True
        # When the pulse does not know the version, every key is looked up again.
        pulse.watch(("GET", keyspace.KEYS_VERSION), self._set_version, self.forget_all)

    async def find(self, id_: str) -> CachedKey:
        """Return a key by its id.

        Raises:
            GatewayError: OVERLOADED, neither Redis nor the database can be asked.
        """
        if not self._pulse.is_up:
            raise _unavailable()
        key = self._keys.get(id_)
        if key and (key.record or time.monotonic() - key.fetched_at < UNKNOWN_S):
            self._keys.move_to_end(id_)
            return key
        if id_ not in self._lookups:  # One lookup for all requests that need the key now.
            task = self._lookups[id_] = asyncio.create_task(self._fetch_key(id_))
            task.add_done_callback(lambda task: self._end_lookup(id_, task))
        return await asyncio.shield(self._lookups[id_])

    async def origins(self) -> frozenset[str]:
        """Return the browser origins that any key allows, as Redis last reported them."""
        if self._origins is None and self._pulse.is_up:
            version = self._version
            try:
                origins = await self._records.origins()
            except StoreUnavailable:
                return self._origins_before
            self._origins_before = origins
            if version == self._version:
                self._origins = origins
            return origins
        return self._origins_before if self._origins is None else self._origins

    def forget_all(self) -> None:
        """Drop everything, after a change that this process made itself: it need not wait for the pulse."""
        self._keys.clear()
        self._lookups.clear()  # A lookup that runs now may have read the values from before the change.
        self._origins = None

    def _end_lookup(self, id_: str, task: "asyncio.Task[CachedKey]") -> None:
        if self._lookups.get(id_) is task:
            del self._lookups[id_]
        if not task.cancelled():
            task.exception()  # All waiting requests may have left. Without this, asyncio logs that nobody saw the exception.

    def _set_version(self, version: bytes | None) -> None:
        if version != self._version:
            self._version = version
            self.forget_all()

    async def _fetch_key(self, id_: str) -> CachedKey:
        this_task = asyncio.current_task()
        try:
            record = await self._read(id_)
        except StoreUnavailable as error:
            raise _unavailable() from error
        key = CachedKey(record, time.monotonic())
        if self._lookups.get(id_) is this_task:  # Otherwise some key has changed since we asked, perhaps this one.
            self._keys[id_] = key
            while len(self._keys) > KEYS_MAX:
                self._keys.popitem(last=False)
        return key

    async def _read(self, id_: str) -> KeyRecord | None:
        record = await self._records.load(id_)
        if record is None:
            return await self._read_from_database(id_)
        return None if isinstance(record, DeletedKey) else record

    async def _read_from_database(self, id_: str) -> KeyRecord | None:
        await self._rings.load()
        from common.access.key_ring import UnknownKey
        from common.database.engine import DatabaseUnavailable

        try:
            async with asyncio.timeout(DATABASE_TIMEOUT_S):
                record = await (await self._rings.open()).find(id_)
        except UnknownKey:
            return None
        except (DatabaseUnavailable, TimeoutError) as error:
            if self._is_database_healthy:
                log.warning("database_away", error=f"{type(error).__name__}: {error}")
            self._is_database_healthy = False
            raise _unavailable() from error
        self._is_database_healthy = True
        await self._records.store(record)
        return record


def _unavailable() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway cannot check your key now: its key store is not available. {try_again(RETRY_AFTER_S)}",
        code="keys_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
