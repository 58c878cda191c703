"""What the cache's scripts keep, to the byte and to the millisecond. The test sets Redis' clock."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

import common.cache.store
from common.redis.scripts import Scripts
from tests.support.servers.redis_clock import RedisClock

T = 1_800_000_000_000
EXTRA = 400  # What an entry counts besides its value.
C = "sluice:cache:"
LISTS = [C + name for name in ("by_age", "by_expiry", "about", "bytes")]


class Lab:
    def __init__(self, redis: Redis, clock: RedisClock) -> None:
        self.redis, self.clock = redis, clock
        self._scripts = Scripts(redis, Path(common.cache.store.__file__).parent)

    async def put(self, key: str, size: int = 100, *, ttl: int = 60_000, bytes_max: int = 10_000) -> int:
        return await self._scripts.run("put", [], [key, b"x" * size, ttl, bytes_max, "acme", "m", "openai/m"])

    async def listed(self) -> dict[str, Any]:
        cursor, entries = await self._scripts.run("list", [], ["0"])
        assert cursor == b"0"
        return {key.decode(): orjson.loads(about) for key, about in entries}

    async def remove(self, *keys: str) -> int:
        return await self._scripts.run("remove", [], keys)

    async def present(self) -> set[str]:
        return {key.decode().removeprefix(C + "entry:") for key in await self.redis.keys(C + "entry:*")}

    async def bytes(self) -> int:
        return int(await self.redis.get(C + "bytes") or 0)


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Lab:
    lab = Lab(redis, RedisClock(redis, monkeypatch, tmp_path))
    await lab.clock.set(T)
    return lab


async def test_an_entry_is_stored_with_all_that_is_said_about_it(lab):
    assert await lab.put("a", 100) == 1

    assert await lab.redis.get(C + "entry:a") == b"x" * 100
    assert 0 < await lab.redis.pttl(C + "entry:a") <= 60_000
    assert await lab.listed() == {"a": [100 + EXTRA, "acme", "m", "openai/m"]}
    assert await lab.redis.zscore(C + "by_age", "a") == T
    assert await lab.redis.zscore(C + "by_expiry", "a") == T + 60_000
    assert await lab.bytes() == 100 + EXTRA


@pytest.mark.parametrize(("size", "is_stored"), [(600, 1), (601, 0)])
async def test_an_entry_may_be_as_large_as_all_entries_may_be(lab, size, is_stored):
    await lab.put("a", bytes_max=1_000)

    assert await lab.put("b", size, bytes_max=1_000) == is_stored
    assert await lab.present() == ({"b"} if is_stored else {"a"})


@pytest.mark.parametrize(("bytes_max", "left"), [(1_500, {"a", "b", "c"}), (1_499, {"b", "c"}), (999, {"c"})])
async def test_the_oldest_give_way_until_all_fit(lab, bytes_max, left):
    for ms, key in enumerate("ab"):
        await lab.clock.set(T + ms)
        await lab.put(key)
    await lab.clock.set(T + 2)

    assert await lab.put("c", bytes_max=bytes_max) == 1

    assert await lab.present() == left
    assert (await lab.listed()).keys() == left
    assert await lab.bytes() == 500 * len(left)


async def test_an_entry_that_is_stored_again_counts_once_and_is_young(lab):
    await lab.put("a", 200)
    await lab.clock.set(T + 1)
    await lab.put("b")
    await lab.clock.set(T + 2)
    await lab.put("a", 100)

    assert await lab.bytes() == 1_000
    await lab.put("c", bytes_max=1_499)
    assert await lab.present() == {"a", "c"}


@pytest.mark.parametrize(("ms", "keys"), [(59_999, {"a", "b"}), (60_000, {"b"})])
async def test_an_entry_is_listed_until_it_expires(lab, ms, keys):
    await lab.put("a")
    await lab.put("b", ttl=90_000)
    await lab.clock.set(T + ms)

    assert (await lab.listed()).keys() == keys
    await lab.put("c")
    assert (await lab.redis.zrange(C + "by_expiry", 0, -1)).count(b"a") == ("a" in keys)
    assert await lab.bytes() == 500 * (len(keys) + 1)


async def test_what_is_removed_leaves_nothing_and_is_counted_if_it_was_there(lab):
    await lab.put("a")
    await lab.put("b")
    await lab.redis.delete(C + "entry:b")

    assert await lab.remove("a", "b", "unknown") == 1

    assert await lab.listed() == {}
    assert await lab.bytes() == 0
    assert await lab.redis.exists(C + "by_age", C + "by_expiry", C + "about") == 0


async def test_the_lists_live_as_long_as_the_last_entry(lab):
    await lab.put("a", ttl=90_000)
    await lab.put("b", ttl=10_000)

    assert all([80_000 < await lab.redis.pttl(name) <= 90_000 for name in LISTS])
    await lab.put("c", ttl=200_000)
    assert all([190_000 < await lab.redis.pttl(name) <= 200_000 for name in LISTS])


async def test_a_sum_that_is_left_of_an_emptied_redis_is_forgotten(lab):
    await lab.redis.set(C + "bytes", 9_999)

    assert await lab.put("a", bytes_max=1_000) == 1
    assert await lab.bytes() == 500
