"""What is stored about a managed key, and how does every process learn it?

The database is the source of truth. Redis has a copy, so that nobody is refused while the database is away. There is one
record per key, without an expiry, and one ``version``: a random text that changes with every change of any record. Each
process reads the version with its pulse twice a second; while it is the same, the records that the process knows are current.

A script writes the records, and never replaces a newer one by an older one. So a writer with old data (a process that read
the database a while ago, the workers' bookkeeper) cannot bring a revoked key back.
"""

import hmac
import secrets
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from common.access.key_text import ParsedKey, is_id
from common.access.principal import Access
from common.canonical.errors import StoreUnavailable
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import redis_errors
from common.redis.scripts import Scripts

DELETED_S = 3600  # How long the record of a deleted key stays: longer than any writer's delay.


class KeyRecord(BaseModel):
    """A managed key without its text. Times are UTC in ms since 1970. ``updated_ms`` grows with every change."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    tenant: str
    secret_hash: str
    previous_hash: str | None = None
    previous_until_ms: int | None = None
    access: Access = Access()
    is_disabled: bool = False
    expires_ms: int | None = None
    created_ms: int
    updated_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored. Of the access only what is set: an older version refuses a key whose access has fields that it
        does not know, so during an update it refuses no keys but those that use new fields.
        """
        return self.model_dump(exclude={"access"}) | {"access": self.access.model_dump(mode="json", exclude_defaults=True)}

    def accepts(self, key: ParsedKey, now_ms: int) -> bool:
        """Whether this is the key's secret, or its previous one during a rotation's overlap. Takes constant time."""
        is_current = hmac.compare_digest(self.secret_hash, key.secret_hash)
        is_previous = hmac.compare_digest(self.previous_hash or "", key.secret_hash)
        is_overlap = self.previous_hash is not None and now_ms < (self.previous_until_ms or 0)
        return is_current or (is_previous and is_overlap)

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_ms is not None and now_ms >= self.expires_ms


class DeletedKey(BaseModel):
    """The record of a deleted key, for a while."""

    deleted: bool
    updated_ms: int


class KeyRecords:
    """The records in Redis.

    Raises (all methods):
        StoreUnavailable
    """

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)

    async def load(self, id_: str) -> KeyRecord | DeletedKey | None:
        """Return a key's record. None: Redis does not know the key."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                stored = await self._redis.get(keyspace.managed_key(id_))
        return _parse(stored) if stored else None

    async def store(self, *records: KeyRecord) -> int:
        """Store records, except where Redis has the same or a newer one. Returns how many were stored."""
        calls = [self._call(record) for record in records]
        answers = await self._scripts.run_many(calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return sum(answers)

    async def forget(self, id_: str, updated_ms: int) -> None:
        """Replace a deleted key's record by a ``DeletedKey``, with the time of its deletion."""
        deleted = DeletedKey(deleted=True, updated_ms=updated_ms).model_dump_json()
        await self._scripts.run("store", _script_keys(id_), [deleted, updated_ms, "", _new_version(), DELETED_S, id_])

    async def origins(self) -> frozenset[str]:
        """Return the browser origins that any key allows."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                lists: list[bytes] = await self._redis.hvals(keyspace.KEY_ORIGINS)  # type: ignore[misc]  # redis-py.
        return frozenset(origin for packed in lists for origin in orjson.loads(packed))

    async def is_empty(self) -> bool:
        """Whether Redis has no data about keys: it is new, or has lost its data."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                return not await self._redis.exists(keyspace.KEYS_VERSION)

    async def begin(self) -> None:
        """Record that Redis has all keys, even if there are none."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self._redis.set(keyspace.KEYS_VERSION, _new_version(), nx=True)

    def _call(self, record: KeyRecord) -> tuple[str, list[str], list[str | int]]:
        origins = record.access.cors_origins
        listed = orjson.dumps(origins).decode() if origins and not record.is_disabled else ""
        packed = orjson.dumps(record.to_dict()).decode()
        args: list[str | int] = [packed, record.updated_ms, listed, _new_version(), 0, record.id]
        return "store", _script_keys(record.id), args


def principal_id(id_: str) -> str:
    """Return the principal that owns the generations of a key. A rotation does not change it."""
    return f"key_{id_}"


def managed_id(principal: str) -> str | None:
    """Return the id of the managed key behind a principal. None: it is not a managed key's."""
    prefix, _, id_ = principal.partition("_")
    return id_ if prefix == "key" and is_id(id_) else None


def _script_keys(id_: str) -> list[str]:
    return [keyspace.managed_key(id_), keyspace.KEYS_VERSION, keyspace.KEY_ORIGINS]


def _new_version() -> str:
    return secrets.token_hex(8)  # Not a counter: after a loss of Redis' data a counter would reach the same number again.


def _parse(stored: bytes) -> KeyRecord | DeletedKey:
    try:
        return DeletedKey.model_validate_json(stored) if b'"deleted"' in stored[:12] else KeyRecord.model_validate_json(stored)
    except ValidationError as error:  # Another version of Sluice wrote it. We do not admit anybody on a guess.
        raise StoreUnavailable("a managed key's record cannot be read by this version") from error
