"""What one process knows of managed keys: that it asks seldom, and never believes for too long."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from api.auth.key_cache import KeyCache, KeyRings
from cli.dev.embedded_redis import EmbeddedRedis
from common.access.key_records import KeyRecords
from common.access.key_ring import KeyRing, NewKey
from common.access.key_text import new_id
from common.access.principal import Access
from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import Settings
from common.database.lazy import LazyDatabase
from common.redis import keyspace
from common.redis.pulse import Pulse

SECRET = SecretStr("a long random text that all processes share")


class CountingRedis:
    """Passes everything on, and counts reads of records."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.reads = 0

    async def get(self, key: str) -> Any:
        self.reads += 1
        return await self._redis.get(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)


@pytest.fixture
async def pulse(redis: Redis):
    """Beats when a test says so."""
    found = Pulse(redis, interval_s=3600)
    yield found
    await found.stop()


@pytest.fixture
async def settings(redis_server: EmbeddedRedis, tmp_path):
    return Settings(redis_url=redis_server.url, database_url=f"sqlite:///{tmp_path}/s.db", secret=SECRET)


@pytest.fixture
async def counting(redis: Redis) -> CountingRedis:
    return CountingRedis(redis)


@pytest.fixture
async def rings(settings: Settings, redis: Redis):
    database = LazyDatabase(settings.database_url)
    yield KeyRings(database, redis, settings)
    await database.close()


@pytest.fixture
async def key_cache(counting, pulse, settings, rings) -> KeyCache:
    found = KeyCache(counting, pulse, rings)
    await pulse.start()
    return found


@pytest.fixture
async def ring(settings, redis):
    """As another process has it."""
    database = LazyDatabase(settings.database_url)
    yield KeyRing(await database.engine(), redis, SECRET)
    await database.close()


async def test_a_key_that_is_in_use_costs_no_round_trip(key_cache, ring, counting, pulse):
    id_ = (await ring.create(NewKey(tenant="acme"))).record.id
    await pulse.beat()

    found = [await key_cache.find(id_) for _ in range(5)]
    await pulse.beat()
    again = await key_cache.find(id_)

    assert counting.reads == 1
    assert found[0] is again
    assert (again.record.id, again.record.tenant) == (id_, "acme")


async def test_all_who_ask_at_once_share_one_look(key_cache, ring, counting, pulse):
    id_ = (await ring.create(NewKey())).record.id
    await pulse.beat()

    await asyncio.gather(*(key_cache.find(id_) for _ in range(20)))

    assert counting.reads == 1


async def test_a_change_is_known_with_the_next_beat(key_cache, ring, pulse):
    id_ = (await ring.create(NewKey())).record.id
    await pulse.beat()
    assert not (await key_cache.find(id_)).record.is_disabled

    await ring.update(id_, lambda _: {"is_disabled": True})
    await pulse.beat()

    assert (await key_cache.find(id_)).record.is_disabled


async def test_a_deleted_key_is_unknown_with_the_next_beat(key_cache, ring, pulse):
    id_ = (await ring.create(NewKey())).record.id
    await pulse.beat()
    assert (await key_cache.find(id_)).record

    await ring.delete(id_)
    await pulse.beat()

    assert (await key_cache.find(id_)).record is None


async def test_what_was_read_before_a_change_is_not_kept_past_it(key_cache, ring, pulse, redis, monkeypatch):
    id_ = (await ring.create(NewKey())).record.id
    await pulse.beat()
    load = KeyRecords.load

    async def slow(self: KeyRecords, wanted: str) -> Any:
        found = await load(self, wanted)
        monkeypatch.setattr(KeyRecords, "load", load)
        await ring.update(id_, lambda _: {"is_disabled": True})  # Between our read and our keeping it.
        await pulse.beat()
        return found

    monkeypatch.setattr(KeyRecords, "load", slow)

    await key_cache.find(id_)

    assert (await key_cache.find(id_)).record.is_disabled


async def test_while_redis_is_away_nobody_is_let_in_for_a_revocation_could_not_be_heard_of(key_cache, ring, pulse):
    id_ = (await ring.create(NewKey())).record.id
    await pulse.beat()
    await key_cache.find(id_)

    pulse.is_up = False

    with pytest.raises(GatewayError) as caught:
        await key_cache.find(id_)
    assert caught.value.failed.kind is ErrorKind.OVERLOADED
    assert caught.value.failed.retry_after_s


async def test_a_key_that_redis_lost_is_found_in_the_database_and_served_again(key_cache, ring, pulse, redis, counting):
    made = await ring.create(NewKey())
    await redis.flushall()
    await pulse.beat()

    found = await key_cache.find(made.record.id)

    assert found.record == made.record
    assert await KeyRecords(redis).load(made.record.id) == made.record


async def test_a_known_key_needs_no_database(key_cache, ring, pulse, settings, tmp_path):
    id_ = (await ring.create(NewKey())).record.id
    (tmp_path / "s.db").rename(tmp_path / "away.db")
    (tmp_path / "s.db").mkdir()
    await pulse.beat()

    assert (await key_cache.find(id_)).record


async def test_where_neither_knows_or_can_be_asked_the_client_is_told_to_come_again(key_cache, tmp_path, pulse):
    (tmp_path / "s.db").mkdir()  # No database can be there.

    for _ in range(2):
        with pytest.raises(GatewayError) as caught:
            await key_cache.find(new_id())
        assert (caught.value.failed.kind, caught.value.failed.code) == (ErrorKind.OVERLOADED, "keys_unavailable")


async def test_an_id_that_is_nowhere_is_not_asked_for_again_at_once(key_cache, counting, ring, pulse, monkeypatch):
    await ring.list()  # The tables are there.
    id_ = new_id()

    assert [(await key_cache.find(id_)).record for _ in range(5)] == [None] * 5
    assert counting.reads == 1

    monkeypatch.setattr("api.auth.key_cache.UNKNOWN_S", 0)
    await key_cache.find(id_)
    assert counting.reads == 2


async def test_memory_is_bounded(key_cache, ring, pulse, counting, monkeypatch):
    monkeypatch.setattr("api.auth.key_cache.KEYS_MAX", 2)
    ids = [(await ring.create(NewKey())).record.id for _ in range(3)]
    await pulse.beat()

    for id_ in ids:
        await key_cache.find(id_)
    await key_cache.find(ids[2])
    assert counting.reads == 3
    await key_cache.find(ids[0])
    assert counting.reads == 4


async def test_the_origins_of_all_keys_are_known_and_follow_their_changes(key_cache, ring, pulse, redis):
    made = await ring.create(NewKey(access=Access(cors_origins=("https://a.example",))))
    await ring.create(NewKey(access=Access(cors_origins=("https://b.example",))))
    await pulse.beat()
    assert await key_cache.origins() == {"https://a.example", "https://b.example"}

    await ring.update(made.record.id, lambda _: {"is_disabled": True})
    await pulse.beat()

    assert await key_cache.origins() == {"https://b.example"}
    await ring.delete(made.record.id)
    pulse.is_up = False
    assert await key_cache.origins() == {"https://b.example"}, "a page may still read why it is refused"


async def test_a_redis_that_comes_back_empty_is_noticed(key_cache, ring, pulse, redis):
    made = await ring.create(NewKey())
    await pulse.beat()
    before = await key_cache.find(made.record.id)
    await redis.delete(keyspace.KEYS_VERSION)

    await pulse.beat()

    assert await key_cache.find(made.record.id) is not before
