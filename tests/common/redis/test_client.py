"""Addresses and errors of Redis; how connections behave is in test_pipe.py, outages are in tests/e2e."""

import asyncio

import pytest
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from cli.dev.embedded_redis import EmbeddedRedis
from common.canonical.errors import StoreUnavailable
from common.redis.client import connect
from common.redis.errors import as_unavailable
from common.redis.pipe import NOT_MASTER
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts


@pytest.mark.parametrize(
    ("url", "sentinels", "service", "options"),
    [
        ("redis+sentinel://a:1,b:2/main", [("a", 1), ("b", 2)], "main", {"db": 0, "username": None, "password": None}),
        ("redis+sentinel://a/main/3", [("a", 26379)], "main", {"db": 3}),
        (
            "redis+sentinel://me:p%40ss@[::1]:7,10.0.0.2/x",
            [("::1", 7), ("10.0.0.2", 26379)],
            "x",
            {"username": "me", "password": "p@ss"},
        ),
        ("redis+sentinel://:p@a:1/main", [("a", 1)], "main", {"username": None, "password": "p"}),
    ],
)
async def test_sentinels_are_named_in_the_address(url, sentinels, service, options):
    client = connect(url)

    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    addresses = [found.connection_pool.connection_kwargs for found in pool.sentinel_manager.sentinels]
    assert [(found["host"], found["port"]) for found in addresses] == sentinels
    assert pool.service_name == service
    assert options.items() <= pool.connection_kwargs.items()
    await client.aclose()


@pytest.mark.parametrize("url", ["redis+sentinel://a:1", "redis+sentinel:///main"])
def test_an_address_without_sentinels_or_service_is_refused(url):
    with pytest.raises(ValueError, match="SLUICE_REDIS_URL"):
        connect(url)


@pytest.mark.parametrize(
    "text",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica. script: 1, on @user_script:1.",
        "ERR Error running script (call to f_1): @user_script:31: @user_script: 31: -OOM command not allowed",
        "ERR Error running script (call to f_1): @user_script:31: -READONLY You can't write against a read only replica.",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ],
)
def test_a_server_that_cannot_serve_now_is_unavailable(text):
    assert isinstance(as_unavailable(ResponseError(text)), StoreUnavailable)


@pytest.mark.parametrize("text", ["ERR wrong number of arguments", "WRONGTYPE Operation against a key", "BUSYGROUP exists"])
def test_a_fault_of_ours_is_not_blamed_on_the_server(text):
    assert as_unavailable(ResponseError(text)) is None


async def test_no_calls_have_no_answers(redis, tmp_path):
    assert await Scripts(redis, tmp_path).run_many([]) == []


@pytest.fixture
async def pulse(redis):
    """Beats when a test says so, from its start on."""
    found = Pulse(redis, interval_s=3600)
    yield found
    await found.stop()


async def test_what_is_watched_is_read_with_every_beat(pulse, redis):
    heard: list[object] = []
    pulse.watch(("GET", "sluice:test"), heard.append)
    pulse.watch(("HGETALL", "sluice:test:hash"), heard.append)

    await pulse.start()
    await redis.set("sluice:test", "new")
    await redis.hset("sluice:test:hash", "a", "1")
    await pulse.beat()

    assert heard == [None, {}, b"new", {b"a": b"1"}]
    assert pulse.is_up


async def test_after_an_outage_nobody_may_rely_on_redis_before_what_is_watched_is_known_again(pulse):
    seen: list[bool] = []
    pulse.watch(("GET", "sluice:test"), lambda _: seen.append(pulse.is_up))

    await pulse.start()

    assert seen == [False]
    assert pulse.is_up


async def test_another_server_that_answers_in_time_counts_as_whole_from_then_on_only(redis, monkeypatch):
    now, client = 0.0, redis.client()
    monkeypatch.setattr(redis, "client", lambda: client)
    pulse = Pulse(redis, lambda: now, interval_s=3600)
    await pulse.start()
    now = 10.0
    await pulse.beat()
    assert pulse.healthy_s() == 10.0

    client.connection.host = "promoted"  # As after a failover between two beats.
    await pulse.beat()

    assert (pulse.is_up, pulse.healthy_s()) == (True, 0.0)
    now = 12.0
    assert pulse.healthy_s() == 2.0
    await pulse.stop()


async def test_a_pipeline_on_a_connection_that_uvloop_has_closed_fails_as_redis_does(redis_server):
    client = connect(redis_server.url)
    await client.ping()
    (connection,) = client.connection_pool._available_connections

    async def send(*_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    connection.send_packed_command = send
    pipe = client.pipeline(transaction=True)
    pipe.set("sluice:test", "1")
    with pytest.raises(RedisConnectionError):
        await pipe.execute()
    await client.aclose()


def test_a_script_that_is_missing_right_after_it_was_loaded_is_another_servers_lack_and_not_our_fault():
    assert isinstance(as_unavailable(NoScriptError("No matching script. Please use EVAL.")), StoreUnavailable)


async def test_a_master_that_another_has_replaced_at_its_address_is_left_with_every_connection(tmp_path):
    (tmp_path / "count.lua").write_text("return redis.call('INCR', 'sluice:test')")
    with EmbeddedRedis() as old, EmbeddedRedis() as new:
        if not old.is_real:
            pytest.skip("needs a real Redis")
        address = old.folder / "address.sock"  # As a name or a balancer: who is connected stays where he is.
        address.symlink_to(old.folder / "redis.sock")
        redis, admin = connect(f"unix://{address}"), connect(old.url)
        pulse = Pulse(redis)
        await pulse.start()
        await redis.get("sluice:test")  # One more connection, which idles.
        counting = Scripts(redis, tmp_path)
        assert await counting.run("count", [], []) == 1

        address.unlink()
        address.symlink_to(new.folder / "redis.sock")
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailable):
            await counting.run("count", [], [])
        await asyncio.sleep(0.1)

        assert [await counting.run("count", [], []) for _ in range(2)] == [1, 2]
        await pulse.beat()
        assert (pulse.is_up, pulse.healthy_s() < 5) == (True, True)
        assert len(await admin.client_list()) == 1  # The admin's own.
        await pulse.stop()
        await redis.aclose()
        await admin.aclose()


@pytest.mark.parametrize("text", ["ERR READONLY You can't write against a read only instance"])
def test_a_proxys_own_form_of_a_refusal_is_one(text):
    assert isinstance(as_unavailable(ResponseError(text)), StoreUnavailable)
    assert NOT_MASTER.search(text)
