"""How are providers and routes added, changed and removed while Sluice runs?

A change goes to the database first, then to Redis. If the second step fails, the change is made but not yet known to the
processes: the workers' bookkeeper copies it within seconds (``StoredSync``).

Each change names the revision that it has read, and makes the next one. Of two changes at the same time, the later one reads
again. So every document in Redis is one state of the database, never a mixture.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import structlog
from pydantic import SecretStr
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.canonical.errors import StoreUnavailable
from common.config.setting_sources import Inputs
from common.database.engine import database_errors
from common.database.errors import Busy
from common.database.tables import StoredRow
from common.live.changes import Change, NoSuchRecord, NotPossible
from common.live.live_settings import find_problem
from common.live.stored_copy import Document, StoredCopy
from common.live.stored_records import ENTRIES_MAX, FORMAT, SEALED_BYTES_MAX, Kind, Record, SealedRecord
from common.redis.client import Client

log = structlog.get_logger()

_ATTEMPTS_MAX = 20  # Of a change while others make changes. At each failed attempt another change has succeeded.
_REVISION = "revision"  # The kind of the row that has the revision.

Result = TypeVar("Result")


class Changed(NamedTuple):
    """A record after a change. Not ``is_served``: Redis does not have the change yet."""

    record: Record
    is_served: bool


class Catalog:
    """What is managed at run time, in a database that has our tables. ``secrets``: the first one encrypts.

    Raises (all methods):
        DatabaseUnavailable
    """

    def __init__(self, engine: AsyncEngine, redis: Client, secrets: Sequence[SecretStr]) -> None:
        self._engine = engine
        self._copy = StoredCopy(redis)
        self._secrets = secrets

    async def document(self) -> Document:
        with database_errors():
            async with self._engine.connect() as connection:
                return await _read(connection)

    async def change(self, kind: Kind, name: str, change: Change, inputs: Inputs) -> Changed:
        """Add or change one record. One that cannot be used with ``inputs``, the environment and the files here, is refused.

        Raises:
            NotPossible, Busy, and what ``change`` raises
        """
        if not self._secrets:
            raise NotPossible("It needs SLUICE_SECRET, the same for all processes: keys of providers are encrypted with it.")

        def changed(document: Document) -> tuple[list[SealedRecord], Record]:
            present = _find(document, kind, name)
            old = present.open(self._secrets) if present else None
            if present and old is None:
                raise NotPossible(present.why_unreadable(self._secrets))
            new = change(old)
            others = [record for record in document.records if record is not present]
            _check(new, others, inputs)
            sealed = new.seal(self._secrets[0])
            if len(others) >= ENTRIES_MAX or len(sealed) > SEALED_BYTES_MAX:
                raise NotPossible(f"There can be at most {ENTRIES_MAX} providers and routes, of {SEALED_BYTES_MAX} bytes each.")
            return [*others, SealedRecord(kind, name, FORMAT, sealed)], new

        document, record = await self._replace(changed)
        return Changed(record, await self._serve(document))

    async def remove(self, kind: Kind, name: str) -> bool:
        """Remove one record, even one that nobody can decrypt any more. Returns whether Redis has the change.

        Raises:
            NoSuchRecord, Busy
        """

        def without(document: Document) -> tuple[list[SealedRecord], None]:
            present = _find(document, kind, name)
            if present is None:
                raise NoSuchRecord
            return [record for record in document.records if record is not present], None

        document, _ = await self._replace(without)
        return await self._serve(document)

    async def tidy(self, now_ms: int) -> tuple[Document, int | None]:
        """Remove keys whose overlap is over, and encrypt anew what only the previous secret decrypts.

        Returns the document, and the next time at which a key's overlap ends.
        """
        document = await self.document()
        if not self._secrets:
            return document, None
        if any(_tidied(record, self._secrets, now_ms) != record for record in document.records):

            def tidy(document: Document) -> tuple[list[SealedRecord], None]:
                return [_tidied(record, self._secrets, now_ms) for record in document.records], None

            document, _ = await self._replace(tidy)
        records = [record for sealed in document.records if (record := sealed.open(self._secrets))]
        ends_ms = [key.until_ms for record in records for key in record.keys if key.until_ms is not None]
        return document, min(ends_ms, default=None)

    async def _replace(self, change: Callable[[Document], tuple[list[SealedRecord], Result]]) -> tuple[Document, Result]:
        """Store other records in place of the present ones, if nobody else has changed them meanwhile."""
        for _ in range(_ATTEMPTS_MAX):
            with database_errors():
                async with self._engine.begin() as connection:
                    old = await _read(connection)
                    records, result = change(old)
                    revision = max(_now_ms(), old.revision + 1)
                    is_unchanged = (StoredRow.kind == _REVISION) & (StoredRow.updated_ms == old.revision)
                    moved = await connection.execute(update(StoredRow).where(is_unchanged).values(updated_ms=revision))
                    if not moved.rowcount:
                        continue
                    await _write(connection, old.records, records, revision)
            return Document(revision, tuple(records)), result
        raise Busy

    async def _serve(self, document: Document) -> bool:
        try:
            await self._copy.publish(document)
        except StoreUnavailable:
            return False
        return True


class StoredSync:
    """Copies the database's state to Redis for the bookkeeper, which calls ``run`` every few seconds."""

    def __init__(self, redis: Client, secrets: Sequence[SecretStr]) -> None:
        self._redis = redis
        self._secrets = secrets
        self._copy = StoredCopy(redis)
        self._tidied_revision = -1
        self._next_end_ms: int | None = None

    async def run(self, engine: AsyncEngine, now_ms: int) -> bool:
        """Return whether Redis got a document that it did not have.

        Raises:
            DatabaseUnavailable, StoreUnavailable
        """
        with database_errors():
            async with engine.connect() as connection:
                revision = await _revision(connection)
        is_over = self._next_end_ms is not None and now_ms >= self._next_end_ms
        if revision == self._tidied_revision and not is_over and await self._copy.revision() >= revision:
            return False
        document, self._next_end_ms = await Catalog(engine, self._redis, self._secrets).tidy(now_ms)
        self._tidied_revision = document.revision
        return bool(document.revision) and await self._copy.publish(document)


def _find(document: Document, kind: Kind, name: str) -> SealedRecord | None:
    return next((record for record in document.records if (record.kind, record.name) == (kind, name)), None)


def _check(new: Record, others: Sequence[SealedRecord], inputs: Inputs) -> None:
    entry = new.entry(_now_ms())
    stored_providers = [record.name for record in others if record.kind == "provider"]
    if entry and (problem := find_problem(inputs, entry, stored_providers)):
        raise NotPossible(f"It cannot be used: {problem}")


def _tidied(sealed: SealedRecord, secrets: Sequence[SecretStr], now_ms: int) -> SealedRecord:
    record = sealed.open(secrets)
    if record is None:
        return sealed  # It is reported by every process that cannot read it.
    keys = tuple(key for key in record.keys if not key.is_over(now_ms))
    if len(keys) == len(record.keys) and sealed.open(secrets[:1]):
        return sealed
    return sealed._replace(format=FORMAT, sealed=record.model_copy(update={"keys": keys}).seal(secrets[0]))


async def _revision(connection: AsyncConnection) -> int:
    chosen = select(StoredRow.updated_ms).where(StoredRow.kind == _REVISION)
    return int((await connection.execute(chosen)).scalar_one())


async def _read(connection: AsyncConnection) -> Document:
    chosen = select(StoredRow.kind, StoredRow.name, StoredRow.format, StoredRow.sealed, StoredRow.updated_ms).order_by(
        StoredRow.kind, StoredRow.name
    )
    rows = list((await connection.execute(chosen)).all())
    revision = next(row.updated_ms for row in rows if row.kind == _REVISION)
    records = tuple(SealedRecord(row.kind, row.name, row.format, row.sealed) for row in rows if row.kind != _REVISION)
    return Document(revision, records)


async def _write(connection: AsyncConnection, old: Sequence[SealedRecord], new: Sequence[SealedRecord], revision: int) -> None:
    for record in set(old) - set(new):
        is_this = (StoredRow.kind == record.kind) & (StoredRow.name == record.name)
        await connection.execute(delete(StoredRow).where(is_this))
    for record in set(new) - set(old):
        await connection.execute(insert(StoredRow).values(**record._asdict(), updated_ms=revision))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
