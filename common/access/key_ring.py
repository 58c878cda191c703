"""How are managed keys made, changed, deleted and looked up?

A change goes to the database first, then to Redis. If the second step fails, the change is made but not yet known to every
process. The caller learns that from ``is_served``. Repeating the change completes it, and so does the workers' bookkeeper
within seconds (``sync_keys``).

Two callers may change the same key at once: each update names the state that it has read, and the later one reads again.
A deletion disables the key first, so that a key whose deletion stopped half-way is already useless.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from pydantic import SecretStr, ValidationError
from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from common.access.key_records import KeyRecord, KeyRecords
from common.access.key_text import mint, new_id
from common.access.principal import ALL, Access
from common.canonical.errors import StoreUnavailable
from common.database.engine import DatabaseUnavailable, database_errors
from common.database.errors import Busy
from common.database.tables import ManagedKey
from common.redis.client import Client

log = structlog.get_logger()

NAME_MAX, TENANT_MAX = 255, 64
OVERLAP_S_MAX = 30 * 86_400
BATCH = 500
_ATTEMPTS_MAX = 20  # Of a change while others change the same key. At each failed attempt another change has succeeded.
Change = Callable[[KeyRecord], Mapping[str, Any]]  # From the present record to the fields to change.
_COLUMNS = ManagedKey.__table__.columns


class UnknownKey(Exception):
    """There is no managed key with this id."""


class Changed(NamedTuple):
    """A record after a change. Not ``is_served``: Redis does not have the change yet."""

    record: KeyRecord
    is_served: bool


class Minted(NamedTuple):
    """A key that was created or rotated. ``text`` is available only here, once."""

    text: SecretStr
    record: KeyRecord
    is_served: bool


@dataclass(frozen=True, slots=True)
class NewKey:
    """The properties of a new key. Without a ``tenant`` the key is its own tenant."""

    name: str = ""
    tenant: str = ""
    access: Access = ALL
    expires_ms: int | None = None


class KeyRing:
    """The managed keys, in a database that has our tables.

    Raises (all methods):
        DatabaseUnavailable
    """

    def __init__(self, engine: AsyncEngine, redis: Client, secret: SecretStr | None) -> None:
        self._engine = engine
        self._records = KeyRecords(redis)
        self._secret = secret

    async def create(self, new: NewKey) -> Minted:
        id_, now_ms = new_id(), _now_ms()
        text, secret_hash = mint(id_, self._require_secret())
        record = KeyRecord(
            id=id_,
            name=new.name,
            tenant=new.tenant or f"key_{id_}",
            secret_hash=secret_hash,
            access=new.access,
            expires_ms=new.expires_ms,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        with database_errors():
            async with self._engine.begin() as connection:
                await connection.execute(insert(ManagedKey).values(record.to_dict()))
        return Minted(SecretStr(text), record, await self._serve(record))

    async def find(self, id_: str) -> KeyRecord:
        """
        Raises:
            UnknownKey
        """
        with database_errors():
            async with self._engine.connect() as connection:
                row = (await connection.execute(select(*_COLUMNS).where(ManagedKey.id == id_))).mappings().first()
        if row is None:
            raise UnknownKey(id_)
        return _record(row)

    async def list(self, tenant: str | None = None, after: str = "", limit: int = BATCH) -> "list[KeyRecord]":
        """Return the keys after the id ``after``, sorted by id. Ids are not ordered by time."""
        chosen = select(*_COLUMNS).where(ManagedKey.id > after).order_by(ManagedKey.id).limit(limit)
        if tenant is not None:
            chosen = chosen.where(ManagedKey.tenant == tenant)
        with database_errors():
            async with self._engine.connect() as connection:
                return [_record(row) for row in (await connection.execute(chosen)).mappings()]

    async def rotate(self, id_: str, overlap_s: float = 0) -> Minted:
        """Give a key a new secret. The previous secret stays valid for ``overlap_s``.

        Raises:
            UnknownKey, Busy
        """
        text, secret_hash = mint(id_, self._require_secret())

        def rotated(old: KeyRecord) -> Mapping[str, Any]:
            until_ms = _now_ms() + int(overlap_s * 1000)
            previous = {"previous_hash": old.secret_hash, "previous_until_ms": until_ms}
            none = {"previous_hash": None, "previous_until_ms": None}
            return {"secret_hash": secret_hash, **(previous if overlap_s > 0 else none)}

        record = await self._change(id_, rotated)
        return Minted(SecretStr(text), record, await self._serve(record))

    async def update(self, id_: str, change: Change) -> Changed:
        """Change ``name``, ``tenant``, ``access``, ``is_disabled`` or ``expires_ms``. Without changes, write it to Redis again.

        Raises:
            UnknownKey, Busy
        """
        record = await self._change(id_, change)
        return Changed(record, await self._serve(record))

    async def delete(self, id_: str) -> bool:
        """Delete a key. Returns whether Redis has the deletion too. Deleting it again does the same.

        Raises:
            Busy
        """
        updated_ms = _now_ms()
        for _ in range(_ATTEMPTS_MAX):
            try:
                record = await self._change(id_, lambda old: {"is_disabled": True})
            except UnknownKey:
                break
            updated_ms = record.updated_ms + 1
            if not await self._serve(record):
                return False  # It is disabled and still in the database, so the bookkeeper will write it to Redis.
            if await self._remove(record):
                break
        else:
            raise Busy(id_)
        try:
            await self._records.forget(id_, updated_ms)
        except StoreUnavailable:
            return False
        return True

    async def _remove(self, record: KeyRecord) -> bool:
        """Delete a row, unless it has been changed since it was read."""
        with database_errors():
            async with self._engine.begin() as connection:
                return bool((await connection.execute(delete(ManagedKey).where(_is_as_read(record)))).rowcount)

    async def _change(self, id_: str, change: Change) -> KeyRecord:
        for _ in range(_ATTEMPTS_MAX):
            old = await self.find(id_)
            changes = change(old)
            if not changes:
                return old
            updated_ms = max(_now_ms(), old.updated_ms + 1)  # It always grows, even if the clocks of two machines differ.
            new = old.model_copy(update={**changes, "updated_ms": updated_ms})
            with database_errors():
                async with self._engine.begin() as connection:
                    result = await connection.execute(update(ManagedKey).where(_is_as_read(old)).values(new.to_dict()))
            if result.rowcount:
                return new
        raise Busy(id_)

    async def _serve(self, record: KeyRecord) -> bool:
        try:
            await self._records.store(record)
        except StoreUnavailable:
            return False
        return True

    def _require_secret(self) -> SecretStr:
        if self._secret is None:
            raise ValueError("managed keys need SLUICE_SECRET, the same for all processes")
        return self._secret


async def sync_keys(engine: AsyncEngine, redis: Client, since_ms: int) -> int:
    """Write to Redis the keys that were changed since ``since_ms``, or all keys where Redis has lost its data.

    Returns how many records were new to Redis. Clocks differ, so a caller that runs this every few seconds passes a time some
    minutes back, and 0 the first time.

    Raises:
        DatabaseUnavailable, StoreUnavailable
    """
    records, news = KeyRecords(redis), 0
    since_ms = 0 if await records.is_empty() else since_ms
    last = (since_ms, "")
    while True:
        is_next = (ManagedKey.updated_ms > last[0]) | ((ManagedKey.updated_ms == last[0]) & (ManagedKey.id > last[1]))
        chosen = select(*_COLUMNS).where(is_next).order_by(ManagedKey.updated_ms, ManagedKey.id).limit(BATCH)
        with database_errors():
            async with engine.connect() as connection:
                rows = list((await connection.execute(chosen)).mappings())
        news += await records.store(*_readable_records(rows))
        if len(rows) < BATCH:
            break
        last = (rows[-1]["updated_ms"], rows[-1]["id"])
    await records.begin()
    return news


def _is_as_read(record: KeyRecord) -> ColumnElement[bool]:
    return and_(ManagedKey.id == record.id, ManagedKey.updated_ms == record.updated_ms)


def _record(row: Mapping[Any, Any]) -> KeyRecord:
    try:
        return KeyRecord.model_validate(dict(row))
    except ValidationError as error:  # Another version of Sluice wrote it.
        raise DatabaseUnavailable(f"the key {row['id']} cannot be read by this version of Sluice") from error


def _readable_records(rows: Sequence[Mapping[Any, Any]]) -> Iterator[KeyRecord]:
    """Yield the records that can be read. An unreadable one does not hold up the others."""
    for row in rows:
        try:
            yield _record(row)
        except DatabaseUnavailable as error:
            log.warning("key_unreadable", error=str(error))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
