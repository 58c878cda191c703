"""Managed keys on both databases and a real Redis."""

import asyncio
import json
from decimal import Decimal

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import text, update

from common.access.key_records import DeletedKey, KeyRecord, KeyRecords
from common.access.key_ring import KeyRing, NewKey, UnknownKey, sync_keys
from common.access.key_text import new_id, parse_key
from common.access.principal import Access, Budget, Limits
from common.canonical.errors import StoreUnavailable
from common.database.engine import DatabaseUnavailable, open_database
from common.database.migrate import migrate
from common.database.tables import ManagedKey
from common.redis import keyspace
from common.redis.client import connect

SECRET = SecretStr("a long random text that all processes share")
ORIGIN = "https://app.example"


@pytest.fixture
async def engine(database_url: str):
    await migrate(database_url)
    found = open_database(database_url)
    yield found
    await found.dispose()


@pytest.fixture
def ring(engine, redis: Redis) -> KeyRing:
    return KeyRing(engine, redis, SECRET)


@pytest.fixture
async def deaf(engine):
    """The same keys, where Redis is away."""
    nowhere = connect("redis://127.0.0.1:9")
    yield KeyRing(engine, nowhere, SECRET)
    await nowhere.aclose()


async def test_a_new_key_is_in_the_database_and_served_from_redis_without_its_text(ring, redis):
    made = await ring.create(NewKey("shop", "acme", Access(models=("gpt-*",)), 5_000))

    text_ = made.text.get_secret_value()
    presented = parse_key(text_, SECRET)
    served = await KeyRecords(redis).load(made.record.id)
    assert made.is_served
    assert served == made.record == await ring.find(made.record.id)
    assert served.accepts(presented, 0)
    assert (served.name, served.tenant, served.access.models, served.expires_ms) == ("shop", "acme", ("gpt-*",), 5_000)
    stored = b"".join([await redis.get(key) for key in await redis.keys("sluice:key:*")])
    assert text_.encode() not in stored
    assert text_[-38:-8].encode() not in stored
    assert text_ not in repr(made)


async def test_its_tenant_is_its_own_where_none_is_named(ring):
    made = await ring.create(NewKey())

    assert made.record.tenant == f"key_{made.record.id}"


async def test_a_rotated_key_keeps_its_id_and_its_old_text_for_the_overlap_only(ring):
    old = await ring.create(NewKey("k"))
    id_ = old.record.id

    new = await ring.rotate(id_, overlap_s=60)
    again = await ring.rotate(id_)

    texts = [parse_key(each.text.get_secret_value(), SECRET) for each in (old, new, again)]
    now_ms = new.record.updated_ms
    assert {each.id for each in texts} == {id_}
    assert [new.record.accepts(each, now_ms) for each in texts] == [True, True, False]
    assert [new.record.accepts(each, now_ms + 61_000) for each in texts] == [False, True, False]
    assert [again.record.accepts(each, now_ms) for each in texts] == [False, False, True]


async def test_every_change_makes_a_new_version_and_only_a_change(ring, redis):
    versions = []

    async def note() -> None:
        versions.append(await redis.get(keyspace.KEYS_VERSION))

    made = await ring.create(NewKey())
    await note()
    await ring.update(made.record.id, lambda _: {})
    await note()
    await ring.update(made.record.id, lambda _: {"is_disabled": True})
    await note()
    await ring.delete(made.record.id)
    await note()

    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


async def test_changes_of_many_at_once_are_all_made(ring):
    made = await ring.create(NewKey("", access=Access(models=())))

    def add(number: int):
        return lambda old: {"access": Access(models=(*(old.access.models or ()), f"m{number}"))}

    await asyncio.gather(*(ring.update(made.record.id, add(number)) for number in range(8)))

    found = await ring.find(made.record.id)
    assert sorted(found.access.models) == [f"m{number}" for number in range(8)]
    assert (await ring.update(made.record.id, lambda _: {})).record == found


async def test_a_deleted_key_is_gone_and_stays_gone_whoever_pushes_what_he_read_before(ring, redis):
    made = await ring.create(NewKey("", access=Access(cors_origins=(ORIGIN,))))
    records = KeyRecords(redis)
    assert await records.origins() == {ORIGIN}

    assert await ring.delete(made.record.id)

    assert await records.store(made.record) == 0
    assert isinstance(await records.load(made.record.id), DeletedKey)
    assert await records.origins() == frozenset()
    assert await ring.delete(made.record.id)  # Again does no harm.
    with pytest.raises(UnknownKey):
        await ring.find(made.record.id)


async def test_a_record_that_was_read_before_a_change_does_not_undo_it(ring, redis):
    made = await ring.create(NewKey())
    await ring.update(made.record.id, lambda _: {"is_disabled": True})

    assert await KeyRecords(redis).store(made.record) == 0

    assert (await KeyRecords(redis).load(made.record.id)).is_disabled


async def test_a_change_that_redis_did_not_hear_of_says_so_and_heals(ring, deaf, engine, redis):
    made = await ring.create(NewKey())
    id_ = made.record.id

    changed = await deaf.update(id_, lambda _: {"is_disabled": True})
    assert not changed.is_served
    assert not (await KeyRecords(redis).load(id_)).is_disabled

    assert await sync_keys(engine, redis, changed.record.updated_ms) == 1
    assert (await KeyRecords(redis).load(id_)).is_disabled
    assert await sync_keys(engine, redis, 0) == 0


async def test_a_deletion_that_stopped_half_way_left_a_disabled_key_and_is_done_by_repeating(ring, deaf, engine, redis):
    made = await ring.create(NewKey())

    assert not await deaf.delete(made.record.id)

    await sync_keys(engine, redis, 0)
    assert (await KeyRecords(redis).load(made.record.id)).is_disabled
    assert await ring.delete(made.record.id)


async def test_where_redis_was_lost_all_keys_are_served_again_whatever_changed_last(ring, engine, redis):
    made = [await ring.create(NewKey(str(number))) for number in range(3)]
    far_later_ms = made[-1].record.updated_ms + 1_000_000
    assert await sync_keys(engine, redis, far_later_ms) == 0
    await redis.flushall()

    assert await sync_keys(engine, redis, far_later_ms) == 3

    assert [await KeyRecords(redis).load(each.record.id) for each in made] == [each.record for each in made]
    assert await sync_keys(engine, redis, far_later_ms) == 0


async def test_redis_is_told_once_that_there_are_no_keys(engine, redis):
    await sync_keys(engine, redis, 0)
    version = await redis.get(keyspace.KEYS_VERSION)
    await sync_keys(engine, redis, 0)

    assert version
    assert await redis.get(keyspace.KEYS_VERSION) == version


async def test_more_keys_than_one_batch_are_served(ring, engine, redis, monkeypatch):
    monkeypatch.setattr("common.access.key_ring.BATCH", 2)
    made = [await ring.create(NewKey()) for _ in range(5)]
    async with engine.begin() as connection:  # All in one moment, so that the batches meet within it.
        await connection.execute(text("UPDATE managed_keys SET updated_ms = 7"))
    await redis.flushall()

    assert await sync_keys(engine, redis, 0) == 5
    listed = await ring.list(limit=10)
    assert {each.id for each in listed} == {each.record.id for each in made}


@pytest.mark.parametrize("dollars", [0, 1e-9, "0.000000001", 0.1, 999_999_999, "999999999.999999999", Decimal("1E+2")])
async def test_a_budget_is_kept_to_the_nano_dollar(ring, redis, dollars):
    made = await ring.create(NewKey(access=Access(budget=Budget(day_usd=dollars))))

    for found in (await ring.find(made.record.id), await KeyRecords(redis).load(made.record.id)):
        assert found.access.budget.day_usd == Decimal(str(dollars))


async def test_a_record_has_no_field_that_its_key_does_not_use(ring, engine, redis):
    """An older version, which does not know a new field, would refuse every key whose record has it."""
    plain, limited = [await ring.create(NewKey(access=access)) for access in (Access(), Access(limits=Limits(requests=5)))]

    for _ in range(2):
        stored = [json.loads(await redis.get(keyspace.managed_key(each.record.id))) for each in (plain, limited)]
        assert [record["access"] for record in stored] == [{}, {"limits": {"requests": 5}}]
        await redis.flushall()
        await sync_keys(engine, redis, 0)


async def test_a_row_of_a_later_version_keeps_no_other_back(ring, engine, redis):
    odd, even = [await ring.create(NewKey()) for _ in range(2)]
    async with engine.begin() as connection:
        unheard_of = update(ManagedKey).where(ManagedKey.id == odd.record.id).values(access={"unheard_of": 1})
        await connection.execute(unheard_of)
    await redis.flushall()

    assert await sync_keys(engine, redis, 0) == 1

    assert await KeyRecords(redis).load(even.record.id) == even.record
    with pytest.raises(DatabaseUnavailable, match="version"):
        await ring.find(odd.record.id)


async def test_keys_are_listed_by_tenant_and_paged(ring):
    made = [await ring.create(NewKey(tenant=tenant)) for tenant in ("a", "b", "a", "a")]
    ids = sorted(each.record.id for each in made if each.record.tenant == "a")

    first = await ring.list("a", limit=2)
    rest = await ring.list("a", after=first[-1].id)

    assert [each.id for each in first + rest] == ids


async def test_an_unknown_key_is_said_to_be_unknown(ring):
    id_ = new_id()
    for work in (ring.find(id_), ring.rotate(id_), ring.update(id_, lambda _: {"name": "x"})):
        with pytest.raises(UnknownKey, match=id_):
            await work


async def test_without_a_secret_no_key_is_made(engine, redis):
    with pytest.raises(ValueError, match="SLUICE_SECRET"):
        await KeyRing(engine, redis, None).create(NewKey())


async def test_a_database_that_is_away_is_unavailable(redis, tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/no/such/folder/x.db")

    with pytest.raises(DatabaseUnavailable):
        await KeyRing(engine, redis, SECRET).create(NewKey())
    await engine.dispose()


async def test_a_record_of_a_later_version_lets_nobody_in(redis):
    await redis.set(keyspace.managed_key("i"), '{"id":"i","access":{"unheard_of":1}}')

    with pytest.raises(StoreUnavailable):
        await KeyRecords(redis).load("i")


async def test_a_name_cannot_pass_for_a_moment(redis):
    record = KeyRecord(id="i", name='"updated_ms":99', tenant="t", secret_hash="h", created_ms=1, updated_ms=5)
    records = KeyRecords(redis)
    await records.store(record)

    assert await records.store(record.model_copy(update={"updated_ms": 6})) == 1
