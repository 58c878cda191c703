"""Until when is a vendor's key paused, to the millisecond? The test sets Redis' clock."""

import pytest
from redis.asyncio import Redis

from common.redis import keyspace
from tests.support.servers.redis_clock import RedisClock
from workers.quota.gate import scripts_of

T = 1_800_000_000_000
NAMES_MAX = 3


class Lab:
    def __init__(self, redis: Redis, clock: RedisClock) -> None:
        self.redis, self.clock = redis, clock
        self._scripts = scripts_of(redis)

    async def pause(self, *pauses: tuple[str, int, int]) -> dict[str, int]:
        """Record pauses: name, ms, promised ms. Return all that are stored then, in ms after T."""
        await self._scripts.run("pause", [keyspace.PAUSED], [NAMES_MAX, *(word for pause in pauses for word in pause)])
        return {name.decode(): int(till) - T for name, till in (await self.redis.hgetall(keyspace.PAUSED)).items()}


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Lab:
    lab = Lab(redis, RedisClock(redis, monkeypatch, tmp_path))
    await lab.clock.set(T)
    return lab


async def test_a_pause_lasts_from_now_and_keeps_a_later_promise(lab):
    assert await lab.pause(("a", 500, 0), ("b", 100, 900), ("c", 100, 100)) == {
        "a": 500,
        "b": 100,
        "b promised": 900,
        "c": 100,
    }


@pytest.mark.parametrize(("ms", "till"), [(499, 500), (500, 500), (501, 501)])
async def test_only_a_longer_pause_replaces_one(lab, ms, till):
    await lab.pause(("a", 500, 0))

    assert await lab.pause(("a", ms, 0)) == {"a": till}


async def test_a_longer_pause_replaces_the_promise_too(lab):
    await lab.pause(("a", 500, 900))

    assert await lab.pause(("a", 600, 0)) == {"a": 600}
    assert await lab.pause(("a", 700, 800)) == {"a": 700, "a promised": 800}
    assert await lab.pause(("a", 100, 2_000)) == {"a": 700, "a promised": 800}


@pytest.mark.parametrize(("ms", "names"), [(499, {"a", "a promised", "b"}), (500, {"b"})])
async def test_a_pause_that_is_over_goes_with_its_promise(lab, ms, names):
    await lab.pause(("a", 500, 900))
    await lab.clock.set(T + ms)

    assert (await lab.pause(("b", 100, 0))).keys() == names


async def test_there_are_only_so_many_pauses_and_a_stored_one_can_still_be_longer(lab):
    stored = await lab.pause(("a", 100, 900), ("b", 100, 0), ("c", 100, 0), ("d", 100, 0))
    assert stored.keys() == {"a", "a promised", "b", "c"}

    assert (await lab.pause(("d", 200, 0), ("b", 200, 0)))["b"] == 200
    await lab.clock.set(T + 150)
    assert (await lab.pause(("d", 200, 0))).keys() == {"b", "d"}


async def test_the_key_expires_with_the_last_pause(lab):
    real_ms = int((await lab.redis.time())[0]) * 1000
    await lab.clock.set(real_ms)

    await lab.pause(("a", 60_000, 0), ("b", 90_000, 500_000), ("c", 30_000, 0))

    assert 60_000 < await lab.redis.pttl(keyspace.PAUSED) <= 91_000
    await lab.pause(("a", 10_000, 0))
    assert 60_000 < await lab.redis.pttl(keyspace.PAUSED) <= 91_000
