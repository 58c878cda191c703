"""What browsers are told, on every answer."""

import base64
import hashlib
import re

import httpx
import pytest
from redis.asyncio import Redis

from api.main import ApiProcess, create_app
from api.server.answer_headers import page_policy
from cli.dev.embedded_redis import EmbeddedRedis
from common.access.principal import Access
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings

OURS, TENANT_S, KEY_S, STRANGE = (f"https://{name}.example" for name in ("ours", "tenant", "key", "strange"))
ADMIN = {"authorization": "Bearer admin-key"}
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture
async def client(redis: Redis, redis_server: EmbeddedRedis, tmp_path):
    settings = Settings(
        redis_url=redis_server.url,
        database_url=f"sqlite:///{tmp_path}/s.db",
        secret="a long random text that all processes share",
        api_keys="client-key",
        admin_keys="admin-key",
        cors_origins=OURS,
        tenants={"acme": Access(cors_origins=(TENANT_S,))},
        providers={"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")},
    )
    process = ApiProcess(settings)
    await process.start()
    transport = httpx.ASGITransport(create_app(process))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as found:
        yield found
    await process.stop()


async def preflight(client: httpx.AsyncClient, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, x-stainless-lang",
    }
    return await client.options("/v1/chat/completions", headers=headers)


async def test_a_preflight_is_answered_for_the_origins_of_settings_tenants_and_keys(client):
    assert (await preflight(client, KEY_S)).status_code == 400
    made = (await client.post("/admin/keys", headers=ADMIN, json={"access": {"cors_origins": [KEY_S]}})).json()

    said = {origin: await preflight(client, origin) for origin in (OURS, TENANT_S, KEY_S, STRANGE)}

    assert {origin: answer.status_code for origin, answer in said.items()} == {
        OURS: 200,
        TENANT_S: 200,
        KEY_S: 200,
        STRANGE: 400,
    }
    good = said[KEY_S].headers
    assert good["access-control-allow-origin"] == KEY_S
    assert good["access-control-allow-headers"] == "authorization, x-stainless-lang"
    assert "DELETE" in good["access-control-allow-methods"]
    assert "Origin" in good["vary"]
    assert "access-control-allow-origin" not in said[STRANGE].headers

    await client.delete(f"/admin/keys/{made['id']}", headers=ADMIN)
    assert (await preflight(client, KEY_S)).status_code == 400


async def test_a_method_that_is_not_there_is_refused(client):
    refused = await preflight(client, OURS, "TRACE")

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "origin_not_allowed"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_each_method_that_pages_need_may_be_used(client, method: str):
    good = await preflight(client, OURS, method)

    assert good.status_code == 200
    assert method in good.headers["access-control-allow-methods"].split(", ")


async def test_a_request_from_a_page_that_its_key_does_not_list_is_refused_and_the_page_can_read_why(client):
    made = (await client.post("/admin/keys", headers=ADMIN, json={"access": {"cors_origins": [KEY_S]}})).json()

    async def ask(origin: str, key: str) -> httpx.Response:
        return await client.get("/v1/models", headers={"origin": origin, "authorization": f"Bearer {key}"})

    good, elsewhere, ours = [await ask(origin, made["key"]) for origin in (KEY_S, TENANT_S, OURS)]
    assert (good.status_code, good.headers["access-control-allow-origin"]) == (200, KEY_S)
    assert "retry-after" in good.headers["access-control-expose-headers"]
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert elsewhere.headers["access-control-allow-origin"] == TENANT_S
    assert ours.status_code == 200


async def test_errors_can_be_read_by_the_pages_that_may_read_answers(client):
    answers = [
        await client.request(method, path, headers={"origin": OURS, **headers})
        for method, path, headers in [
            ("GET", "/v1/models", {}),
            ("POST", "/v1/messages", {}),
            ("GET", "/nothing", {}),
            ("GET", "/v1/models", {"x-large": "x" * 40_000}),
        ]
    ]

    assert [answer.status_code for answer in answers[:3]] == [401, 401, 404]
    assert [answer.headers.get("access-control-allow-origin") for answer in answers[:3]] == [OURS] * 3


async def test_a_strange_page_gets_no_permission_to_read(client):
    answer = await client.get("/v1/models", headers={"origin": STRANGE, "authorization": "Bearer client-key"})

    assert answer.status_code == 200  # No list of the key's forbids it: the browser does.
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/livez", "/metrics", "/openapi.json"])
async def test_every_answer_tells_browsers_to_make_nothing_of_it(client, path):
    headers = (await client.get(path)).headers

    assert {name: headers[name] for name in ALWAYS} == ALWAYS
    assert headers["content-security-policy"] == NOTHING
    assert "strict-transport-security" not in headers


async def test_preflights_and_oversized_requests_are_answers_too(client):
    for answer in (await preflight(client, OURS), await client.get("/", headers={"x-large": "x" * 40_000})):
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_over_tls_browsers_are_told_to_stay_there(client):
    answer = await client.get("https://test/livez")

    assert answer.headers["strict-transport-security"] == "max-age=31536000"


async def test_the_playground_runs_its_own_script_and_no_other(client):
    page = await client.get("/", headers={"accept": "text/html"})

    policy = page.headers["content-security-policy"]
    assert page.headers.get_list("content-security-policy") == [policy]
    assert "unsafe-inline" not in policy
    assert "frame-ancestors 'none'" in policy
    for tag in ("script", "style"):
        for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL):
            name = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{name}'" in policy
    assert not re.search(r"<[^>]*\s(on\w+|style)=", page.text), "an attribute has no hash"


def test_a_page_without_scripts_may_run_none():
    assert "script-src 'none'" in page_policy(b"<p>hi</p>")
