"""What no route expects."""

import httpx
import pytest

from api.main import Process, create_app
from common.settings import Settings


@pytest.fixture
def app():
    found = create_app(Process(Settings(cors_origins=("https://site.example",))))

    @found.get("/v1/messages/broken")
    async def broken() -> None:
        raise RuntimeError("with a secret in it")

    return found


async def call(app, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, headers={"origin": "https://site.example"})


async def test_an_unexpected_failure_is_a_500_like_any_other_answer(app):
    response = await call(app, "GET", "/v1/messages/broken")

    assert response.status_code == 500
    assert response.json()["type"] == "error"
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert response.headers["access-control-allow-origin"] == "https://site.example"
    assert "secret" not in response.text


async def test_a_trailing_slash_is_not_redirected(app):
    assert (await call(app, "POST", "/v1/messages/")).status_code == 404
