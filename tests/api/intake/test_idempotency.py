"""Which requests are the same one, and which are not?"""

from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis
from starlette.datastructures import Headers

from api.intake.idempotency import enqueue_once, parse_idempotency_key
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind, Opening
from common.channel.redis import RedisChannel
from common.config.settings import Settings
from common.queue.jobs import Enqueued, IdempotencyKey, JobClass, JobQueue
from common.redis.pulse import Pulse

ME, YOU = Principal("key_me"), Principal("key_you")
ONCE = IdempotencyKey("me:1", "digest")
UNAVAILABLE = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "gone").to_dict()
CANCELLED = Failed(ErrorKind.CANCELLED, "left").to_dict()


def key_of(key: str, body: object = None, *, principal: Principal = ME, kind: str = "openai-chat") -> IdempotencyKey:
    parsed = parse_idempotency_key(Headers({"idempotency-key": key}), principal, body or {"model": "m"}, kind)
    assert parsed
    return parsed


def test_a_request_without_a_key_may_run_as_often_as_it_comes():
    assert parse_idempotency_key(Headers({}), ME, {}) is None


def test_the_same_request_is_told_by_its_principal_key_dialect_and_body():
    assert key_of("k", {"a": 1, "b": [2]}) == key_of("k", {"b": [2], "a": 1})
    assert key_of("k").key != key_of("l").key
    assert key_of("k").key != key_of("k", principal=YOU).key
    assert key_of("k").digest != key_of("k", {"model": "n"}).digest
    assert key_of("k").digest != key_of("k", kind="anthropic-messages").digest
    assert "k" * 40 not in key_of("k" * 40).key  # A client's words are no part of a key's name.


@pytest.mark.parametrize("key", ["k", "a b", "~" * 255, "3f2c-00:x/y{z}"])
def test_a_key_is_any_printable_ascii(key):
    assert key_of(key)


@pytest.mark.parametrize("key", ["", " ", "k ", " k", "~" * 256, "ü", "a\tb", "a\x7f"])
def test_another_key_is_refused(key):
    with pytest.raises(GatewayError) as caught:
        key_of(key)
    assert (caught.value.failed.kind, caught.value.failed.param) == (ErrorKind.INVALID_REQUEST, "idempotency-key")


# What its log says of a generation that holds a key


class Setup:
    def __init__(self, redis: Redis, queue: JobQueue) -> None:
        self.channel = RedisChannel(redis, 60)
        self.queue = queue

    async def open(self, generation_id: str, policy: Policy = Policy.STOP) -> None:
        opening = Opening("me", "openai-chat", True, "m", 1, policy, 0, 60, 60, b"{}\n")
        await self.channel.open(generation_id, opening, "r1")

    async def ask(self, generation_id: str) -> str:
        async def enqueue(key: IdempotencyKey) -> Enqueued:
            return await self.queue.enqueue(generation_id, "me", JobClass.INTERACTIVE, key)

        return (await enqueue_once(generation_id, "me", ONCE, enqueue, self.channel)).id

    async def run(self, generation_id: str, error: object, *, has_head: bool) -> None:
        claim, frames = Claim(generation_id, 1, "t"), [Frame(FrameId(1, 1), FrameKind.HEAD, b"{}")] * has_head
        await self.channel.fence(claim, is_handover=False)
        end = Frame(FrameId(1, len(frames) + 1), FrameKind.END, orjson.dumps({"error": error}))
        await self.channel.append([Append(claim, FrameId(1, 0), [*frames, end])])


@pytest.fixture
async def setup(redis: Redis) -> AsyncIterator[Setup]:
    pulse = Pulse(redis)
    await pulse.start()
    found = Setup(redis, JobQueue(redis, pulse, Settings()))
    await found.open("gen_1")
    assert await found.ask("gen_1") == "gen_1"
    yield found
    await pulse.stop()


async def test_what_waits_or_runs_is_come_back_to(setup: Setup):
    assert await setup.ask("gen_2") == "gen_1"
    await setup.channel.fence(Claim("gen_1", 1, "t"), is_handover=False)
    assert await setup.ask("gen_3") == "gen_1"
    assert len((await setup.queue.claim(10, lapsed_max=0, excluded_ids=())).jobs) == 1


@pytest.mark.parametrize(
    ("error", "has_head", "is_left", "runs_anew"),
    [
        (None, True, False, False),
        (None, True, True, False),  # It was whole before anybody could miss it.
        (UNAVAILABLE, False, False, True),
        (UNAVAILABLE, True, False, False),  # Never a second one that is paid for.
        (UNAVAILABLE, True, True, False),
        (CANCELLED, False, False, True),
        (CANCELLED, True, False, False),  # Somebody said stop.
        (CANCELLED, True, True, True),
        (CANCELLED, False, True, True),
    ],
)
async def test_a_generation_that_ended_holds_its_key_or_frees_it(setup: Setup, error, has_head, is_left, runs_anew):
    if is_left:
        await setup.channel.leave("gen_1", "r1")
    await setup.run("gen_1", error, has_head=has_head)
    await setup.open("gen_2")

    assert await setup.ask("gen_2") == ("gen_2" if runs_anew else "gen_1")
    assert await setup.ask("gen_3") == ("gen_2" if runs_anew else "gen_1")


async def test_of_two_that_find_a_key_free_only_one_runs(setup: Setup):
    await setup.run("gen_1", UNAVAILABLE, has_head=False)
    await setup.open("gen_2")
    spent = IdempotencyKey(ONCE.key, ONCE.digest, ignored_id="gen_1")

    assert (await setup.queue.enqueue("gen_2", "me", JobClass.INTERACTIVE, spent)).id == "gen_2"
    assert (await setup.queue.enqueue("gen_3", "me", JobClass.INTERACTIVE, spent)).id == "gen_2"


async def test_a_log_that_was_lost_with_the_store_frees_its_key(setup: Setup):
    await setup.channel.discard("gen_1")

    assert await setup.ask("gen_2") == "gen_2"
