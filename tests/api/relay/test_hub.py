"""What a process that listens holds, on real Redis: gaps, cut connections, lost ends, generations that nobody will end."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.relay.hub import JOINING_MAX, Hub
from api.relay.viewer import Viewer
from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreRefused, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import (
    NOBODY,
    Append,
    Claim,
    Cursor,
    Frame,
    FrameId,
    FrameKind,
    Message,
    Opening,
    State,
    Stop,
    WriteStatus,
)
from common.channel.redis import RedisChannel, RedisFeed
from common.config.settings import Settings
from common.queue.jobs import JobClass, JobQueue, JobStatus
from common.redis import keyspace
from common.redis.pulse import Pulse

G = "gen_1"
CLAIM = Claim(G, 1, "t")


class LossyFeed(RedisFeed):
    """It loses live messages for which ``loses`` holds, as a network may."""

    loses: Callable[[Message], Any] = staticmethod(lambda _: False)

    async def subscribe(self, generation_id: str, sink: Callable[[Message], None]) -> None:
        await super().subscribe(generation_id, lambda message: None if self.loses(message) else sink(message))


@dataclass
class Setup:
    redis: Redis
    pulse: Pulse
    channel: RedisChannel
    feed: LossyFeed
    queue: JobQueue
    hub: Hub

    async def open(self, generation_id: str = G, policy: Policy = Policy.STOP) -> Viewer:
        viewer = await self.hub.join(generation_id)
        opening = Opening("me", "openai-chat", True, "m", 1, policy, 0, 60, 600, b"")
        await self.channel.open(generation_id, opening, self.hub.replica)
        await self.queue.enqueue(generation_id, "me", JobClass.INTERACTIVE)
        return viewer

    async def claim(self) -> None:
        await self.queue.claim(10, lapsed_max=0, excluded_ids=())
        await self.channel.fence(CLAIM, is_handover=False)

    async def add(self, n: int, kind: FrameKind = FrameKind.DATA) -> None:
        data = b'{"error":null}' if kind is FrameKind.END else b"data: %d\n\n" % n
        await self.channel.append([Append(CLAIM, FrameId(1, n - 1), [Frame(FrameId(1, n), kind, data)])])


@pytest.fixture
async def setup(redis: Redis, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr("api.relay.hub.WATCHDOG_S", 0.02)
    monkeypatch.setattr("api.relay.hub.UNCLAIMED_CHECK_S", 0.4)  # A busy machine takes its time before it enqueues.
    settings = Settings().model_copy(update={"heartbeat_s": 0.05, **getattr(request, "param", {})})
    pulse, channel, feed = Pulse(redis), RedisChannel(redis, 60), LossyFeed(redis)
    await pulse.start()
    await feed.start()
    queue = JobQueue(redis, pulse, settings)
    hub = Hub(channel, feed, queue, settings)
    hub.start()
    yield Setup(redis, pulse, channel, feed, queue, hub)
    await hub.stop()
    await feed.stop()
    await pulse.stop()


async def until_end(viewer: Viewer) -> list[Frame]:
    frames: list[Frame] = []
    async with asyncio.timeout(120):
        while not viewer.has_ended:
            frames += await viewer.next_frames()
    return frames


async def test_a_lost_message_is_repaired_from_the_log(setup):
    viewer = await setup.open()
    setup.feed.loses = lambda message: message.frame and message.frame.id.n in (2, 3)
    await setup.claim()
    for n in range(1, 6):
        await setup.add(n)
    await setup.add(6, FrameKind.END)

    frames = await until_end(viewer)

    assert [frame.id.n for frame in frames] == [0, 1, 2, 3, 4, 5, 6]


async def test_a_lost_end_is_noticed(setup):
    viewer = await setup.open()
    setup.feed.loses = lambda message: message.frame and message.frame.kind is FrameKind.END
    await setup.claim()
    await setup.add(1)
    await setup.add(2, FrameKind.END)

    assert [frame.kind for frame in await until_end(viewer)] == [FrameKind.FENCE, FrameKind.DATA, FrameKind.END]


async def test_a_cut_subscriber_reconnects_and_misses_nothing(setup):
    viewer = await setup.open()
    await setup.claim()
    for n in range(1, 10):
        await setup.add(n)
        if n % 3 == 0:
            await setup.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await setup.add(10, FrameKind.END)

    assert [frame.id.n for frame in await until_end(viewer)] == list(range(11))


async def test_one_subscription_serves_many_viewers_and_goes_with_the_last(setup):
    first = await setup.open()
    others = [await setup.hub.join(G) for _ in range(3)]
    assert await count_subscriptions(setup) == 1

    for viewer in others:
        await setup.hub.leave(viewer)
    assert setup.feed.subscriptions == 1

    await setup.hub.leave(first)
    assert setup.feed.subscriptions == 0
    async with asyncio.timeout(120):
        while await count_subscriptions(setup):
            await asyncio.sleep(0.01)


async def count_subscriptions(setup: Setup) -> int:
    return len(await setup.redis.pubsub_channels())


async def test_a_job_whose_last_viewer_left_never_runs(setup):
    viewer = await setup.open()

    await setup.hub.leave(viewer)

    assert await setup.queue.statuses([G]) == [JobStatus.GONE]
    (end,) = await setup.channel.read(G, FrameId(0, 0), 10)
    error = orjson.loads(end.data)["error"]
    assert (error["kind"], error["message"]) == ("cancelled", "The generation was stopped: its client left.")


async def test_a_leave_is_reported_although_its_handler_is_cancelled(setup, monkeypatch):
    viewer, leave, may_go_on = await setup.open(), setup.channel.leave, asyncio.Event()

    async def leave_late(*args: Any) -> Stop:
        await may_go_on.wait()
        return await leave(*args)

    monkeypatch.setattr(setup.channel, "leave", leave_late)
    leaving = asyncio.create_task(setup.hub.leave(viewer))
    await asyncio.sleep(0)
    leaving.cancel()
    assert isinstance((await asyncio.gather(leaving, return_exceptions=True))[0], asyncio.CancelledError)
    may_go_on.set()

    async with asyncio.timeout(120):
        while await setup.queue.statuses([G]) != [JobStatus.GONE]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_running", [False, True])
async def test_an_api_that_stops_is_not_a_client_that_left(setup, is_running):
    viewer = await setup.open()
    if is_running:
        await setup.claim()
    viewer.leave_reason = Stop.API_ENDED

    await setup.hub.leave(viewer)

    if is_running:
        assert (await setup.channel.heartbeat([CLAIM]))[0].stop is Stop.API_ENDED
    else:
        (end,) = await setup.channel.read(G, FrameId(0, 0), 10)
        assert orjson.loads(end.data)["error"]["message"].endswith("the gateway process that served its client ended.")


async def test_each_end_that_is_written_here_has_a_token_of_its_own(setup, monkeypatch):
    tokens: list[str] = []
    end_unowned = setup.channel.end_unowned

    async def kept(generation_id: str, token: str, failed: Failed) -> WriteStatus:
        tokens.append(token)
        return await end_unowned(generation_id, token, failed)

    monkeypatch.setattr(setup.channel, "end_unowned", kept)
    for generation_id in ("gen_0", "gen_1"):
        await setup.hub.leave(await setup.open(generation_id))

    assert [re.fullmatch("[0-9a-f]{16}", token) is not None for token in tokens] == [True, True]
    assert len(set(tokens)) == 2


async def test_replicas_have_different_names(setup):
    other = Hub(setup.channel, setup.feed, setup.queue, Settings())

    assert re.fullmatch("[0-9a-f]{12}", other.replica)
    assert other.replica != setup.hub.replica


async def test_a_running_generation_hears_that_its_last_viewer_left(setup):
    viewer = await setup.open()
    await setup.claim()

    await setup.hub.leave(viewer)

    assert (await setup.channel.heartbeat([CLAIM]))[0].stop is Stop.LEFT
    assert await setup.queue.statuses([G]) == [JobStatus.RUNNING]


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.1}], indirect=True)
async def test_a_generation_that_no_worker_claims_in_time_is_ended_here(setup):
    viewer = await setup.open()

    frames = await until_end(viewer)

    assert orjson.loads(frames[-1].data)["error"]["kind"] == "deadline_exceeded"
    async with asyncio.timeout(120):
        while await setup.queue.statuses([G]) != [JobStatus.GONE]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.1, "lease_s": 0.05}], indirect=True)
async def test_a_generation_whose_worker_died_with_no_other_left_is_ended_here(setup):
    viewer = await setup.open()
    await setup.claim()

    frames = await until_end(viewer)

    assert orjson.loads(frames[-1].data)["error"]["kind"] == "worker_lost"


async def test_a_generation_whose_job_is_gone_without_an_end_is_ended_here(setup):
    viewer = await setup.open()
    await setup.claim()
    await setup.queue.withdraw(G)

    frames = await until_end(viewer)

    assert orjson.loads(frames[-1].data)["error"]["kind"] == "worker_lost"


async def test_a_log_that_ended_before_what_a_viewer_has_seen_fails_it(setup):
    """As after a failover that lost the viewer's claim: another one has ended the log with fewer frames."""
    viewer = await setup.open()
    setup.feed.loses = lambda message: message.frame and message.frame.kind is FrameKind.END
    await setup.claim()
    for n in range(1, 6):
        await setup.add(n)
    while viewer.tail < FrameId(1, 5):
        await asyncio.wait_for(viewer.next_frames(), 120)
    log = f"{{{G}}}:log"
    entries = await setup.redis.xrange(log)
    await setup.redis.delete(log)
    for entry_id, fields in entries[:4]:
        await setup.redis.xadd(log, fields, entry_id)
    await setup.redis.hset(f"{{{G}}}:state", "pos", "1 t 1-3")
    await setup.add(4, FrameKind.END)
    await setup.queue.withdraw(G)

    async with asyncio.timeout(120):
        while await viewer.next_frames():
            pass
    assert viewer.failed and viewer.failed.code == "frames_lost"


async def test_a_log_that_is_gone_fails_its_viewers(setup):
    viewer = await setup.open()
    await setup.claim()
    await setup.redis.flushall()

    async with asyncio.timeout(120):
        while await viewer.next_frames():
            pass
    assert viewer.failed and viewer.failed.code == "log_lost"


async def test_who_comes_back_with_a_cursor_gets_what_follows_it(setup):
    await setup.open()
    await setup.claim()
    for n in range(1, 4):
        await setup.add(n)

    viewer, state = await setup.hub.join_existing(G, "me", Cursor(FrameId(1, 1), 1))

    frames = await viewer.next_frames()
    assert [frame.id.n for frame in frames if frame.data] == [2, 3]
    assert (state.owner, state.last) == ("me", FrameId(1, 3))


@pytest.mark.parametrize("comes_first", [True, False])
async def test_a_viewer_that_comes_while_another_leaves_keeps_the_process_a_member(setup, comes_first):
    leaving = await setup.open(policy=Policy.DETACH)
    steps = [setup.hub.leave(leaving), setup.hub.join_existing(G, "me")]

    results = await asyncio.gather(*(steps[::-1] if comes_first else steps))

    viewer, _ = next(result for result in results if result)
    assert await setup.redis.smembers(f"{{{G}}}:viewers") == {setup.hub.replica.encode()}
    await setup.hub.leave(viewer)
    assert await setup.redis.smembers(f"{{{G}}}:viewers") == set()


async def test_whoever_may_not_enter_is_no_viewer_and_stops_nothing(setup):
    viewer = await setup.open()
    await setup.claim()

    for generation_id, owner in ((G, "a stranger"), ("gen_unknown", "me")):
        with pytest.raises(GatewayError):
            await setup.hub.join_existing(generation_id, owner)

    assert setup.hub.open_viewers == setup.feed.subscriptions == 1
    assert (await setup.channel.heartbeat([CLAIM]))[0].stop is Stop.NO
    await setup.hub.leave(viewer)


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_job_that_was_lost_is_ended_for_whoever_asks(setup, is_claimed):
    opening = Opening("me", "openai-chat", True, "m", 1, Policy.DETACH, 0, 60, 600, b"")
    await setup.channel.open(G, opening, "")
    await setup.queue.enqueue(G, "me", JobClass.INTERACTIVE)
    if is_claimed:
        await setup.claim()
    assert not await setup.hub.end_if_lost(G)
    await setup.queue.withdraw(G)

    assert await setup.hub.end_if_lost(G)
    assert not await setup.hub.end_if_lost(G)

    (state,) = await setup.channel.describe([G], "me")
    assert state.end.failed.kind == "worker_lost"


# One bad record, and a store that refuses

REFUSED = ResponseError("READONLY You can't write against a read only replica.")


async def failure(viewer: Viewer) -> str | None:
    """The code with which a viewer ends that the log does not end."""
    async with asyncio.timeout(10):
        while not viewer.failed and not viewer.has_ended:
            await viewer.next_frames()
    return viewer.failed.code if viewer.failed else None


@pytest.mark.parametrize("spoil", ["state", "position", "job"])
async def test_what_is_wrong_with_one_generation_does_not_keep_the_patrol_from_another(setup, spoil):
    spoilt, other = await setup.open("gen_0"), await setup.open()
    setup.feed.loses = lambda message: message.frame and message.frame.kind is FrameKind.END
    await setup.claim()
    await setup.channel.fence(Claim("gen_0", 1, "t"), is_handover=False)
    if spoil == "state":
        await setup.redis.delete("{gen_0}:state")
        await setup.redis.set("{gen_0}:state", "none of ours")
    elif spoil == "position":
        await setup.redis.hset("{gen_0}:state", "pos", "none of ours")
    else:
        await setup.redis.delete(keyspace.JOB + "gen_0")
        await setup.redis.set(keyspace.JOB + "gen_0", "none of ours")
    await setup.add(1)
    await setup.add(2, FrameKind.END)

    assert [frame.kind for frame in await until_end(other)] == [FrameKind.FENCE, FrameKind.DATA, FrameKind.END]
    assert await failure(spoilt) == (None if spoil == "job" else "log_lost")
    if spoil == "job":
        (state,) = await setup.channel.describe(["gen_0"], "me")
        assert state.end.failed.kind == "worker_lost"


async def test_a_log_that_is_none_fails_its_viewer_with_an_error(setup):
    await setup.open()
    await setup.claim()
    await setup.redis.delete(f"{{{G}}}:log")
    await setup.redis.set(f"{{{G}}}:log", "none of ours")

    viewer, _ = await setup.hub.join_existing(G, "me")

    assert await failure(viewer) == "log_lost"


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.5}], indirect=True)
@pytest.mark.parametrize("error", [StoreRefused("NOPERM"), StoreUnavailable("no answer")])
async def test_a_viewer_is_told_when_nothing_was_heard_of_its_answer_for_too_long(setup, monkeypatch, error):
    async def fails(*_: object) -> None:
        raise error

    viewer = await setup.open()
    monkeypatch.setattr(setup.queue, "statuses", fails)

    assert await failure(viewer) == "store_unavailable"
    assert viewer.failed and ("refused" in viewer.failed.message) == isinstance(error, StoreRefused)


async def test_a_store_that_is_away_for_a_moment_fails_no_viewer(setup, monkeypatch):
    fails: list[None] = []
    statuses = setup.queue.statuses

    async def away(ids: list[str]) -> list[JobStatus]:
        fails.append(None)
        if len(fails) < 3:
            raise StoreUnavailable("no answer")
        return await statuses(ids)

    viewer = await setup.open()
    setup.feed.loses = lambda _: True
    await setup.claim()
    await setup.add(1)
    await setup.add(2, FrameKind.END)
    monkeypatch.setattr(setup.queue, "statuses", away)
    monkeypatch.setattr("api.relay.hub.UNCLAIMED_CHECK_S", -1)

    assert (await until_end(viewer))[-1].kind is FrameKind.END
    assert viewer.failed is None


@pytest.mark.parametrize("setup", [{"heartbeat_s": 0.05}, {"heartbeat_s": 1000}], indirect=True)
async def test_how_long_a_generation_may_be_silent_depends_on_whether_it_was_claimed(setup, monkeypatch):
    is_claimed = setup.hub._settings.heartbeat_s < 1
    monkeypatch.setattr("api.relay.hub.UNCLAIMED_CHECK_S", 1000 if is_claimed else 0.05)
    viewer = await setup.open()
    heard: list[Message] = []
    setup.feed.loses = lambda message: not is_claimed or heard or heard.append(message)  # All but the first, or all.
    await setup.claim()
    await setup.add(1)
    await setup.add(2, FrameKind.END)

    async with asyncio.timeout(20):
        assert (await until_end(viewer))[-1].kind is FrameKind.END


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.5}], indirect=True)
async def test_an_end_that_redis_refuses_to_write_down_is_told_all_the_same(setup, monkeypatch):
    async def refuses(*_: object) -> None:
        raise StoreUnavailable("refused") from REFUSED

    monkeypatch.setattr(setup.channel, "end_unowned", refuses)
    viewer = await setup.open()  # Nobody claims it.

    assert await failure(viewer) == "store_unavailable"


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.5}], indirect=True)
async def test_an_end_that_cannot_be_written_for_any_other_reason_fails_the_viewer(setup, monkeypatch):
    async def breaks(*_: object) -> None:
        raise ResponseError("ERR value is not an integer or out of range")

    monkeypatch.setattr(setup.channel, "end_unowned", breaks)
    viewer = await setup.open()  # Nobody claims it.

    assert await failure(viewer) == "log_lost"


async def test_a_viewer_that_leaves_during_a_check_does_not_keep_the_check_from_the_others(setup, monkeypatch):
    monkeypatch.setattr("api.relay.hub.UNCLAIMED_CHECK_S", 1000)
    leaving, other = await setup.open("gen_0", Policy.DETACH), await setup.open()  # Leaving it ends nothing.
    setup.feed.loses = lambda _: True
    await setup.claim()
    await setup.add(1)
    await setup.add(2, FrameKind.END)
    statuses, is_checked = setup.queue.statuses, False

    async def check_once(ids: list[str]) -> list[JobStatus]:
        nonlocal is_checked
        if is_checked:
            await asyncio.Event().wait()
        is_checked = True
        await setup.hub.leave(leaving)
        return await statuses(ids)

    monkeypatch.setattr(setup.queue, "statuses", check_once)
    monkeypatch.setattr("api.relay.hub.UNCLAIMED_CHECK_S", -1)  # Each round checks all.

    async with asyncio.timeout(10):
        assert [frame.kind for frame in await until_end(other)] == [FrameKind.FENCE, FrameKind.DATA, FrameKind.END]


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.5}], indirect=True)
async def test_a_worker_that_renews_and_cannot_say_a_word_keeps_no_viewer_for_ever(setup):
    viewer = await setup.open()
    await setup.claim()  # No heartbeat follows.

    assert await failure(viewer) == "store_unavailable"


@pytest.mark.parametrize("setup", [{"queue_wait_s": 0.2}], indirect=True)
@pytest.mark.parametrize("workers", [0, 1])
async def test_a_client_is_told_whether_no_worker_was_free_or_none_runs(setup, workers):
    if workers:
        await setup.queue.report_alive("one", takes_jobs=True)
    await setup.pulse.beat()
    viewer = await setup.open()

    end = (await until_end(viewer))[-1]

    error = orjson.loads(end.data)["error"]
    assert (error["kind"], error["code"]) == ("deadline_exceeded", "deadline_exceeded")
    assert ("is running" in error["message"], "was free" in error["message"]) == (workers == 0, workers == 1)


async def test_however_many_come_to_read_all_get_in_a_few_at_a_time(setup, monkeypatch):
    await setup.open()
    await setup.claim()
    await setup.add(1)
    entering, most = 0, 0
    enter = setup.channel.enter

    async def counted(*args: Any) -> Any:
        nonlocal entering, most
        entering += 1
        most = max(most, entering)
        try:
            return await enter(*args)
        finally:
            entering -= 1

    monkeypatch.setattr(setup.channel, "enter", counted)

    found = await asyncio.gather(*(setup.hub.join_existing(G, "me") for _ in range(10 * JOINING_MAX)))

    assert [[frame.id for frame in await viewer.next_frames()][-1] for viewer, _ in found] == [FrameId(1, 1)] * len(found)
    assert most <= JOINING_MAX


async def test_who_leaves_before_its_turn_takes_nobodys(setup):
    await setup.open()
    waits = [asyncio.create_task(setup.hub.join_existing(G, "me")) for _ in range(3 * JOINING_MAX)]
    await asyncio.sleep(0)

    for each in waits[::2]:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)

    async with asyncio.timeout(120):
        await asyncio.gather(*(setup.hub.join_existing(G, "me") for _ in range(2 * JOINING_MAX)))


class DeafFeed:
    """A feed that no subscription reaches: each one waits until the test fails it."""

    def __init__(self) -> None:
        self.attempts: list[asyncio.Future[None]] = []

    async def subscribe(self, generation_id: str, sink: Callable[[Message], None]) -> None:
        self.attempts.append(asyncio.get_running_loop().create_future())
        await self.attempts[-1]

    async def unsubscribe(self, generation_id: str) -> None:
        pass


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("broken")])
async def test_a_subscription_that_cannot_be_made_fails_all_who_waited_for_it_and_leaves_nothing(setup, monkeypatch, error):
    feed = DeafFeed()
    monkeypatch.setattr(setup.hub, "_feed", feed)
    joins = [asyncio.ensure_future(setup.hub.join(G)) for _ in range(2)]
    while not feed.attempts:
        await asyncio.sleep(0)
    assert setup.hub.open_viewers == 2

    feed.attempts[0].set_exception(error)
    first, second = await asyncio.gather(*joins, return_exceptions=True)

    assert first is error
    assert isinstance(second, StoreUnavailable)
    assert setup.hub.open_viewers == 0
    assert len(feed.attempts) == 1


async def test_after_a_failed_subscription_the_next_viewer_subscribes_anew(setup, monkeypatch):
    feed, working = DeafFeed(), setup.hub._feed
    monkeypatch.setattr(setup.hub, "_feed", feed)
    join = asyncio.ensure_future(setup.hub.join(G))
    while not feed.attempts:
        await asyncio.sleep(0)
    feed.attempts[0].set_exception(StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        await join
    monkeypatch.setattr(setup.hub, "_feed", working)

    viewer = await setup.open()

    assert (setup.hub.open_viewers, setup.feed.subscriptions) == (1, 1)
    await setup.hub.leave(viewer)
    assert (setup.hub.open_viewers, setup.feed.subscriptions) == (0, 0)


async def test_a_viewer_that_gives_up_while_it_waits_for_a_subscription_takes_nobody_elses(setup, monkeypatch):
    feed = DeafFeed()
    monkeypatch.setattr(setup.hub, "_feed", feed)
    first, second = (asyncio.ensure_future(setup.hub.join(G)) for _ in range(2))
    while not feed.attempts:
        await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert setup.hub.open_viewers == 1

    feed.attempts[0].set_result(None)

    assert (await first).generation_id == G


async def test_who_joins_a_log_that_another_request_began_gets_it_from_its_start(setup):
    opening = Opening("", "openai-chat", True, "m", 1, Policy.STOP, 0, 60, 600, b"")
    await setup.channel.open(G, opening, setup.hub.replica)
    await setup.channel.fence(CLAIM, is_handover=False)
    for n in (1, 2):
        await setup.add(n)

    viewer = await setup.hub.join_shared(G, "gen_reader")

    viewer.poke()  # It need not wait for a live message: the log is read at once.
    frames = await viewer.next_frames()
    assert [str(frame.id) for frame in frames] == ["1-0", "1-1", "1-2"]
    assert (viewer.generation_id, viewer.reader_id) == (G, "gen_reader")
    await setup.hub.leave(viewer)
    assert (await setup.channel.heartbeat([CLAIM]))[0].stop is Stop.LEFT, "it was the last reader"


async def test_who_is_stopped_while_it_comes_back_to_a_shared_log_reads_its_own(setup, monkeypatch):
    opening = Opening("me", "openai-chat", True, "m", 1, Policy.DETACH, 0, 60, 600, b"")
    await setup.channel.open(G, replace(opening, owner=NOBODY), "")
    await setup.channel.fence(CLAIM, is_handover=False)
    await setup.add(1)
    await setup.channel.follow("gen_reader", G, opening)
    enter = setup.channel.enter

    async def enter_and_stop(generation_id: str, replica: str, owner: str) -> State:
        state = await enter(generation_id, replica, owner)
        await setup.channel.part("gen_reader", G, Failed(ErrorKind.CANCELLED, "stopped"), is_readable=True)
        return state

    monkeypatch.setattr(setup.channel, "enter", enter_and_stop)

    viewer, state = await setup.hub.join_existing("gen_reader", "me")
    await setup.add(2)

    assert [str(frame.id) for frame in await viewer.next_frames()] == ["1-0", "1-1", "2-0"]
    assert (viewer.generation_id, state.source, state.has_ended) == ("gen_reader", "", True)
    assert await setup.redis.smembers(f"{{{G}}}:viewers") == set()


async def test_a_log_that_is_gone_cannot_be_joined_and_nobody_stays_listening(setup):
    with pytest.raises(GatewayError):
        await setup.hub.join_shared("gen_gone", "gen_reader")

    assert setup.hub.open_viewers == 0
