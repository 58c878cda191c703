"""When does a publisher send what its writers hold, and how much at once? Its channel and its linger are scripted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.channel.base import Append, Claim, FrameId, Stop, WriteResult, WriteStatus
from common.config.settings import Settings
from workers.publish.publisher import Publisher
from workers.publish.writer import Writer


class Pulse:
    is_up = True

    def healthy_s(self) -> float:
        return 1_000.0


class Linger:
    def __init__(self) -> None:
        self.streams, self.waits = 0, 0
        self.on_tick: Callable[[], object] = lambda: None

    def wait(self) -> None:
        self.waits += 1


class Channel:
    """Takes all frames once it ``is_open``. ``appends`` are the generations and data of each flush."""

    def __init__(self) -> None:
        self.appends: list[dict[str, bytes]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.is_away = False

    async def append(self, appends: list[Append]) -> list[WriteResult]:
        self.appends.append({item.claim.generation_id: b"".join(frame.data for frame in item.frames) for item in appends})
        await self.is_open.wait()
        if self.is_away:
            raise StoreUnavailable("away")
        return [WriteResult(WriteStatus.OK, item.frames[-1].id, Stop.NO, 1) for item in appends]

    async def heartbeat(self, claims: list[Claim], notes: list[bytes]) -> list[WriteResult]:
        return [WriteResult(WriteStatus.OK, FrameId(1, 0), Stop.NO, 1) for _ in claims]


class Lab:
    def __init__(self, **settings: float) -> None:
        self.channel, self.linger = Channel(), Linger()
        short = {"worker_buffer_bytes_max": 10, "worker_buffer_s": 1_000.0, "heartbeat_s": 1_000.0}
        chosen = Settings().model_copy(update=short | settings)
        self.publisher = Publisher(self.channel, Pulse(), chosen, self.linger)  # type: ignore[arg-type]
        self._open = ExitStack()

    def writer(self, generation_id: str) -> Writer:
        return self._open.enter_context(self.publisher.writer(Claim(generation_id, 1, "t"), FrameId(1, 0), lambda: None))

    async def flushes(self, count: int) -> list[dict[str, bytes]]:
        async with asyncio.timeout(20):
            while len(self.channel.appends) < count:
                await asyncio.sleep(0.001)
        for _ in range(5):  # Another one would follow at once.
            await asyncio.sleep(0)
        return self.channel.appends

    def close(self) -> None:
        self._open.close()


@pytest.fixture
async def lab(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    monkeypatch.setattr("workers.publish.publisher.PAUSE_WHILE_AWAY_S", 0)
    lab = Lab(**getattr(request, "param", {}))
    lab.publisher.start()
    yield lab
    lab.close()
    await lab.publisher.stop()
    assert (lab.publisher.buffered_bytes, lab.linger.streams) == (0, 0)


async def test_what_may_linger_waits_for_the_tick_of_all_streams(lab):
    one, two = lab.writer("gen_1"), lab.writer("gen_2")

    one.write(b"a")
    two.write(b"b")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (lab.channel.appends, lab.linger.waits, lab.linger.streams) == ([], 2, 2)
    lab.linger.on_tick()

    assert await lab.flushes(1) == [{"gen_1": b"a", "gen_2": b"b"}]


async def test_what_is_urgent_waits_for_nothing_and_takes_the_rest_along(lab):
    one, two = lab.writer("gen_1"), lab.writer("gen_2")
    one.write(b"a")

    two.write(b"b", is_urgent=True)

    assert await lab.flushes(1) == [{"gen_1": b"a", "gen_2": b"b"}]
    assert lab.linger.waits == 1


@pytest.mark.parametrize(("bytes_max", "sizes"), [(1, [1, 1, 1]), (4, [1, 1, 1]), (5, [2, 1]), (8, [2, 1]), (9, [3])])
async def test_a_flush_is_bounded_in_bytes_and_the_next_one_takes_the_rest(lab, monkeypatch, bytes_max, sizes):
    monkeypatch.setattr("workers.publish.publisher.FLUSH_BYTES_MAX", bytes_max)
    for n in range(3):
        lab.writer(f"gen_{n}").write(b"four")

    lab.linger.on_tick()

    assert [len(flush) for flush in await lab.flushes(len(sizes))] == sizes


async def test_what_gathers_while_a_flush_is_under_way_is_sent_with_the_next(lab):
    one = lab.writer("gen_1")
    lab.channel.is_open.clear()
    one.write(b"a", is_urgent=True)
    await lab.flushes(1)

    one.write(b"b", is_urgent=True)
    one.write(b"c", is_urgent=True)
    lab.channel.is_open.set()

    assert await lab.flushes(2) == [{"gen_1": b"a"}, {"gen_1": b"bc"}]


async def test_a_writer_that_is_closed_sends_nothing_more(lab):
    lab.channel.is_open.clear()
    lab.writer("gen_1").write(b"a", is_urgent=True)
    await lab.flushes(1)
    with lab.publisher.writer(Claim("gen_2", 1, "t"), FrameId(1, 0), lambda: None) as other:
        other.write(b"b", is_urgent=True)
        assert lab.publisher.buffered_bytes == 2
    assert lab.publisher.buffered_bytes == 1

    lab.channel.is_open.set()
    lab.writer("gen_3").write(b"c", is_urgent=True)

    assert await lab.flushes(2) == [{"gen_1": b"a"}, {"gen_3": b"c"}]


async def test_while_redis_is_away_frames_are_tried_again_and_may_not_become_too_many(lab):
    one = lab.writer("gen_1")
    lab.publisher.check_room()
    lab.channel.is_away = True
    one.write(b"12345678901", is_urgent=True)
    await lab.flushes(2)
    since = lab.publisher.away_since
    assert since is not None

    with pytest.raises(GatewayError) as refused:
        lab.publisher.check_room()
    await lab.flushes(4)
    assert lab.publisher.away_since == since  # Counted from the first failure.
    lab.channel.is_away = False
    async with asyncio.timeout(20):
        await one.wait_flushed()

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.OVERLOADED, "store_unavailable")
    assert lab.publisher.away_since is None
    lab.publisher.check_room()


@pytest.mark.parametrize(("size", "is_refused"), [(10, False), (11, True)])
async def test_room_is_up_to_its_limit(lab, size, is_refused):
    lab.channel.is_away = True
    lab.writer("gen_1").write(b"x" * 10, is_urgent=True)
    await lab.flushes(1)
    lab.publisher.buffered_bytes += size - 10

    if is_refused:
        with pytest.raises(GatewayError):
            lab.publisher.check_room()
    else:
        lab.publisher.check_room()
    lab.publisher.buffered_bytes -= size - 10


@pytest.mark.parametrize("lab", [{"worker_buffer_s": 0.0}], indirect=True)
async def test_an_outage_that_lasts_too_long_leaves_no_room(lab):
    lab.channel.is_away = True
    lab.writer("gen_1").write(b"x", is_urgent=True)
    await lab.flushes(3)

    with pytest.raises(GatewayError):
        lab.publisher.check_room()
