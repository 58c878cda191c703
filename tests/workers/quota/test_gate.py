"""Do all workers together keep to a vendor's quota? On a real Redis, each worker with a connection of its own."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from cli.dev.embedded_redis import EmbeddedRedis
from common.access.principal import Budget, Limits
from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.canonical.money import NANO_USD
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.limits.charges import periods
from common.redis import keyspace
from common.redis.client import Client, connect
from common.redis.pulse import Pulse
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.quota import gate
from workers.quota.gate import Demand, Quota, Refused
from workers.quota.pauses import Pauses
from workers.quota.reservations import PLACE_EXTRA_S, Reservation, Reservations, Shortage
from workers.upstream.deployments import deployments

CLIENTS = 50
LEASE_S, RENEW_S = 6.0, 2.0


def job(model: str = "openai/m", operation: Any = "generate", **more: Any) -> Job:
    body = {"model": model, "messages": [{"role": "user", "content": "x" * 400}], **more}
    return Job("gen_1", "r", "openai-chat", model, False, Policy.STOP, 0, 1, {}, orjson.dumps(body), operation)


def demand(**more: Any) -> Demand:
    return Demand(job(**more))


def place(key: str = "a", model: str = "m", provider: str = "openai") -> Deployment:
    return Deployment(provider, "http://x", key, model, key_id=f"{provider}:{key}")


async def until(holds: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(120):
        while not (found := holds()) or (asyncio.iscoroutine(found) and not await found):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def clients(server: EmbeddedRedis, count: int) -> AsyncIterator[list[Client]]:
    """Connections that share nothing but the server."""
    async with AsyncExitStack() as stack:
        found = [connect(server.url) for _ in range(count)]
        for client in found:
            stack.push_async_callback(client.connection_pool.disconnect)
            stack.push_async_callback(client.aclose)
        yield found


def reservations(redis: Client) -> Reservations:
    return Reservations(gate.scripts_of(redis), LEASE_S, RENEW_S)


# Windows


@pytest.mark.parametrize("kind", ["requests", "tokens", "concurrent"])
async def test_a_limit_that_is_not_set_takes_no_key(redis, kind):
    taken = await reservations(redis).reserve({"openai:k": Limits(**{kind: 5})}, 2)

    assert isinstance(taken, Reservation)
    assert len(await redis.keys("*")) == 1
    assert b"" not in await redis.keys("*")


async def _admitted(server: EmbeddedRedis, limits: Limits, tokens: list[int]) -> list[int]:
    """Have 50 clients on two connections ask at once; returns the tokens of those that were let in."""
    name = f"openai:{uuid.uuid4().hex}"
    async with clients(server, 2) as both:
        workers = [reservations(client) for client in both]
        asked = [workers[n % 2].reserve({name: limits}, amount) for n, amount in enumerate(tokens)]
        answers = await asyncio.gather(*asked)
    return [answer.tokens for answer in answers if isinstance(answer, Reservation)]


@settings(max_examples=20)
@given(limit=st.integers(1, CLIENTS + 10), kind=st.sampled_from(["requests", "concurrent"]))
def test_a_limit_of_n_admits_n_of_all_workers_together(redis_server, limit, kind):
    admitted = asyncio.run(_admitted(redis_server, Limits(**{kind: limit}), [0] * CLIENTS))

    assert len(admitted) == min(limit, CLIENTS)


@settings(max_examples=20)
@given(limit=st.integers(1, 3000), tokens=st.lists(st.integers(1, 200), min_size=CLIENTS, max_size=CLIENTS))
def test_as_many_tokens_are_let_in_as_there_are(redis_server, limit, tokens):
    admitted = asyncio.run(_admitted(redis_server, Limits(tokens=limit), tokens))

    assert sum(admitted) <= limit
    # What was left out fits no more; a call that is larger than the limit takes all of it.
    refused = [min(amount, limit) for amount in tokens]
    for amount in admitted:
        refused.remove(amount)
    assert all(sum(admitted) + amount > limit for amount in refused)


@settings(max_examples=20)
@given(limits=st.tuples(*[st.integers(1, 40)] * 3))
def test_of_several_limits_the_tightest_decides_and_a_refusal_takes_nothing(redis_server, limits):
    requests, calls, concurrent = limits
    found = Limits(requests=requests, tokens=calls * 10, concurrent=concurrent)

    assert len(asyncio.run(_admitted(redis_server, found, [10] * CLIENTS))) == min(limits)


async def test_how_long_to_wait_is_told_exactly(redis):
    ours, name = reservations(redis), "openai:a"
    seconds, _ = await redis.time()
    bucket = seconds - 20  # Of a window of a minute: 20 s old, and another third of the limit 10 s old.
    await redis.hset(keyspace.limit("upstream", name, "requests"), mapping={bucket: 2, bucket + 10: 1, bucket - 50: 7})

    before = await redis.time()
    answer = await ours.reserve({name: Limits(requests=3)}, 0)
    after = await redis.time()

    free_at = bucket + 61  # When all of the bucket is older than the window.
    assert isinstance(answer, Shortage)
    assert free_at - _s(after) - 0.002 <= answer.wait_s <= free_at - _s(before) + 0.002


def _s(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1_000_000


async def test_what_a_window_holds_is_free_again_when_it_has_passed(redis):
    ours, limits = reservations(redis), Limits(requests=2, window_s=1)
    for _ in range(2):
        assert isinstance(await ours.reserve({"openai:a": limits}, 0), Reservation)
    refusal = await ours.reserve({"openai:a": limits}, 0)

    assert isinstance(refusal, Shortage)
    await asyncio.sleep(refusal.wait_s)
    assert isinstance(await ours.reserve({"openai:a": limits}, 0), Reservation)


async def test_a_worker_that_was_refused_asks_no_more_until_it_may_help(redis):
    ours, limits = reservations(redis), Limits(requests=1)
    await ours.reserve({"openai:a": limits}, 0)
    await ours.reserve({"openai:a": limits}, 0)
    before = await _scripts_run(redis)

    assert isinstance(await ours.reserve({"openai:a": limits}, 0), Shortage)

    assert await _scripts_run(redis) == before


async def test_a_smaller_request_may_fit_where_a_larger_one_did_not(redis):
    ours, limits = reservations(redis), Limits(tokens=100)
    await ours.reserve({"openai:a": limits}, 60)

    assert isinstance(await ours.reserve({"openai:a": limits}, 50), Shortage)
    assert isinstance(await ours.reserve({"openai:a": limits}, 40), Reservation)


async def test_a_call_takes_its_share_of_each_quota_or_of_none(redis):
    ours, key, target = reservations(redis), "openai:a", "route:fast>openai/m"
    both = {key: Limits(requests=5, tokens=100), target: Limits(requests=5, tokens=50, concurrent=1)}
    taken = await ours.reserve(both, 60)
    assert isinstance(taken, Reservation)
    assert [share.tokens for share in taken.shares] == [60, 50], "a call that is larger than a limit takes all of it"

    short = await reservations(redis).reserve(both, 10)
    assert isinstance(short, Shortage)
    assert (short.quota, short.limit) == (target, "tokens")
    assert await redis.hvals(keyspace.limit("upstream", key, "requests")) == [b"1"]

    ours.release(taken, 20)
    await ours.flush()
    for quota in both:
        assert await redis.hvals(keyspace.limit("upstream", quota, "tokens")) == [b"20"]
    assert isinstance(await ours.reserve(both, 30), Reservation)


async def test_the_quota_without_a_place_is_named_and_nothing_is_taken(redis):
    ours, both = reservations(redis), {"openai:a": Limits(concurrent=2), "route:fast>openai/m": Limits(concurrent=1)}
    assert isinstance(await ours.reserve(both, 0), Reservation)

    short = await ours.reserve(both, 0)

    assert isinstance(short, Shortage)
    assert (short.quota, short.limit) == ("route:fast>openai/m", "concurrent")
    assert await redis.zcard(keyspace.slots("upstream", "openai:a")) == 1


async def test_a_limit_of_a_target_holds_for_all_its_keys_and_not_for_other_names(redis):
    routes = {"fast": {"targets": [{"model": "openai/m", "limits": {"requests": 2}}]}}
    chosen = {"openai": ProviderSettings(api_keys=("k1", "k2"))}
    async with worker(redis, chosen, routes=routes) as quota:
        first, second = deployments(job("fast"), quota._settings)
        assert [await is_refused(quota, where, model="fast") for where in (first, second, first)] == [False, False, True]
        with pytest.raises(Refused, match="The route has used up its limit of requests") as refused:
            async with quota.admitted(demand(model="fast"), second):
                pass
        assert refused.value.limit == "route_requests"
        (direct, _) = deployments(job("openai/m"), quota._settings)
        assert not await is_refused(quota, direct)


async def test_one_call_is_one_round_trip(redis):
    ours = reservations(redis)
    await ours.reserve({"openai:a": Limits(requests=9, tokens=9, concurrent=9)}, 1)
    before = await _scripts_run(redis)

    await ours.reserve({"openai:a": Limits(requests=9, tokens=9, concurrent=9)}, 1)

    assert await _scripts_run(redis) == before + 1


async def _scripts_run(redis: Redis) -> int:
    return (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]


# Settling


@pytest.mark.parametrize(("used", "fits"), [(0, 100), (30, 70), (90, 10), (100, 0)])
async def test_tokens_that_were_not_used_come_back(redis, used, fits):
    ours, limits = reservations(redis), Limits(tokens=100)
    reserved = await ours.reserve({"openai:a": limits}, 90)
    assert isinstance(reserved, Reservation)

    ours.release(reserved, used)
    await ours.flush()

    left = [n for n in range(1, 101) if n <= 100 - used]
    assert max(left, default=0) == fits
    if fits:
        assert isinstance(await reservations(redis).reserve({"openai:a": limits}, fits), Reservation)
    assert isinstance(await reservations(redis).reserve({"openai:a": limits}, 1), Shortage)


async def test_more_tokens_than_were_reserved_count_too(redis):
    ours, limits = reservations(redis), Limits(tokens=100)
    reserved = await ours.reserve({"openai:a": limits}, 10)
    assert isinstance(reserved, Reservation)

    ours.release(reserved, 95)
    await ours.flush()

    assert isinstance(await ours.reserve({"openai:a": limits}, 6), Shortage)
    assert isinstance(await ours.reserve({"openai:a": limits}, 5), Reservation)


async def test_a_place_is_free_again_when_its_call_has_ended(redis):
    ours, limits = reservations(redis), Limits(concurrent=1)
    reserved = await ours.reserve({"openai:a": limits}, 0)
    assert isinstance(reserved, Reservation)
    assert isinstance(await reservations(redis).reserve({"openai:a": limits}, 0), Shortage)

    ours.release(reserved, 0)
    await ours.flush()

    assert isinstance(await reservations(redis).reserve({"openai:a": limits}, 0), Reservation)


async def test_a_worker_looks_again_at_once_when_a_call_of_its_own_has_ended(redis):
    ours, limits = reservations(redis), Limits(concurrent=1)
    reserved = await ours.reserve({"openai:a": limits}, 0)
    assert isinstance(reserved, Reservation)
    assert isinstance(await ours.reserve({"openai:a": limits}, 0), Shortage)

    ours.release(reserved, 0)
    await ours.flush()

    assert isinstance(await ours.reserve({"openai:a": limits}, 0), Reservation)


async def test_a_call_that_is_cancelled_while_it_asks_leaves_no_place_behind(redis):
    ours, limits = reservations(redis), Limits(concurrent=1)
    await redis.ping()
    asking = asyncio.create_task(ours.reserve({"openai:a": limits}, 0))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await ours.flush()

    assert await redis.zcard(keyspace.slots("upstream", "openai:a")) == 0


async def test_a_killed_workers_places_are_free_after_its_lease(redis, monkeypatch):
    monkeypatch.setattr("workers.quota.reservations.PLACE_EXTRA_S", 0.2)
    monkeypatch.setattr("workers.quota.reservations.BUSY_RECHECK_S", 0.01)
    scripts, limits = gate.scripts_of(redis), Limits(concurrent=1)
    killed, other = (Reservations(scripts, lease_s=0.1, renew_s=0.05) for _ in range(2))
    assert isinstance(await killed.reserve({"openai:a": limits}, 0), Reservation)
    assert isinstance(await other.reserve({"openai:a": limits}, 0), Shortage)

    async def is_let_in() -> bool:
        return isinstance(await other.reserve({"openai:a": limits}, 0), Reservation)

    await until(is_let_in, "the place is free")


async def test_a_running_calls_place_is_dated_anew(redis):
    now = 0.0
    ours = Reservations(gate.scripts_of(redis), LEASE_S, RENEW_S, clock=lambda: now)
    await ours.reserve({"openai:a": Limits(concurrent=1)}, 0)
    (first,) = await redis.zrange(keyspace.slots("upstream", "openai:a"), 0, -1, withscores=True)

    async def is_later() -> bool:
        nonlocal now
        now += RENEW_S
        await ours.flush()
        (found,) = await redis.zrange(keyspace.slots("upstream", "openai:a"), 0, -1, withscores=True)
        assert found[0] == first[0]
        return found[1] > first[1]

    await until(is_later, "the place is held for longer")


def test_a_killed_workers_places_are_free_within_ten_seconds():
    defaults = Settings(_env_file=None)

    assert LEASE_S + PLACE_EXTRA_S < 10
    assert (defaults.lease_s, defaults.renew_s) == (LEASE_S, RENEW_S)


async def test_what_cannot_be_settled_while_redis_is_away_stays_reserved(redis, monkeypatch):
    scripts, limits = gate.scripts_of(redis), Limits(tokens=100)
    ours = Reservations(scripts, LEASE_S, RENEW_S)
    reserved = await ours.reserve({"openai:a": limits}, 90)
    assert isinstance(reserved, Reservation)

    async def is_away(calls: Any) -> Any:
        raise StoreUnavailable

    ours.release(reserved, 0)
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "run_many", is_away)
        await ours.flush()
    await ours.flush()

    # It may have been settled, and what is settled twice lets in too many.
    assert await redis.hvals(keyspace.limit("upstream", "openai:a", "tokens")) == [b"90"]


async def test_nothing_stays_in_redis_for_good(redis):
    ours = reservations(redis)
    await ours.reserve({"openai:a": Limits(requests=5, tokens=5, concurrent=5)}, 1)

    names = await redis.keys("*")
    assert len(names) == 3
    assert all([await redis.pttl(name) > 0 for name in names])


# The gate


@asynccontextmanager
async def worker(
    redis: Client,
    chosen: dict[str, ProviderSettings] | None = None,
    *,
    registry: CollectorRegistry | None = None,
    **more: Any,
) -> AsyncIterator[Quota]:
    """One worker's gate with its pulse, as long as it lives."""
    found = Settings(_env_file=None, providers=chosen or {"openai": ProviderSettings(api_keys=("k",))}, **more)
    pulse = Pulse(redis)
    quota = Quota(redis, pulse, found, Metrics(registry or CollectorRegistry()))
    quota.start()
    await pulse.start()
    try:
        yield quota
    finally:
        await quota.stop()
        await pulse.stop()


async def is_refused(quota: Quota, where: Deployment, **more: Any) -> bool:
    try:
        async with quota.admitted(demand(**more), where):
            return False
    except Refused:
        return True


async def test_one_workers_refusal_counts_for_all_of_them(redis, redis_server):
    registry = CollectorRegistry()
    async with clients(redis_server, 1) as (other,), worker(redis) as first, worker(other, registry=registry) as second:
        first.record_failure(demand(), place(), Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "slow down", retry_after_s=20))

        assert await is_refused(first, place())
        await until(lambda: is_refused(second, place()), "the other worker knows")
        assert not await is_refused(second, place("b"))
        assert not await is_refused(second, place(model="another"))
        with pytest.raises(Refused) as refused:
            async with second.admitted(demand(), place()):
                pass
        assert 0 < refused.value.wait_s <= 20
        second.collect()
        assert registry.get_sample_value("sluice_upstream_paused", {"provider": "openai"}) == 1


async def test_an_answer_that_says_that_nothing_is_left_counts_for_all_workers(redis, redis_server):
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}
    async with clients(redis_server, 1) as (other,), worker(redis) as first, worker(other) as second:
        first.read_headers(place(), headers)

        await until(lambda: is_refused(second, place()), "the other worker knows")


@pytest.mark.parametrize(("told_s", "promised_s"), [(86_400, 86_400), (1e11, 31 * 86_400), (3, 3)])
async def test_a_vendor_is_obeyed_up_to_the_cap_and_its_word_is_told_to_all_workers(redis, redis_server, told_s, promised_s):
    more = {"retry_after_max_s": 5}
    async with clients(redis_server, 1) as (other,), worker(redis, **more) as first, worker(other, **more) as second:
        first.record_failure(demand(), place(), Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "", retry_after_s=told_s))
        await until(lambda: is_refused(second, place()), "the other worker knows")

        for quota in (first, second):
            with pytest.raises(Refused) as refused:
                async with quota.admitted(demand(), place()):
                    pass
            assert 0 < refused.value.earliest_s <= min(told_s, 5)
            assert promised_s - 3 < refused.value.wait_s <= promised_s + 0.1
        assert 0 < await redis.pttl(keyspace.PAUSED) <= 5000


async def test_a_later_word_replaces_a_promise(redis):
    async with worker(redis, retry_after_max_s=5) as quota:
        for told_s, most_s in ((86_400, 0.2), (4, 5)):
            quota.pauses.pause("openai:a:m", told_s, most_s)
            await quota.flush()

        assert await redis.hkeys(keyspace.PAUSED) == [b"openai:a:m"]
        assert quota.pauses.remaining("openai:a:m").promise_s <= 4


async def test_a_longer_pause_is_not_cut_short_by_a_shorter_one(redis, redis_server):
    async with clients(redis_server, 1) as (other,), worker(redis) as first, worker(other) as second:
        for quota, seconds in ((first, 20), (second, 1)):  # Told one right after the other.
            quota.record_failure(demand(), place(), Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "", retry_after_s=seconds))
            await quota.flush()

        seconds, _ = await redis.time()
        assert int(await redis.hget(keyspace.PAUSED, "openai:a:m")) / 1000 - seconds > 10
        await until(lambda: second.pauses.remaining("openai:a:m").pause_s > 10, "the other knows of the longer one")


def test_what_a_worker_was_told_itself_counts_before_redis_has_it():
    pauses = Pauses(lambda: 100.0)
    pauses.pause("openai:a:m", 20, 30)

    pauses.merge({b"openai:a:m": b"5000", b"openai:b:m": b"7000"}, redis_ms=3000)

    assert (pauses.remaining("openai:a:m"), pauses.remaining("openai:b:m")) == ((20, 20), (4, 4))


def test_the_same_word_is_passed_on_once():
    pauses = Pauses(lambda: 100.0)

    told = [pauses.pause("openai:a:m", seconds, 30) for seconds in (20, 20, 20.05, 21, 0.05)]

    assert told == [True, False, False, True, False]
    assert pauses.pop_unshared() == [("openai:a:m", 21_000, 21_000)]
    assert pauses.pop_unshared() == []


async def test_a_refusal_without_a_time_is_told_the_one_that_the_headers_gave(redis):
    async with worker(redis) as quota:
        failed = Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "")
        quota.read_headers(place(), {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7s"})
        quota.record_failure(demand(), place(), failed)

    assert failed.retry_after_s == pytest.approx(7, abs=1)


@pytest.mark.parametrize("kind", [ErrorKind.UPSTREAM_UNAVAILABLE, ErrorKind.UPSTREAM_REJECTED])
async def test_only_a_refusal_for_the_rate_pauses_a_key(redis, kind):
    async with worker(redis) as quota:
        quota.record_failure(demand(), place(), Failed(kind, "", retry_after_s=20))

        assert not await is_refused(quota, place())


async def test_a_refusal_to_count_tokens_says_nothing_of_generations(redis):
    async with worker(redis) as quota:
        failed = Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "", retry_after_s=20)
        quota.record_failure(demand(operation="count_tokens"), place(), failed)

        assert not await is_refused(quota, place())


async def test_what_is_noted_of_keys_is_bounded(redis, monkeypatch):
    monkeypatch.setattr(gate, "PAUSES_MAX", 3)
    async with worker(redis) as quota:
        for n in range(10):
            quota.record_failure(demand(), place(f"k{n}"), Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "", retry_after_s=20))
        await quota.flush()

    assert await redis.hlen(keyspace.PAUSED) == 3


async def test_neither_keys_nor_what_is_asked_stand_in_redis(redis):
    chosen = {"openai": ProviderSettings(api_keys=("sk-canary-1",), limits=Limits(requests=5, tokens=5000, concurrent=5))}
    (where,) = deployments(job(), Settings(_env_file=None, providers=chosen))
    async with worker(redis, chosen) as quota, quota.admitted(demand(), where):
        quota.record_failure(demand(), where, Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "", retry_after_s=20))
        await quota.flush()
        found = [await redis.dump(name) + name for name in await redis.keys("*")]

    assert len(found) == 4
    assert not any(b"canary" in each or b"xxxx" in each for each in found)


async def test_without_limits_no_call_asks_redis(redis):
    async with clients_of_nothing() as quota:
        assert not await is_refused(quota, place())


async def test_counting_tokens_takes_nothing_of_a_quota(redis):
    async with worker(redis, {"openai": ProviderSettings(api_keys=("k",), limits=Limits(requests=1))}) as quota:
        assert [await is_refused(quota, place(), operation="count_tokens") for _ in range(3)] == [False] * 3


async def test_a_brought_key_has_a_quota_of_its_own_and_no_budget_of_ours(redis):
    chosen = {"openai": ProviderSettings(api_keys=("k",), limits=Limits(requests=1), budget=Budget(day_usd=0))}
    brought = replace(place(), client_pays=True)
    async with worker(redis, chosen) as quota:
        assert [await is_refused(quota, brought) for _ in range(3)] == [False] * 3
        assert quota.affordable([brought, place()]) == [brought]


async def test_made_up_keys_take_one_quota_together_where_none_is_needed(redis):
    chosen = {"lab": ProviderSettings(base_url="http://x", limits=Limits(requests=1), budget=Budget(day_usd=0))}
    made_up = [replace(place(key, provider="lab"), quota_id="lab:lab") for key in ("junk", "more junk")]
    async with worker(redis, chosen) as quota:
        assert [await is_refused(quota, each) for each in (*made_up, place("lab", provider="lab"))] == [False, True, True]
        await until(lambda: quota.budgets.spent_nano_usd, "the budgets were read")
        with pytest.raises(GatewayError):
            quota.affordable(made_up)


@asynccontextmanager
async def clients_of_nothing(**limits: int) -> AsyncIterator[Quota]:
    chosen = {"openai": ProviderSettings(api_keys=("k",), limits=Limits(**limits))}
    redis = connect("redis://127.0.0.1:1")
    yield Quota(redis, Pulse(redis), Settings(_env_file=None, providers=chosen), Metrics(CollectorRegistry()))
    await redis.aclose()


async def test_while_redis_is_away_nothing_that_has_a_limit_is_called():
    async with clients_of_nothing(requests=5) as quota:
        with pytest.raises(Refused) as refused:
            async with quota.admitted(demand(), place()):
                pass

    assert refused.value.failed.kind is ErrorKind.OVERLOADED


@pytest.mark.parametrize(
    ("usage", "events", "is_whole", "used"),
    [
        (None, 0, False, 0),  # Refused, or never reached.
        (Usage(100, 50), 40, True, 150),
        (Usage(100, 5), 40, True, 105),  # Some vendors send more events than tokens.
        (Usage(100, 1), 40, False, 140),  # Cut off: what was to come at the end was never told.
        (None, 40, False, 144),  # The prompt by its estimate: 400 letters and a message.
        (None, 40, True, 144),
    ],
)
async def test_what_a_call_took_is_what_was_reported_or_else_what_was_seen(redis, usage, events, is_whole, used):
    async with worker(redis, {"openai": ProviderSettings(api_keys=("k",), limits=Limits(tokens=10_000))}) as quota:
        async with quota.admitted(demand(), place()) as call_usage:
            reserved = await redis.hvals(keyspace.limit("upstream", "openai:a", "tokens"))
            call_usage.record(usage, events, is_whole=is_whole)
        await quota.flush()

        assert reserved == [b"1104"]
        assert await redis.hvals(keyspace.limit("upstream", "openai:a", "tokens")) == [b"%d" % used]


@pytest.mark.parametrize(("more", "tokens"), [({"max_tokens": 50}, 154), ({"max_tokens": 50, "n": 3}, 254), ({}, 1104)])
def test_what_is_reserved_is_the_prompt_and_the_longest_answer(more, tokens):
    assert demand(**more).tokens == tokens


async def test_a_request_is_counted_as_refused_once_for_each_key(redis):
    chosen, registry = {"openai": ProviderSettings(api_keys=("k",), limits=Limits(requests=1))}, CollectorRegistry()
    async with worker(redis, chosen, registry=registry) as quota:
        assert not await is_refused(quota, place())
        ours = demand()
        for _ in range(3):
            with pytest.raises(Refused):
                async with quota.admitted(ours, place()):
                    pass

        labels = {"provider": "openai", "limit": "requests"}
        assert registry.get_sample_value("sluice_upstream_quota_refusals_total", labels) == 1


# Budgets

RICH = {
    "openai": ProviderSettings(api_keys=("k",), budget=Budget(day_usd=2, month_usd=10)),
    "anthropic": ProviderSettings(api_keys=("k",)),
    "groq": ProviderSettings(api_keys=("k",), budget=Budget(month_usd=10)),
}


async def spend(redis: Redis, quota: Quota, usd: float, provider: str = "openai", which: int = 0) -> None:
    """Spend so much of a day (0) or a month (1), and wait until the worker has read it."""
    counter = keyspace.spent("provider", provider, periods()[which])
    await redis.mset({keyspace.SPENT_LOADED: "loaded", counter: int(usd * NANO_USD)})
    await until(lambda: quota.budgets.spent_nano_usd.get(counter) == int(usd * NANO_USD), "it is read")


async def test_a_provider_whose_budget_is_spent_is_passed_over(redis):
    both = [place(), place(provider="anthropic")]
    await redis.set(keyspace.SPENT_LOADED, "loaded")
    async with worker(redis, RICH) as quota:
        assert quota.affordable(both) == both
        await spend(redis, quota, 1.999999999)
        assert quota.affordable(both) == both
        await spend(redis, quota, 2)

        assert quota.affordable(both) == both[1:]


async def test_while_nobody_knows_what_was_spent_providers_with_a_budget_are_passed_over(redis):
    brought, free = replace(place(), client_pays=True), place(provider="anthropic")
    async with worker(redis, RICH) as quota:
        await spend(redis, quota, 1)
        await redis.delete(keyspace.SPENT_LOADED, keyspace.spent("provider", "openai", periods()[0]))
        await until(lambda: not quota.budgets.is_known, "the loss was noticed")

        assert quota.affordable([place(), brought, free]) == [brought, free]
        with pytest.raises(GatewayError) as refused:
            quota.affordable([place()])

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.OVERLOADED, "budget_unknown")


@pytest.mark.parametrize(("which", "usd", "period"), [(0, 2, "day"), (1, 10, "month")])
async def test_where_no_provider_is_left_the_request_is_told_whose_budget_and_until_when(redis, which, usd, period):
    async with worker(redis, RICH) as quota:
        await spend(redis, quota, usd, which=which)

        with pytest.raises(GatewayError) as refused:
            quota.affordable([place()])

    assert refused.value.failed.kind is ErrorKind.BUDGET_EXCEEDED
    assert f"budget for openai is spent for this {period}. It starts again at 2" in refused.value.failed.message
    assert "T00:00:00Z" in refused.value.failed.message


async def test_where_both_are_spent_the_month_is_what_must_pass(redis):
    async with worker(redis, RICH) as quota:
        await spend(redis, quota, 2)
        await spend(redis, quota, 10, which=1)

        with pytest.raises(GatewayError, match="spent for this month"):
            quota.affordable([place()])


async def test_of_several_spent_providers_the_one_that_starts_anew_first_is_named(redis):
    async with worker(redis, RICH) as quota:
        await spend(redis, quota, 10, "groq", which=1)
        await spend(redis, quota, 2)

        with pytest.raises(GatewayError, match="budget for openai is spent for this day"):
            quota.affordable([place(provider="groq"), place()])


async def test_only_providers_with_a_budget_are_read(redis):
    async with worker(redis) as quota:
        assert quota.budgets.command()[2:] == ()
    async with worker(redis, RICH) as quota:
        assert {name.split(":")[4] for name in quota.budgets.command()[2:]} == {"openai", "groq"}
