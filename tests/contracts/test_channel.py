"""What every channel must hold, on memory and on real Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Feed, Frame, FrameId, FrameKind, Message, Opening, Stop, WriteStatus
from common.channel.memory import MemoryChannel
from common.channel.redis import RedisChannel, RedisFeed
from common.records.end import End
from common.records.head import Head
from tests.support.servers.redis_client import client_of

G = "gen_1"
FIRST = Claim(G, 1, "token-a")
SECOND = Claim(G, 2, "token-b")
LOST = Failed(ErrorKind.WORKER_LOST, "lost")


@pytest.fixture(params=["memory", "redis"])
async def parts(request: pytest.FixtureRequest) -> AsyncIterator[tuple[object, Feed]]:
    if request.param == "memory":
        channel = MemoryChannel()
        yield channel, channel
        return
    async with client_of(request.getfixturevalue("redis_server")) as redis:
        feed = RedisFeed(redis)
        await feed.start()
        yield RedisChannel(redis, tombstone_s=60), feed
        await feed.stop()


@pytest.fixture
def channel(parts):
    return parts[0]


@pytest.fixture
def feed(parts) -> Feed:
    return parts[1]


def opening(policy: Policy = Policy.STOP, grace_s: float = 0, retention_s: float = 60) -> Opening:
    return Opening("me", "openai-chat", True, "m", 1, policy, grace_s, retention_s, 600, b"the request")


def data(claim: Claim, n: int, text: str = "x") -> Frame:
    return Frame(FrameId(claim.epoch, n), FrameKind.DATA, text.encode())


def end(claim: Claim, n: int) -> Frame:
    return Frame(FrameId(claim.epoch, n), FrameKind.END, orjson.dumps({"error": None}))


async def append(channel, claim: Claim, previous: FrameId, *frames: Frame):
    (answer,) = await channel.append([Append(claim, previous, list(frames))])
    return answer


async def begun(channel, claim: Claim = FIRST, policy: Policy = Policy.STOP, grace_s: float = 0, replica: str = "r1"):
    """A generation that one claim has fenced and given one frame."""
    await channel.open(G, opening(policy, grace_s), replica)
    await channel.fence(claim, is_handover=False)
    await append(channel, claim, FrameId(claim.epoch, 0), data(claim, 1, "one"))


async def ids(channel, after: FrameId = START) -> list[str]:
    return [str(frame.id) for frame in await channel.read(G, after, 100)]


async def test_a_fence_is_the_first_frame_and_names_what_it_builds_on(channel):
    await channel.open(G, opening(), "r1")

    fenced = await channel.fence(FIRST, is_handover=False)

    assert (fenced.answer.status, fenced.answer.last, fenced.request) == (WriteStatus.OK, START, b"the request")
    assert await channel.read(G, START, 10) == [Frame(FrameId(1, 0), FrameKind.FENCE, b"0-0")]


async def test_frames_are_read_in_order_and_after_a_position(channel):
    await begun(channel)
    await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2, "two"), data(FIRST, 3, "three"))

    assert await ids(channel) == ["1-0", "1-1", "1-2", "1-3"]
    assert [frame.data for frame in await channel.read(G, FrameId(1, 1), 10)] == [b"two", b"three"]
    assert len(await channel.read(G, START, 2)) == 2


async def test_a_resent_append_is_taken_once(channel):
    await begun(channel)

    first = await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))
    again = await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))
    more = await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2), data(FIRST, 3))

    assert [first.status, again.status, more.status] == [WriteStatus.OK] * 3
    assert await ids(channel) == ["1-0", "1-1", "1-2", "1-3"]


async def test_a_large_request_comes_back_as_it_was(channel):
    request = b"x" * (3 * 2**20)
    await channel.open(G, replace(opening(), request=request), "r1")

    assert (await channel.fence(FIRST, is_handover=False)).request == request
    assert (await channel.fence(SECOND, is_handover=False)).request == request


async def test_an_ended_log_can_be_evicted_and_has_expired_then(channel):
    await begun(channel)
    assert not await channel.evict(G)
    await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))

    assert await channel.evict(G)

    assert await channel.read(G, START, 10) == []
    with pytest.raises(GatewayError) as refused:
        await channel.enter(G, "r1", "me")
    assert refused.value.failed.kind is ErrorKind.EXPIRED
    assert refused.value.failed.code == "generation_expired"
    assert G in refused.value.failed.message
    assert await channel.evict(G), "it is gone"


async def test_a_zombie_is_fenced_and_writes_nothing(channel):
    await begun(channel)
    await channel.fence(SECOND, is_handover=False)

    answer = await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2, "from the dead"))

    assert answer.status is WriteStatus.FENCED
    assert await ids(channel) == ["1-0", "1-1", "2-0"]


async def test_the_same_epoch_under_another_token_is_fenced(channel):
    await begun(channel)
    twin = Claim(G, 1, "another-token")

    assert (await append(channel, twin, FrameId(1, 1), data(twin, 2))).status is WriteStatus.FENCED
    assert (await channel.fence(twin, is_handover=False)).answer.status is WriteStatus.FENCED


async def test_an_earlier_epoch_cannot_fence(channel):
    await begun(channel, SECOND)

    assert (await channel.fence(FIRST, is_handover=False)).answer.status is WriteStatus.FENCED


async def test_a_fence_sent_twice_is_one_fence(channel):
    await channel.open(G, opening(), "r1")

    await channel.fence(FIRST, is_handover=False)
    again = await channel.fence(FIRST, is_handover=False)

    assert again.answer.status is WriteStatus.OK
    assert await ids(channel) == ["1-0"]


async def test_a_fence_sent_twice_names_both_times_what_it_builds_on(channel):
    await begun(channel)

    fenced = [await channel.fence(SECOND, is_handover=False) for _ in range(2)]

    assert [each.answer.last for each in fenced] == [FrameId(1, 1)] * 2
    assert [each.empty_claims for each in fenced] == [1, 1]


async def test_an_append_past_the_end_of_the_log_is_behind_and_learns_where_it_ends(channel):
    await begun(channel)

    answer = await append(channel, FIRST, FrameId(1, 5), data(FIRST, 6))

    assert (answer.status, answer.last) == (WriteStatus.BEHIND, FrameId(1, 1))
    assert await ids(channel) == ["1-0", "1-1"]


async def test_an_owner_whose_fence_was_lost_appends_it_again_with_what_follows(channel):
    await begun(channel)
    fence = Frame(FrameId(3, 0), FrameKind.FENCE, b"1-1")
    third = Claim(G, 3, "token-c")

    without = await append(channel, third, FrameId(3, 0), data(third, 1))
    with_fence = await append(channel, third, FrameId(1, 1), fence, data(third, 1))

    assert (without.status, with_fence.status) == (WriteStatus.BEHIND, WriteStatus.OK)
    assert await ids(channel) == ["1-0", "1-1", "3-0", "3-1"]


async def test_after_the_end_nothing_is_appended_fences_included(channel):
    await begun(channel)
    await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))

    assert (await append(channel, FIRST, FrameId(1, 2), data(FIRST, 3))).status is WriteStatus.ENDED
    assert (await channel.fence(SECOND, is_handover=False)).answer.status is WriteStatus.ENDED
    assert (await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))).status is WriteStatus.OK  # Its own resend.
    assert await ids(channel) == ["1-0", "1-1", "1-2"]


async def test_one_refusal_does_not_fail_the_others_of_a_batch(channel):
    await begun(channel)
    other = Claim("gen_2", 1, "token-z")
    await channel.open("gen_2", opening(), "r1")
    await channel.fence(other, is_handover=False)
    await channel.fence(SECOND, is_handover=False)

    answers = await channel.append(
        [
            Append(FIRST, FrameId(1, 1), [data(FIRST, 2)]),
            Append(Claim("gen_unknown", 1, "t"), START, [data(FIRST, 1)]),
            Append(other, FrameId(1, 0), [data(other, 1)]),
        ]
    )

    assert [answer.status for answer in answers] == [WriteStatus.FENCED, WriteStatus.GONE, WriteStatus.OK]


async def test_live_messages_carry_the_frame_and_its_predecessor(channel, feed):
    got: list[Message] = []
    await feed.subscribe(G, got.append)
    await begun(channel)
    await channel.heartbeat([FIRST])

    await eventually(lambda: len(got) == 3)
    assert [message.previous for message in got] == [START, FrameId(1, 0), FrameId(1, 1)]
    assert [message.frame and message.frame.data for message in got] == [b"0-0", b"one", None]


async def test_a_resent_append_is_not_published_again(channel, feed):
    messages: asyncio.Queue[Message] = asyncio.Queue()
    await begun(channel)
    await feed.subscribe(G, messages.put_nowait)
    for _ in range(2):
        await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))
    await append(channel, FIRST, FrameId(1, 2), data(FIRST, 3))

    async with asyncio.timeout(60):
        received = [(await messages.get()).frame for _ in range(2)]
    assert [str(frame.id) for frame in received] == ["1-2", "1-3"]


async def test_the_number_of_listeners_is_known_with_every_frame(channel, feed):
    await begun(channel)
    await feed.subscribe(G, lambda message: None)

    answers = [
        await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2)),
        await append(channel, FIRST, FrameId(1, 2), data(FIRST, 3), data(FIRST, 4)),
        *await channel.heartbeat([FIRST]),
    ]

    assert [answer.listeners for answer in answers] == [1, 1, 1]


async def test_an_unsubscribed_sink_hears_nothing_more(channel, feed):
    got: list[Message] = []
    other: list[Message] = []
    await feed.subscribe(G, got.append)
    await feed.unsubscribe(G)
    await feed.subscribe("gen_2", other.append)
    await begun(channel)
    claim = Claim("gen_2", 1, "t")
    await channel.open("gen_2", opening(), "r1")
    await channel.fence(claim, is_handover=False)

    await eventually(lambda: len(other) == 1)
    assert got == []


async def test_a_heartbeat_of_a_former_owner_says_so(channel):
    await begun(channel)
    await channel.fence(SECOND, is_handover=False)

    (former, current) = await channel.heartbeat([FIRST, SECOND])

    assert (former.status, current.status) == (WriteStatus.FENCED, WriteStatus.OK)
    assert current.last == FrameId(2, 0)


async def test_a_note_is_kept_for_the_claim_that_follows(channel):
    await begun(channel)
    assert (await channel.heartbeat([FIRST], [b""]))[0].status is WriteStatus.OK
    await channel.heartbeat([FIRST], [b"called once"])
    await channel.heartbeat([FIRST], [b""])

    fenced = await channel.fence(SECOND, is_handover=False)
    await channel.heartbeat([FIRST], [b"of a former owner"])

    assert fenced.note == b"called once"
    assert (await channel.fence(SECOND, is_handover=False)).note == b"called once"


async def test_there_is_no_note_where_none_was_left(channel):
    await channel.open(G, opening(), "r1")

    assert (await channel.fence(FIRST, is_handover=False)).note is None


async def test_a_fence_that_is_refused_hands_out_nothing(channel):
    refused = [await channel.fence(FIRST, is_handover=False)]
    await begun(channel, SECOND)
    refused.append(await channel.fence(FIRST, is_handover=False))
    await append(channel, SECOND, FrameId(2, 1), end(SECOND, 2))
    refused.append(await channel.fence(Claim(G, 3, "t"), is_handover=False))

    assert [fenced.answer.status for fenced in refused] == [WriteStatus.GONE, WriteStatus.FENCED, WriteStatus.ENDED]
    for fenced in refused:
        assert (fenced.has_head, fenced.empty_claims, fenced.request, fenced.note) == (False, 0, None, None)


async def test_what_was_never_opened_is_gone_for_every_writer(channel):
    gone = (WriteStatus.GONE, START, Stop.NO)

    assert (await channel.fence(FIRST, is_handover=False)).answer[:3] == gone
    assert (await append(channel, FIRST, START, data(FIRST, 1)))[:3] == gone
    assert [answer[:3] for answer in await channel.heartbeat([FIRST])] == [gone]
    assert await channel.read(G, START, 10) == []


async def test_a_heartbeat_behind_the_end_says_so(channel):
    await begun(channel)
    await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))

    assert [answer[:3] for answer in await channel.heartbeat([FIRST])] == [(WriteStatus.ENDED, FrameId(1, 2), Stop.NO)]


async def test_the_last_viewer_that_leaves_sets_the_stop_flag(channel):
    await begun(channel)
    await channel.enter(G, "r2", "me")

    assert await channel.leave(G, "r1") is Stop.NO
    assert await channel.leave(G, "r2") is Stop.LEFT
    assert (await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))).stop is Stop.LEFT
    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.LEFT


async def test_the_stop_flag_says_whether_the_client_left_or_its_api_ended(channel):
    await begun(channel)
    await channel.enter(G, "r2", "me")

    assert await channel.leave(G, "r1", Stop.LEFT) is Stop.NO
    assert await channel.leave(G, "r2", Stop.API_ENDED) is Stop.API_ENDED
    assert await channel.leave(G, "r2", Stop.LEFT) is Stop.API_ENDED  # Said again: the first is what stopped it.
    assert (await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))).stop is Stop.API_ENDED
    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.API_ENDED
    assert (await channel.fence(SECOND, is_handover=False)).answer.stop is Stop.API_ENDED


async def test_a_client_that_came_back_and_left_is_no_api_that_ended(channel):
    await begun(channel, policy=Policy.GRACE, grace_s=0.05)
    await channel.leave(G, "r1", Stop.API_ENDED)
    await channel.enter(G, "r2", "me")

    await channel.leave(G, "r2", Stop.LEFT)
    await asyncio.sleep(0.06)

    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.LEFT


async def test_with_grace_the_flag_is_dated_and_coming_back_clears_it(channel):
    await begun(channel, policy=Policy.GRACE, grace_s=0.05)

    assert await channel.leave(G, "r1") is Stop.NO
    await channel.enter(G, "r1", "me")
    await asyncio.sleep(0.06)
    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.NO

    await channel.leave(G, "r1")
    await asyncio.sleep(0.06)
    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.LEFT


async def test_a_writer_that_says_nothing_but_more_learns_that_the_grace_is_over(channel):
    """By its appends alone, the first of which came while there was still time."""
    await begun(channel, policy=Policy.GRACE, grace_s=0.05)
    await channel.leave(G, "r1")

    assert (await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))).stop is Stop.NO
    await asyncio.sleep(0.06)
    assert (await append(channel, FIRST, FrameId(1, 2), data(FIRST, 3))).stop is Stop.LEFT


async def test_only_with_grace_is_there_time_to_come_back(channel):
    await begun(channel, policy=Policy.STOP, grace_s=50)

    assert await channel.leave(G, "r1") is Stop.LEFT


async def test_with_detach_absence_stops_nothing(channel):
    await begun(channel, policy=Policy.DETACH)

    assert await channel.leave(G, "r1") is Stop.NO
    assert (await channel.heartbeat([FIRST]))[0].stop is Stop.NO


async def test_a_stop_is_for_good_and_idempotent(channel):
    await begun(channel)

    assert [await channel.stop(G), await channel.stop(G)] == [WriteStatus.OK, WriteStatus.OK]
    await channel.enter(G, "r1", "me")
    assert (await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))).stop is Stop.CANCELLED

    await append(channel, FIRST, FrameId(1, 2), end(FIRST, 3))
    assert await channel.stop(G) is WriteStatus.ENDED
    assert await channel.stop("gen_unknown") is WriteStatus.GONE


async def test_a_fence_tells_the_next_claim_of_the_stop_flag_and_the_head(channel):
    await begun(channel)
    head = Frame(FrameId(1, 2), FrameKind.HEAD, b"{}")
    await append(channel, FIRST, FrameId(1, 1), head)
    await channel.stop(G)

    fenced = await channel.fence(SECOND, is_handover=False)

    assert (fenced.answer.stop, fenced.has_head) == (Stop.CANCELLED, True)


async def test_a_generation_that_waited_for_its_upstream_was_neither_lost_nor_taken_over(channel):
    await channel.open(G, opening(), "r1")
    claims = [Claim(G, epoch, f"t{epoch}") for epoch in range(1, 41)]

    fenced = [await channel.fence(claim, is_handover=False, was_postponed=claim.epoch > 1) for claim in claims]
    head = Frame(FrameId(40, 1), FrameKind.HEAD, b'{"provider":"p"}')
    await append(channel, claims[-1], FrameId(40, 0), head)

    assert {each.empty_claims for each in fenced} == {1}
    state = await channel.enter(G, "", "me")
    assert (state.claims, state.head) == (1, Head(provider="p"))


async def test_claims_without_a_frame_are_counted_but_handovers_are_not(channel):
    await channel.open(G, opening(), "r1")
    claims = [Claim(G, epoch, f"t{epoch}") for epoch in range(1, 6)]

    counts = [(await channel.fence(claim, is_handover=i == 1)).empty_claims for i, claim in enumerate(claims[:4])]
    await append(channel, claims[3], FrameId(4, 0), data(claims[3], 1))
    after_a_frame = (await channel.fence(claims[4], is_handover=False)).empty_claims

    assert counts == [1, 1, 2, 3]
    assert after_a_frame == 1


async def test_claims_are_counted_whatever_their_numbers(channel):
    await channel.open(G, opening(), "r1")
    dated = Claim(G, 90_000_000, "t2")
    counts = [(await channel.enter(G, "r1", "me")).claims]
    for claim in (FIRST, FIRST, dated):  # One of them is sent twice.
        await channel.fence(claim, is_handover=False)
        counts.append((await channel.enter(G, "r1", "me")).claims)
    third = Claim(G, 90_000_001, "t3")  # Its fence was lost, and it appends that again.
    await append(channel, third, FrameId(dated.epoch, 0), Frame(FrameId(third.epoch, 0), FrameKind.FENCE, b"90000000-0"))
    await channel.end_unowned(G, "api-token", LOST)

    assert [*counts, (await channel.enter(G, "r2", "me")).claims] == [0, 1, 1, 2, 3]


async def test_anybody_can_end_a_log_that_nobody_owns(channel):
    await begun(channel)

    assert await channel.end_unowned(G, "api-token", LOST) is WriteStatus.OK
    assert await channel.end_unowned(G, "other-api", LOST) is WriteStatus.OK

    frames = await channel.read(G, FrameId(1, 1), 10)
    assert [(str(f.id), f.kind, orjson.loads(f.data)["error"]["kind"]) for f in frames] == [("2-0", "end", "worker_lost")]
    assert (await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2))).status is WriteStatus.ENDED


async def test_a_log_is_for_its_owner_alone(channel):
    await begun(channel)

    state = await channel.enter(G, "r1", "me")
    assert (state.dialect, state.last, state.has_ended) == ("openai-chat", FrameId(1, 1), False)
    for generation, who in [(G, "a stranger"), ("gen_unknown", "me")]:
        with pytest.raises(GatewayError) as caught:
            await channel.enter(generation, "r1", who)
        assert (caught.value.failed.kind, caught.value.failed.code) == (ErrorKind.NOT_FOUND, "generation_not_found")
        assert generation in caught.value.failed.message


async def test_an_expired_log_is_known_to_have_been(channel):
    await channel.open(G, opening(retention_s=0.03), "r1")
    await channel.fence(FIRST, is_handover=False)
    await append(channel, FIRST, FrameId(1, 0), end(FIRST, 1))
    await asyncio.sleep(0.05)

    for who, kind in [("me", ErrorKind.EXPIRED), ("a stranger", ErrorKind.NOT_FOUND)]:
        with pytest.raises(GatewayError) as caught:
            await channel.enter(G, "r1", who)
        assert caught.value.failed.kind is kind


async def test_a_discarded_generation_never_was(channel):
    await channel.open(G, opening(), "r1")

    await channel.discard(G)

    assert await channel.last_ids([G]) == [None]
    with pytest.raises(GatewayError) as caught:
        await channel.enter(G, "r1", "me")
    assert caught.value.failed.kind is ErrorKind.NOT_FOUND


async def test_look_tells_where_logs_end(channel):
    await begun(channel)

    assert await channel.last_ids([G, "gen_unknown"]) == [FrameId(1, 1), None]


async def eventually(holds) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.005)


async def described(channel, generation_id: str = G, owner: str = "me"):
    (found,) = await channel.describe([generation_id], owner)
    return found


async def test_describing_tells_the_head_the_end_and_whether_the_viewers_had_left(channel):
    await channel.open(G, opening(), "r1")
    assert (await described(channel)).last == START
    await channel.fence(FIRST, is_handover=False)
    await append(channel, FIRST, FrameId(1, 0), Frame(FrameId(1, 1), FrameKind.HEAD, b'{"status":200}'))
    running = await described(channel)
    await channel.leave(G, "r1")
    await append(channel, FIRST, FrameId(1, 1), data(FIRST, 2), end(FIRST, 3))
    whole = await described(channel)

    assert (running.head, running.end, running.has_ended, running.has_left) == (Head(), None, False, False)
    assert (whole.head, whole.end, whole.has_ended, whole.has_left) == (Head(), End(has_attempts=False), True, True)
    assert whole == await channel.enter(G, "r2", "me")


async def test_describing_is_not_entering(channel):
    await begun(channel, policy=Policy.GRACE, grace_s=30)
    await channel.leave(G, "r1")

    assert (await described(channel)).has_left
    assert (await described(channel)).has_left  # The first has not cleared it.
    await channel.enter(G, "r2", "me")
    assert not (await described(channel)).has_left
    assert await channel.leave(G, "r2") is Stop.NO
    await channel.stop(G)
    assert not (await described(channel)).has_left  # Somebody said stop: that they also left is no matter.


async def test_whoever_enters_learns_what_the_generation_was_opened_with(channel):
    opened = replace(opening(Policy.DETACH), job_class="background", created_s=77, stream=False, model="its model")
    await channel.open(G, opened, "r1")
    await channel.fence(FIRST, is_handover=False)
    head = Frame(FrameId(1, 1), FrameKind.HEAD, Head(headers={"x": "y"}).pack())
    await append(channel, FIRST, FrameId(1, 0), head, data(FIRST, 2))

    running = await channel.enter(G, "r1", "me")
    await append(channel, FIRST, FrameId(1, 2), end(FIRST, 3))
    ended = await channel.enter(G, "r1", "me")

    for state, last, has_ended in ((running, FrameId(1, 2), False), (ended, FrameId(1, 3), True)):
        assert (state.owner, state.dialect, state.stream, state.model) == ("me", "openai-chat", False, "its model")
        assert (state.created_s, state.policy, state.job_class) == (77, Policy.DETACH, "background")
        assert (state.last, state.has_ended, state.has_left, state.claims) == (last, has_ended, False, 1)
        assert state.head and state.head.headers == {"x": "y"}
    assert (running.end, ended.end) == (None, End.unpack(b'{"error":null}'))


async def test_what_may_not_be_entered_cannot_be_described_and_spoils_no_other(channel):
    await begun(channel)

    found = await channel.describe(["gen_unknown", G], "me")

    assert await channel.describe([], "me") == []
    assert isinstance(found[0], GatewayError)
    assert found[0].failed.kind is ErrorKind.NOT_FOUND
    assert found[1] == await channel.enter(G, "r1", "me")
    assert (await described(channel, owner="a stranger")).failed.kind is ErrorKind.NOT_FOUND


async def test_the_end_leaves_a_record_whoever_wrote_it(channel):
    asked = replace(opening(), request_summary=b'{"owner":"me"}')
    await channel.open(G, asked, "r1")
    await channel.fence(FIRST, is_handover=False)
    assert await channel.record(G) is None, "not before it has ended"

    await append(channel, FIRST, FrameId(1, 0), data(FIRST, 1), end(FIRST, 2))
    await channel.open("gen_2", asked, "r1")
    await channel.end_unowned("gen_2", "token", LOST)

    record = await channel.record(G)
    assert record.request_summary == b'{"owner":"me"}'
    assert orjson.loads(record.end) == {"error": None}
    assert record.ended_ms > 0
    assert orjson.loads((await channel.record("gen_2")).end)["error"]["kind"] == "worker_lost"


async def test_an_end_that_is_sent_again_leaves_the_record_as_it_was(channel):
    await begun(channel)
    await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))
    first = await channel.record(G)

    await append(channel, FIRST, FrameId(1, 1), end(FIRST, 2))
    await channel.end_unowned(G, "token", LOST)

    assert await channel.record(G) == first


async def test_what_is_discarded_leaves_no_record(channel):
    await channel.open(G, opening(), "r1")
    await channel.discard(G)

    assert await channel.record(G) is None


async def test_what_is_audited_stays_until_the_ledger_has_read_it(redis):
    channel = RedisChannel(redis, tombstone_s=60)
    for name, is_audited in (("gen_audited", True), ("gen_other", False)):
        await channel.open(name, replace(opening(), is_audited=is_audited), "r1")
        claim = Claim(name, 1, "token")
        await channel.fence(claim, is_handover=False)
        await append(channel, claim, FrameId(1, 0), data(claim, 1), end(claim, 2))

    lasting = {key.decode() for key in await redis.keys("*") if await redis.ttl(key) == -1}
    assert lasting == {
        *(f"{{gen_audited}}:{name}" for name in ("state", "log", "request", "record")),
        "{gen_other}:record",
    }
