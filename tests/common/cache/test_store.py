"""The cache on real Redis: what it returns, what bounds it, and that it fails no request."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import pytest

from common.cache.entry import Entry
from common.cache.store import PAUSE_S, CacheStore
from common.canonical.events import Usage
from common.config.settings import Settings
from common.metering.pricing import Cost

ENTRY = Entry(
    key="k1",
    generation_id="gen_1",
    log_id="gen_2",
    tenant="acme",
    model="m",
    dialect="openai-chat",
    is_stream=True,
    stored_ms=5,
    ttl_ms=60_000,
    data=b"data: x\n\n\n",
    headers={"x-sluice-dropped": "seed"},
    provider="p",
    upstream_model="pm",
    finish_reason="stop",
    usage=Usage(input_tokens=3, output_tokens=4),
    cost=Cost(Decimal("0.1"), Decimal("0.2")),
)
OVERHEAD = len(replace(ENTRY, data=b"").pack()) + 400


@pytest.fixture
def make_store(redis):
    def make(**values):
        return CacheStore(redis, Settings().model_copy(update=values))

    return make


async def stored(store, *numbers, size=0, **fields):
    for number in numbers:
        await store.put(replace(ENTRY, key=f"k{number}", data=b"x" * size, **fields))
        await asyncio.sleep(0.002)  # Age is in milliseconds.


async def present(store, *numbers):
    return [number for number in numbers if await store.get(f"k{number}")]


def test_an_entry_is_read_as_it_was_packed():
    assert Entry.unpack(ENTRY.pack()) == ENTRY


@pytest.mark.parametrize("packed", [b"", b"{}\nx", b'{"format":99}\nx', b"[1]\nx", b'{"format":1,"key":"k"}\nx', b"\xff\n"])
def test_what_is_no_entry_is_refused(packed):
    with pytest.raises(ValueError):
        Entry.unpack(packed)


def test_fields_of_a_newer_version_are_ignored():
    assert Entry.unpack(ENTRY.pack().replace(b"{", b'{"new":1,', 1)) == ENTRY


async def test_what_is_put_is_found_until_it_expires(make_store):
    store = make_store()
    assert await store.put(ENTRY)
    assert await store.get("k1") == ENTRY
    assert await store.get("k2") is None

    await store.put(replace(ENTRY, key="k2", ttl_ms=30))
    await asyncio.sleep(0.06)
    assert await store.get("k2") is None


async def test_an_unreadable_entry_is_a_miss(make_store, redis):
    await redis.set("sluice:cache:entry:k1", b"what?")
    assert await make_store().get("k1") is None


async def test_the_oldest_go_first_and_nothing_else_goes(make_store, redis):
    await redis.set("another", b"x" * 5000)
    store = make_store(cache_bytes_max=3 * (OVERHEAD + 1000) + 500)
    await stored(store, 1, 2, 3, size=1000)
    await stored(store, 1, size=1000)  # Now it is the youngest.
    await stored(store, 4, size=1000)

    assert await present(store, 1, 2, 3, 4) == [1, 3, 4]
    await stored(store, 5, size=2500)
    assert await present(store, 1, 3, 4, 5) == [4, 5]
    assert await redis.exists("another")


async def test_an_answer_that_is_too_large_is_not_stored(make_store):
    assert not await make_store(cache_entry_bytes_max=1024).put(replace(ENTRY, data=b"x" * 2000))
    store = make_store(cache_bytes_max=3000)
    await stored(store, 1)
    assert not await store.put(replace(ENTRY, key="k2", data=b"x" * 4000))
    assert await present(store, 1, 2) == [1], "and removes nothing"


async def test_expired_entries_count_no_longer(make_store, redis):
    store = make_store(cache_bytes_max=2 * (OVERHEAD + 1000) + 200)
    await stored(store, 1, 2, size=1000, ttl_ms=5)
    await stored(store, 3, 4, size=1000)

    assert await present(store, 3, 4) == [3, 4]
    assert int(await redis.get("sluice:cache:bytes")) <= 2 * (OVERHEAD + 1000) + 200


async def test_the_sum_recovers_from_a_redis_that_was_emptied(make_store, redis):
    store = make_store(cache_bytes_max=OVERHEAD + 1200)
    await redis.set("sluice:cache:bytes", 10**9)
    await stored(store, 1, size=1000)
    assert await present(store, 1) == [1]
    assert int(await redis.get("sluice:cache:bytes")) < OVERHEAD + 1200


async def test_an_empty_cache_leaves_no_keys(make_store, redis):
    await stored(make_store(), 1, 2, ttl_ms=40)
    await asyncio.sleep(0.08)
    assert await redis.keys("sluice:cache:*") == []


async def test_a_cache_that_is_away_is_left_alone_and_then_tried_by_one_request(make_store, monkeypatch):
    store, tries = make_store(), 0
    clock = 100.0

    async def fail(*_):
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.05)
        raise ConnectionError

    monkeypatch.setattr("common.cache.store.time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(store, "_get", fail)
    assert await store.get("k1") is None
    assert await asyncio.gather(*(store.get("k1") for _ in range(5))) == [None] * 5
    assert tries == 1
    clock += PAUSE_S + 1
    assert await asyncio.gather(*(store.get("k1") for _ in range(5))) == [None] * 5
    assert tries == 2

    monkeypatch.undo()
    store._away_until_s = 0.001  # The pause is over.
    assert await store.put(ENTRY)
    assert await store.get("k1") == ENTRY


async def test_a_full_redis_only_means_that_nothing_is_stored(make_store, redis):
    await redis.config_set("maxmemory", "1")
    try:
        assert not await make_store().put(ENTRY)
    finally:
        await redis.config_set("maxmemory", "0")


@pytest.mark.parametrize("lost", ["by_age", "by_expiry", "about"])
async def test_a_redis_that_evicted_a_list_still_stores_and_bounds(make_store, redis, lost):
    store = make_store(cache_bytes_max=3 * (OVERHEAD + 1000) + 500)
    await stored(store, 1, 2, 3, size=1000)
    await redis.delete(f"sluice:cache:{lost}")

    await stored(store, 4, 5, 6, 7, 8, 9, size=1000)

    assert await present(store, 4, 5, 6, 7, 8, 9) == [7, 8, 9]
    assert int(await redis.get("sluice:cache:bytes")) <= 3 * (OVERHEAD + 1000) + 500
