"""What one call takes of a vendor's quota, and when there is room again, to the millisecond. The test sets Redis' clock."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.servers.redis_clock import RedisClock
from workers.quota.gate import scripts_of

T = 1_800_000_000_000
LEASE, WINDOW = 6_000, 60_000
REQUESTS, TOKENS, SLOTS = "test:requests", "test:tokens", "test:slots"


class Lab:
    def __init__(self, redis: Redis, clock: RedisClock) -> None:
        self.redis, self.clock = redis, clock
        self._scripts = scripts_of(redis)

    async def reserve(
        self, id_: str = "call", requests: int = 0, tokens: int = 0, amount: int = 0, slots: int = 0
    ) -> list[Any]:
        args = [id_, LEASE, WINDOW, REQUESTS, requests, TOKENS, tokens, amount, SLOTS, slots]
        first, second, *_ = await self._scripts.run("reserve", [], args)
        return [first.decode(), second.decode() if isinstance(second, bytes) else second]

    async def settle(self, id_: str, bucket: str, reserved: int, used: int, slots: str = SLOTS, tokens: str = TOKENS) -> None:
        await self._scripts.run("settle", [], [id_, slots, tokens, WINDOW, bucket, reserved, used])

    async def used(self, key: str) -> int:
        return sum(int(amount) for amount in await self.redis.hvals(key))


@pytest.fixture
async def lab(redis: Redis, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Lab:
    lab = Lab(redis, RedisClock(redis, monkeypatch, tmp_path))
    await lab.clock.set(T)
    return lab


BUCKET = str(T // 1_000)


async def test_a_reservation_counts_in_each_limit_that_is_set(lab):
    assert await lab.reserve("a", requests=2, tokens=100, amount=30, slots=1) == ["ok", BUCKET]

    assert (await lab.used(REQUESTS), await lab.used(TOKENS)) == (1, 30)
    assert await lab.redis.zrange(SLOTS, 0, -1, withscores=True) == [(b"a", T + LEASE)]
    assert 0 < await lab.redis.pttl(SLOTS) <= LEASE


async def test_without_a_limit_of_tokens_there_is_no_bucket(lab):
    assert await lab.reserve(requests=1) == ["ok", ""]
    assert sorted(await lab.redis.keys("test:*")) == [REQUESTS.encode()]


async def test_a_limit_admits_as_much_as_it_says(lab):
    assert [await lab.reserve(requests=2) for _ in range(3)] == [["ok", ""], ["ok", ""], ["requests", 61_000]]
    assert await lab.used(REQUESTS) == 2


async def test_the_last_token_of_a_limit_can_be_had(lab):
    assert (await lab.reserve(tokens=100, amount=60))[0] == "ok"
    assert await lab.reserve(tokens=100, amount=41) == ["tokens", 61_000]
    assert (await lab.reserve(tokens=100, amount=40))[0] == "ok"
    assert await lab.used(TOKENS) == 100


async def test_of_two_limits_that_are_reached_the_longer_wait_counts(lab):
    await lab.reserve(requests=1)
    await lab.clock.set(T + 20_000)
    await lab.reserve(tokens=10, amount=10)

    assert await lab.reserve(requests=1, tokens=10, amount=1) == ["tokens", 61_000]
    assert await lab.reserve(requests=1, tokens=100, amount=1) == ["requests", 41_000]


async def test_a_refused_call_takes_nothing(lab):
    await lab.reserve(requests=1)

    await lab.reserve("b", requests=1, tokens=100, amount=5, slots=5)

    assert (await lab.used(REQUESTS), await lab.used(TOKENS), await lab.redis.zcard(SLOTS)) == (1, 0, 0)


async def test_a_slot_is_free_when_its_lease_is_over(lab):
    assert await lab.reserve("a", slots=1) == ["ok", ""]
    await lab.clock.set(T + LEASE - 1)
    assert await lab.reserve("b", requests=9, slots=1) == ["concurrent", 0]
    assert await lab.used(REQUESTS) == 0
    await lab.clock.set(T + LEASE)
    assert await lab.reserve("b", slots=1) == ["ok", ""]
    assert await lab.redis.zrange(SLOTS, 0, -1) == [b"b"]


@pytest.mark.parametrize(("used", "left"), [(0, 0), (29, 29), (30, 30), (31, 31)])
async def test_a_call_that_has_ended_gives_back_its_slot_and_what_it_did_not_use(lab, used, left):
    await lab.reserve("a", tokens=100, amount=30, slots=2)
    await lab.reserve("b", slots=2)

    await lab.settle("a", BUCKET, 30, used)

    assert await lab.used(TOKENS) == left
    assert await lab.redis.zrange(SLOTS, 0, -1) == [b"b"]


async def test_what_was_not_reserved_is_not_settled(lab):
    await lab.reserve("a", tokens=100, amount=30, slots=2)

    await lab.settle("a", BUCKET, 30, 0, slots="", tokens="")

    assert (await lab.used(TOKENS), await lab.redis.zcard(SLOTS)) == (30, 1)
    assert await lab.redis.exists("") == 0


async def test_slots_are_renewed_for_a_lease_from_now(lab):
    await lab.reserve("a", slots=2)
    await lab.clock.set(T + 1_000)

    await lab._scripts.run("hold", [], [LEASE, SLOTS, "a", "test:others", "b"])

    assert await lab.redis.zscore(SLOTS, "a") == T + 1_000 + LEASE
    assert await lab.redis.zscore("test:others", "b") == T + 1_000 + LEASE
