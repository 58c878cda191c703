"""Who asks without a key sees nothing of the others who do: they are one principal, and strangers."""

import httpx
import pytest
from redis.asyncio import Redis

from api.main import ApiProcess, create_app
from cli.dev.embedded_redis import EmbeddedRedis
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings

ID = "0" * 32
ASKED = b'{"model": "demo", "input": "my secret is 42"}'


@pytest.fixture(
    params=[{"auth": "none", "api_keys": "sk-key"}, {"auth": "none", "secret": "s" * 32}, {}], ids=["keys", "secret", "open"]
)
async def process(redis: Redis, redis_server: EmbeddedRedis, request):
    providers = {"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")}
    found = ApiProcess(Settings(redis_url=redis_server.url, providers=providers, **request.param))
    await found.start()
    yield found
    await found.stop()


async def get(process: ApiProcess, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(process))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/generations",
        "/v1/generations?limit=1",
        f"/v1/responses/resp_{ID}/input_items",
        "/v1/usage",
        "/v1/usage?by=end_user",
    ],
)
async def test_listings_and_stored_prompts_are_off_and_it_is_said_why(process, path):
    await process.services.responses.open(f"gen_{ID}", "anonymous", 1, ASKED)

    response = await get(process, path)

    assert response.status_code == 403
    assert "42" not in response.text
    assert "without a key" in response.text
    assert "SLUICE_API_KEYS" in response.text


async def test_an_id_alone_gives_what_it_is_for(process):
    await process.services.responses.open(f"gen_{ID}", "anonymous", 1, ASKED)

    response = await get(process, f"/v1/responses/resp_{ID}")

    assert response.status_code == 200
    assert "42" not in response.text


async def test_who_sends_a_key_sees_his_own(process):
    if not process.settings.api_keys:
        pytest.skip("there is none to send")

    response = await get(process, "/v1/generations", authorization="Bearer sk-key")

    assert (response.status_code, response.json()["data"]) == (200, [])
