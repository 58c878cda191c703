"""Many who read logs at once, on real Redis."""

import asyncio
from types import SimpleNamespace

import pytest

from common.canonical.errors import StoreUnavailable
from common.channel.base import START, FrameId, FrameKind
from common.channel.redis_log import READS_AT_ONCE, LogReader
from common.redis import keyspace
from common.redis.client import Client


async def write(redis: Client, generation_id: str, count: int) -> None:
    for n in range(1, count + 1):
        await redis.xadd(keyspace.log(generation_id), {"k": "data", "d": f"{generation_id} {n}"}, id=f"1-{n}")


async def asked(redis: Client) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_xrange", {}).get("calls", 0))


@pytest.fixture
async def reader(redis: Client) -> LogReader:
    await redis.config_resetstat()
    return LogReader(redis)


async def test_who_asks_for_the_same_at_the_same_time_gets_one_answer(redis, reader):
    await write(redis, "gen_1", 5)

    found = await asyncio.gather(*(reader.read("gen_1", START, 10) for _ in range(500)))

    assert [frame.id.n for frame in found[0]] == [1, 2, 3, 4, 5]
    assert all(each == found[0] for each in found)
    assert await asked(redis) == 1


async def test_an_answer_is_never_older_than_the_question(redis, reader):
    await write(redis, "gen_1", 1)
    early = asyncio.create_task(reader.read("gen_1", START, 10))
    await asyncio.sleep(0.01)  # It is on its way, or back.
    await redis.xadd(keyspace.log("gen_1"), {"k": "end", "d": "{}"}, id="1-2")

    late = await reader.read("gen_1", START, 10)

    assert [frame.kind for frame in late] == [FrameKind.DATA, FrameKind.END]
    await early


async def test_each_gets_what_it_asked_for_however_many_ask(redis, reader):
    count = 3 * READS_AT_ONCE + 1
    for number in range(count):
        await write(redis, f"gen_{number}", 2)

    found = await asyncio.gather(*(reader.read(f"gen_{number}", FrameId(1, 1), 10) for number in range(count)))

    assert [[frame.data.decode() for frame in each] for each in found] == [[f"gen_{number} 2"] for number in range(count)]


async def test_what_is_no_log_is_its_own_readers_trouble_alone(redis, reader):
    await redis.set(keyspace.log("gen_bad"), "text")
    await redis.xadd(keyspace.log("gen_odd"), {"x": "y"}, id="1-1")
    await write(redis, "gen_1", 1)

    bad, odd, good = await asyncio.gather(
        *(reader.read(name, START, 10) for name in ("gen_bad", "gen_odd", "gen_1")), return_exceptions=True
    )

    assert isinstance(bad, Exception)
    assert isinstance(odd, Exception)
    assert not isinstance(bad, StoreUnavailable)
    assert len(good) == 1


async def test_who_gives_up_does_not_take_the_answer_from_the_others(redis, reader):
    await write(redis, "gen_1", 1)
    waits = [asyncio.create_task(reader.read("gen_1", START, 10)) for _ in range(3)]
    await asyncio.sleep(0)

    waits[0].cancel()

    assert [len(found) for found in await asyncio.gather(*waits[1:])] == [1, 1]


async def test_a_lost_connection_fails_those_who_wait_and_the_next_read_makes_another(redis, reader):
    await reader.read("gen_1", START, 10)
    wait = asyncio.create_task(reader.read("gen_1", START, 10))
    await asyncio.sleep(0)

    await redis.leave()

    with pytest.raises(StoreUnavailable):
        await wait
    assert await reader.read("gen_1", START, 10) == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("a fault of ours")])
async def test_a_read_that_is_given_up_lets_go_all_who_wait_for_it(error):
    is_asked, may_fail = asyncio.Event(), asyncio.Event()

    async def run(_: list[bytes]) -> list[object]:
        is_asked.set()
        await may_fail.wait()
        raise error

    reader = LogReader(SimpleNamespace(reads=SimpleNamespace(run=run)))  # type: ignore[arg-type]
    reads = [asyncio.ensure_future(reader.read(f"gen_{number}", START, 10)) for number in (1, 1, 2)]
    await is_asked.wait()
    may_fail.set()

    answers = await asyncio.gather(*reads, return_exceptions=True)

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
