"""How does every process learn what is managed at run time?

The database has the authoritative copy. Redis has one too, as one document, so that processes need no database. Its revision is
a small key that every process reads with its pulse twice a second; only a new one makes it read the document.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from common.canonical.errors import StoreUnavailable
from common.live.stored_records import FORMAT, SealedRecord
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import redis_errors
from common.redis.scripts import Scripts


class Document(NamedTuple):
    """All records. ``revision`` grows with every change: it is the time of the change in ms, or a little more."""

    revision: int
    records: tuple[SealedRecord, ...]


class StoredCopy:
    """The copy in Redis.

    Raises (all methods):
        StoreUnavailable
    """

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)

    async def load(self) -> Document | None:
        """Return the document; None: Redis has none, because nothing was ever stored or because it has lost its data."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                packed = await self._redis.get(keyspace.STORED_CONFIG)
        return _unpack(packed) if packed else None

    async def revision(self) -> int:
        """Return the document's revision; 0: there is no document."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                revision, exists = (
                    await self._redis.get(keyspace.STORED_REVISION),
                    await self._redis.exists(keyspace.STORED_CONFIG),
                )
        return parse_revision(revision) if exists else 0

    async def publish(self, document: Document) -> bool:
        """Store a document, except where Redis has the same or a newer one. Returns whether it was stored."""
        keys = [keyspace.STORED_CONFIG, keyspace.STORED_REVISION]
        return bool(await self._scripts.run("publish", keys, [_pack(document), document.revision]))


def parse_revision(text: bytes | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _pack(document: Document) -> bytes:
    records: Sequence[object] = [[*record[:3], record.sealed.decode()] for record in document.records]
    return orjson.dumps({"format": FORMAT, "revision": document.revision, "records": records})


def _unpack(packed: bytes) -> Document:
    try:
        values = orjson.loads(packed)
        records = [
            SealedRecord(str(kind), str(name), int(form), sealed.encode()) for kind, name, form, sealed in values["records"]
        ]
        return Document(int(values["revision"]), tuple(records))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreUnavailable("what is managed at run time cannot be read by this version") from error
