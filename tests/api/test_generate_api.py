"""What a refused or failed enqueue leaves behind: nothing."""

import httpx
import pytest
from redis.asyncio import Redis

from api.main import Process, create_app
from cli.embedded_redis import EmbeddedRedis
from common.channel.base import ChannelUnavailable
from common.settings import ProviderSettings, Settings

BODY = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def process(redis: Redis, redis_server: EmbeddedRedis):
    settings = Settings(
        redis_url=redis_server.url, waiting_max=0, providers={"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")}
    )
    found = Process(settings)
    await found.start()
    yield found
    await found.stop()


async def post(process: Process) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(process))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/v1/chat/completions", json=BODY)


async def test_a_full_queue_is_refused_before_anything_is_kept(process, redis):
    response = await post(process)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "queue_full"
    assert await redis.keys("*") == []
    assert process.services.feed.subscriptions == 0


@pytest.mark.parametrize("part", ["hub.join", "channel.open"])
async def test_a_store_that_fails_half_way_leaves_no_subscription(process, redis, monkeypatch, part):
    async def fail(*_: object) -> None:
        raise ChannelUnavailable("away")

    owner, name = part.split(".")
    monkeypatch.setattr(getattr(process.services, owner), name, fail)

    response = await post(process)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    assert min([await redis.pttl(key) for key in await redis.keys("*")], default=1) > 0  # Nothing that stays for ever.
    assert process.services.feed.subscriptions == 0
