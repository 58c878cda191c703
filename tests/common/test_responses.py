"""What is stored of a response, for whom, and for how long?"""

import orjson
import pytest
from redis.asyncio import Redis

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.config.settings import Settings
from common.dialects.openai_responses.ids import parse_response_id, response_id
from common.redis import keyspace
from common.responses import ResponseStore, StoredResponse
from common.sse import encode_event

G = "gen_1"
BODY = {"model": "m", "input": "hi"}
RESPONSE = {"id": "resp_1", "status": "completed"}


@pytest.fixture
def store(redis: Redis) -> ResponseStore:
    return ResponseStore(redis, Settings(responses_ttl_s=100, responses_bytes_max=1000))


async def opened(store: ResponseStore) -> None:
    await store.open(G, "me", 7, orjson.dumps(BODY))


def test_ids_of_responses_and_generations_are_one() -> None:
    assert response_id(G) == "resp_1"
    assert parse_response_id("resp_1") == G


async def test_what_was_asked_is_there_before_its_answer(store: ResponseStore) -> None:
    await opened(store)

    assert await store.load(G, "me") == StoredResponse(G, "me", 7, BODY)


@pytest.mark.parametrize(
    "last_data",
    [
        b"\n" + orjson.dumps(RESPONSE),
        encode_event(b"{}", "x") + encode_event(orjson.dumps({"type": "response.completed", "response": RESPONSE}), "y"),
        encode_event(orjson.dumps({"response": RESPONSE})) + encode_event(b"[DONE]"),
    ],
)
async def test_the_answer_is_found_in_a_body_or_in_the_last_events(store: ResponseStore, last_data: bytes) -> None:
    await opened(store)

    await store.finish(G, last_data, None)

    assert await store.load(G, "me") == StoredResponse(G, "me", 7, BODY, RESPONSE)


async def test_a_failure_is_kept_too(store: ResponseStore) -> None:
    await opened(store)
    failed = Failed(ErrorKind.CANCELLED, "Stopped.", code="cancelled")

    await store.finish(G, b"", failed)

    assert await store.load(G, "me") == StoredResponse(G, "me", 7, BODY, failed=failed)


@pytest.mark.parametrize("last_data", [b"", b"data: [DONE]\n\n", orjson.dumps({**RESPONSE, "output": "x" * 1000})])
async def test_what_is_no_answer_or_too_large_a_one_is_a_failure(store: ResponseStore, last_data: bytes) -> None:
    await opened(store)

    await store.finish(G, last_data, None)

    found = await store.load(G, "me")
    assert found
    assert found.failed
    assert found.failed.code == "not_stored"


async def test_output_items_are_fetched_of_many_at_once(store: ResponseStore) -> None:
    for generation_id, owner in (("gen_done", "me"), ("gen_runs", "me"), ("gen_failed", "me"), ("gen_theirs", "you")):
        await store.open(generation_id, owner, 7, orjson.dumps(BODY))
    await store.finish("gen_done", orjson.dumps({**RESPONSE, "output": [{"id": "rs_1"}]}), None)
    await store.finish("gen_failed", b"", Failed(ErrorKind.INTERNAL, "No."))

    found = await store.outputs(["gen_done", "gen_runs", "gen_failed", "gen_theirs", "gen_unknown"], "me")

    assert found == {"gen_done": [{"id": "rs_1"}], "gen_runs": None, "gen_failed": []}


async def test_only_its_owner_has_it(store: ResponseStore) -> None:
    await opened(store)

    assert await store.load(G, "another") is None
    assert await store.load("gen_2", "me") is None


async def test_what_was_deleted_or_never_stored_does_not_come_back(store: ResponseStore, redis: Redis) -> None:
    await opened(store)
    await store.delete(G)

    await store.finish(G, orjson.dumps(RESPONSE), None)

    assert await store.load(G, "me") is None
    assert not await redis.exists(keyspace.response(G), keyspace.response_request(G))


async def test_it_outlives_the_longest_wait_and_then_its_time_counts_from_the_end(store: ResponseStore, redis: Redis) -> None:
    names = (keyspace.response(G), keyspace.response_request(G))
    await opened(store)
    assert [await redis.ttl(name) > 86_400 for name in names] == [True, True]

    await store.finish(G, orjson.dumps(RESPONSE), None)

    assert [90 < await redis.ttl(name) <= 100 for name in names] == [True, True]


async def test_a_request_that_is_too_large_has_no_room(store: ResponseStore) -> None:
    assert store.has_room(1000)
    assert not store.has_room(1001)


async def test_a_redis_that_is_away_is_said(tmp_path: object) -> None:
    store = ResponseStore(Redis(unix_socket_path=f"{tmp_path}/nobody"), Settings())

    with pytest.raises(StoreUnavailable):
        await store.load(G, "me")
