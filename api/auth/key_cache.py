"""Which managed keys does this process know, and is what it knows still true?

Records are kept until the version of all records changes, which the pulse reads twice a second: so a key that is in use
costs no round trip, and a revocation is known here within two seconds, or else Redis is away and nobody is let in. What
Redis does not know is looked up in the database, for Redis may have been lost.
"""

import asyncio
import importlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import structlog

from common.access.key_records import Gone, KeyRecord, KeyRecords, principal_id
from common.access.principal import ALL, Principal
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.config.groups.access import AccessSettings
from common.config.groups.limits import LimitSettings
from common.config.settings import Settings
from common.database.lazy import LazyDatabase
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pulse import Pulse

if TYPE_CHECKING:
    from common.access.key_ring import KeyRing

log = structlog.get_logger()

KNOWN_MAX = 10_000
UNKNOWN_S = 5.0  # How long an id that is nowhere is not asked for again. Only a deleted key has one.
DATABASE_TIMEOUT_S = 3.0
RETRY_AFTER_S = 2


class Known(NamedTuple):
    """``record`` None: there is no such key, as of a moment of the monotonic clock."""

    record: KeyRecord | None
    principal: Principal | None
    looked_at: float


class Rings:
    """Gives the key ring to those who ask or change the database, which most APIs never do."""

    def __init__(self, database: LazyDatabase, redis: Client, settings: AccessSettings) -> None:
        self._database = database
        self._redis = redis
        self._secret = settings.secret

    async def load(self) -> None:
        """Import what is needed, in a thread: SQLAlchemy takes a good part of a second, in which no token must wait."""
        await asyncio.to_thread(importlib.import_module, "common.access.key_ring")

    async def open(self) -> "KeyRing":
        """
        Raises:
            DatabaseUnavailable
        """
        await self.load()
        from common.access.key_ring import KeyRing

        return KeyRing(await self._database.engine(), self._redis, self._secret)


class KnownKeys:
    def __init__(self, redis: Client, pulse: Pulse, settings: Settings, rings: Rings) -> None:
        self._records = KeyRecords(redis)
        self._pulse = pulse
        self._settings = settings
        self._rings = rings
        self._version: bytes | None = None
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._looking: dict[str, asyncio.Task[Known]] = {}
        self._origins: frozenset[str] | None = None
        self._origins_before: frozenset[str] = frozenset()
        self._is_database_well = True
        pulse.watch(("GET", keyspace.KEYS_VERSION), self._take_version, self.forget_all)  # Unknown: each is looked up anew.

    async def find(self, id_: str) -> Known:
        """Return what is known of a key.

        Raises:
            GatewayError: OVERLOADED, nobody can be asked.
        """
        if not self._pulse.is_up:
            raise _unavailable()
        known = self._known.get(id_)
        if known and (known.record or time.monotonic() - known.looked_at < UNKNOWN_S):
            self._known.move_to_end(id_)
            return known
        if id_ not in self._looking:  # One look for all who ask at once.
            task = self._looking[id_] = asyncio.create_task(self._look(id_))
            task.add_done_callback(lambda done: self._done(id_, done))
        return await asyncio.shield(self._looking[id_])

    async def origins(self) -> frozenset[str]:
        """Return the browser origins that any key allows, as they were when Redis last told."""
        if self._origins is None and self._pulse.is_up:
            version = self._version
            try:
                found = await self._records.origins()
            except StoreUnavailable:
                return self._origins_before
            self._origins_before = found
            if version == self._version:
                self._origins = found
            return found
        return self._origins_before if self._origins is None else self._origins

    def forget_all(self) -> None:
        """What this process has just changed itself need not wait for the pulse."""
        self._known.clear()
        self._looking.clear()  # Who looks now may have read what was true before.
        self._origins = None

    def _done(self, id_: str, task: "asyncio.Task[Known]") -> None:
        if self._looking.get(id_) is task:
            del self._looking[id_]
        if not task.cancelled():
            task.exception()  # All who waited may have left; asyncio would complain that nobody has seen it.

    def _take_version(self, version: bytes | None) -> None:
        if version != self._version:
            self._version = version
            self.forget_all()

    async def _look(self, id_: str) -> Known:
        me = asyncio.current_task()
        try:
            record = await self._read(id_)
        except StoreUnavailable as error:
            raise _unavailable() from error
        principal = _principal(record, self._settings) if record else None
        known = Known(record, principal, time.monotonic())
        if self._looking.get(id_) is me:  # Else something has changed since we asked, perhaps this.
            self._known[id_] = known
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return known

    async def _read(self, id_: str) -> KeyRecord | None:
        found = await self._records.load(id_)
        if found is None:
            return await self._read_from_database(id_)
        return None if isinstance(found, Gone) else found

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
            if self._is_database_well:
                log.warning("database_away", error=f"{type(error).__name__}: {error}")
            self._is_database_well = False
            raise _unavailable() from error
        self._is_database_well = True
        await self._records.put(record)
        return record


def _principal(record: KeyRecord, settings: LimitSettings) -> Principal:
    tenant_access = settings.tenants.get(record.tenant, ALL)
    return Principal(principal_id(record.id), record.tenant, access=record.access, tenant_access=tenant_access)


def _unavailable() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway cannot check your key just now: its store of keys cannot be used. Try again in {RETRY_AFTER_S} seconds.",
        code="keys_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
