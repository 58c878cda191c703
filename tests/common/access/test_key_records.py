"""Which record of a managed key stays in Redis, whatever the order in which they come?"""

import orjson
import pytest
from redis.asyncio import Redis

from common.access.key_records import DELETED_S, DeletedKey, KeyRecord, KeyRecords
from common.access.principal import Access
from common.redis import keyspace

RECORD = KeyRecord(id="a1", name="first", tenant="acme", secret_hash="h", created_ms=1, updated_ms=1_000)
ORIGINS = Access(cors_origins=("https://a.example",))


@pytest.fixture
def records(redis: Redis) -> KeyRecords:
    return KeyRecords(redis)


def changed(**fields: object) -> KeyRecord:
    return RECORD.model_copy(update=fields)


@pytest.mark.parametrize(
    ("second", "is_stored"),
    [
        (RECORD, False),
        (changed(name="older", updated_ms=999), False),
        (changed(name="as old", updated_ms=1_000), True),
        (changed(name="newer", updated_ms=1_001), True),
    ],
)
async def test_a_record_replaces_what_is_not_newer(records, redis, second, is_stored):
    assert await records.store(RECORD) == 1
    version = await redis.get(keyspace.KEYS_VERSION)

    assert await records.store(second) == is_stored

    assert await records.load("a1") == (second if is_stored else RECORD)
    assert (await redis.get(keyspace.KEYS_VERSION) != version) == is_stored
    assert await redis.ttl(keyspace.managed_key("a1")) == -1


async def test_what_is_no_record_is_replaced(records, redis):
    await redis.set(keyspace.managed_key("a1"), "none of ours")

    assert await records.store(RECORD) == 1
    assert await records.load("a1") == RECORD


async def test_several_records_are_counted_one_by_one(records):
    await records.store(RECORD)

    assert await records.store(RECORD, changed(id="b2"), changed(id="c3")) == 2


async def test_the_origins_of_a_key_follow_its_record(records, redis):
    await records.store(changed(access=ORIGINS))
    assert await records.origins() == {"https://a.example"}
    assert await redis.hgetall(keyspace.KEY_ORIGINS) == {b"a1": orjson.dumps(["https://a.example"])}

    await records.store(changed(access=ORIGINS, updated_ms=2_000, is_disabled=True))
    assert await records.origins() == frozenset()

    await records.store(changed(access=ORIGINS, updated_ms=3_000), changed(id="b2", access=ORIGINS))
    await records.forget("a1", 4_000)
    assert await redis.hkeys(keyspace.KEY_ORIGINS) == [b"b2"]


async def test_a_deleted_key_stays_deleted_for_a_while(records, redis):
    await records.store(RECORD)

    await records.forget("a1", 2_000)

    assert await records.load("a1") == DeletedKey(deleted=True, updated_ms=2_000)
    assert DELETED_S - 60 < await redis.ttl(keyspace.managed_key("a1")) <= DELETED_S
    assert await records.store(changed(updated_ms=1_999)) == 0
    assert await records.store(changed(updated_ms=2_001)) == 1


async def test_redis_knows_whether_it_has_the_keys(records, redis):
    assert await records.is_empty()

    await records.begin()
    version = await redis.get(keyspace.KEYS_VERSION)
    await records.begin()

    assert not await records.is_empty()
    assert await redis.get(keyspace.KEYS_VERSION) == version
