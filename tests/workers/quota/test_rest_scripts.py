"""Until when does a deployment rest, and who tries it again, to the millisecond? The test sets Redis' clock."""

import pytest
from redis.asyncio import Redis

from common.redis import keyspace
from tests.support.servers.redis_clock import RedisClock
from workers.quota.gate import scripts_of

T = 1_800_000_000_000
KEPT, PROBE = 600_000, 30_000
NAMES_MAX, TIMES = 3, 2


class Lab:
    def __init__(self, redis: Redis, clock: RedisClock) -> None:
        self.redis, self.clock = redis, clock
        self._scripts = scripts_of(redis)

    async def store(self, **changes: int) -> dict[str, int]:
        """Record rests: name, ms. Return all that are stored then, in ms after T."""
        await self._scripts.run(
            "rests",
            [keyspace.UNWELL],
            [NAMES_MAX, KEPT, *(word for name, ms in changes.items() for word in (name, ms, TIMES))],
        )
        return await self.stored()

    async def stored(self) -> dict[str, int]:
        fields = {name.decode(): int(value) for name, value in (await self.redis.hgetall(keyspace.UNWELL)).items()}
        times = {name.removesuffix(" times"): fields.pop(name) for name in list(fields) if name.endswith(" times")}
        assert times == dict.fromkeys(fields, TIMES), "a rest and its number are stored and deleted together"
        return {name: until - T for name, until in fields.items()}

    async def may_try(self, name: str = "a") -> int:
        return await self._scripts.run("probe", [keyspace.UNWELL], [name, PROBE])


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Lab:
    lab = Lab(redis, RedisClock(redis, monkeypatch, tmp_path))
    await lab.clock.set(T)
    return lab


async def test_a_rest_lasts_from_now_and_the_last_word_counts(lab):
    assert await lab.store(a=5_000, b=9_000) == {"a": 5_000, "b": 9_000}
    await lab.clock.set(T + 1_000)

    assert await lab.store(a=5_000, b=1_000) == {"a": 6_000, "b": 2_000}


async def test_one_that_is_well_is_forgotten_and_the_others_rest_on(lab):
    await lab.store(a=5_000, b=9_000)

    assert await lab.store(a=0, unknown=0) == {"b": 9_000}


@pytest.mark.parametrize(("ms", "names"), [(5_000 + KEPT, {"a", "b"}), (5_001 + KEPT, {"b"})])
async def test_the_end_of_a_rest_is_kept_for_its_time(lab, ms, names):
    await lab.store(a=5_000, b=5_001)
    await lab.clock.set(T + ms)

    assert (await lab.store()).keys() == names


async def test_there_are_only_so_many_rests_and_a_stored_one_can_still_be_changed(lab):
    assert (await lab.store(a=1, b=1, c=1, d=1)).keys() == {"a", "b", "c"}

    assert (await lab.store(d=1, c=2, b=3))["b"] == 3
    assert (await lab.store(d=1)).keys() == {"a", "b", "c"}


async def test_each_rest_that_is_forgotten_makes_room_for_one(lab):
    await lab.store(a=1, b=1, c=10_000)
    await lab.clock.set(T + 2 + KEPT)

    assert (await lab.store(d=1, e=1, f=1)).keys() == {"c", "d", "e"}


async def test_the_key_outlives_the_rests_that_it_keeps(lab):
    await lab.store(a=60_000)

    assert KEPT + 60_000 < await lab.redis.pttl(keyspace.UNWELL) <= KEPT + 120_000


@pytest.mark.parametrize(("ms", "may_try"), [(4_999, 0), (5_000, 1)])
async def test_a_deployment_is_tried_when_its_rest_is_over_and_by_one_for_a_time(lab, ms, may_try):
    await lab.store(a=5_000, b=5_000)
    await lab.clock.set(T + ms)

    assert await lab.may_try() == may_try
    assert await lab.stored() == {"a": ms + PROBE if may_try else 5_000, "b": 5_000}
    assert await lab.may_try() == 0


async def test_one_that_does_not_rest_may_be_tried_by_all_and_is_not_noted(lab):
    assert [await lab.may_try(), await lab.may_try()] == [1, 1]
    assert await lab.stored() == {}
