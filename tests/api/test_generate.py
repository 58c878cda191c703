"""What a refused or failed enqueue leaves behind: nothing."""

import asyncio

import httpx
import pytest
from redis.asyncio import Redis

from api.main import ApiProcess, create_app
from cli.dev.embedded_redis import EmbeddedRedis
from common.canonical.errors import StoreUnavailable
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.queue.jobs import JobStatus
from common.redis import keyspace

BODY = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
KEY = {"authorization": "Bearer sk-key"}


@pytest.fixture
async def process(redis: Redis, redis_server: EmbeddedRedis):
    settings = Settings(
        redis_url=redis_server.url,
        secret="a long random text of 32 bytes or more",
        api_keys="sk-key",
        providers={"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")},
    )
    found = ApiProcess(settings.model_copy(update={"waiting_max": 0}))
    await found.start()
    yield found
    await found.stop()


async def post(
    process: ApiProcess, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None
) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(process))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json=BODY, headers=KEY | (headers or {}))


async def keys_of_requests(redis: Redis) -> list[bytes]:
    """Return all keys but what the process reports about its settings."""
    return [key for key in await redis.keys("*") if not key.startswith(keyspace.config_process("").encode())]


@pytest.mark.parametrize(
    ("path", "status", "field", "word"),
    [("/v1/chat/completions", 503, "code", "queue_full"), ("/v1/messages", 529, "type", "overloaded_error")],
)
async def test_a_full_queue_is_refused_before_anything_is_kept(process, redis, path, status, field, word):
    response = await post(process, path)

    assert response.status_code == status
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"][field] == word
    assert await keys_of_requests(redis) == []
    assert process.services.feed.subscriptions == 0


async def test_who_asks_listens_before_the_job_exists(process, redis, monkeypatch):
    heard: list[int] = []

    async def enqueue(generation_id: str, *_: object, **__: object) -> None:
        heard.extend(count for _, count in await redis.pubsub_numsub(keyspace.live(generation_id)))
        raise StoreUnavailable("enough seen")

    monkeypatch.setattr(process.services.queue, "enqueue", enqueue)

    await post(process)

    assert heard == [1]


@pytest.mark.parametrize("looks", [[True], [False, True]], ids=["before it is opened", "before it is in line"])
async def test_who_has_left_costs_nothing_more(process, redis, monkeypatch, looks):
    enqueued = []
    monkeypatch.setattr(process.services.queue, "enqueue", enqueued.append)
    monkeypatch.setattr("api.opening.enqueue.has_left", lambda _: looks.pop(0))

    response = await post(process)

    assert (response.status_code, response.json()["error"]["code"]) == (499, "cancelled")
    assert enqueued == []
    assert await keys_of_requests(redis) == []
    assert process.services.feed.subscriptions == 0
    assert process.services.gate.starting == 0


async def test_who_has_left_gets_what_it_asked_for_where_that_is_to_run_without_it(process, monkeypatch):
    enqueued = []

    async def enqueue(generation_id: str, *_: object, **__: object) -> None:
        enqueued.append(generation_id)
        raise StoreUnavailable("enough seen")

    monkeypatch.setattr(process.services.queue, "enqueue", enqueue)
    monkeypatch.setattr("api.opening.enqueue.has_left", lambda _: True)

    await post(process, headers={"x-disconnect": "detach"})

    assert len(enqueued) == 1


@pytest.mark.parametrize("part", ["hub.join", "channel.open"])
async def test_a_store_that_fails_half_way_leaves_no_subscription(process, redis, monkeypatch, part):
    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    owner, name = part.split(".")
    monkeypatch.setattr(getattr(process.services, owner), name, fail)

    response = await post(process)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    await asyncio.gather(*process.services.hub._leaving)
    assert min([await redis.pttl(key) for key in await redis.keys("*")], default=1) > 0  # Nothing that stays for ever.
    assert process.services.feed.subscriptions == 0


@pytest.mark.parametrize(("headers", "is_waiting"), [({}, False), ({"x-disconnect": "detach"}, True)])
@pytest.mark.parametrize("cache", [{}, {"x-sluice-cache": "use"}], ids=["alone", "may be shared"])
async def test_a_job_whose_client_never_learned_of_it_runs_only_where_it_may_run_without_it(
    process, monkeypatch, headers, cache, is_waiting
):
    queue, seen = process.services.queue, []
    monkeypatch.setattr(queue, "_settings", process.settings.model_copy(update={"waiting_max": 10}))
    enqueue = queue.enqueue

    async def enqueue_and_lose_the_answer(*arguments: object, **names: object) -> None:
        enqueued = await enqueue(*arguments, **names)
        if enqueued.id:
            seen.append(arguments[0])
            raise StoreUnavailable("no answer")
        return enqueued

    monkeypatch.setattr(queue, "enqueue", enqueue_and_lose_the_answer)

    response = await post(process, headers=headers | cache)

    assert response.status_code == 503
    await asyncio.gather(*process.services.hub._leaving)
    (status,) = await queue.statuses(seen)
    assert (status is JobStatus.WAITING) == is_waiting
    assert process.services.feed.subscriptions == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/generations"),
        ("POST", "/v1/generations?dialect=openai-responses"),
        ("GET", "/v1/generations"),
        ("GET", "/v1/generations/gen_" + "0" * 32),
        ("DELETE", "/v1/generations/gen_" + "0" * 32),
    ],
)
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
async def test_while_the_store_is_away_every_question_is_answered_at_once(process, redis, monkeypatch, method, path, accept):
    monkeypatch.setattr(process.services.pulse, "is_up", False)
    body = {**BODY, "input": "hi"} if method == "POST" else None

    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(process)), base_url="http://test") as client:
        response = await client.request(method, path, json=body, headers={"accept": accept, **KEY})

    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert await keys_of_requests(redis) == []
