"""The admin API, on a real Redis and a database."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.main import ApiProcess, create_app
from cli.dev.embedded_redis import EmbeddedRedis
from common.access.key_records import DeletedKey, KeyRecords
from common.canonical.errors import StoreUnavailable
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings

ADMIN = {"authorization": "Bearer admin-key"}
WHOLE_ACCESS = {
    "models": ["gpt-*"],
    "providers": ["openai"],
    "dialects": ["openai-chat"],
    "cors_origins": ["https://app.example"],
    "disconnect": "grace=60",
    "limits": {"requests": 60, "tokens": 100_000, "concurrent": 5, "window_s": 60},
    "budget": {"day_usd": "1.5", "month_usd": "20"},
    "guardrails": {"pii": "block"},
    "audit": True,
    "cache": {"ttl_s": 600, "policy": "all", "scope": "tenant", "anonymous": None, "models": None},
}


def settings_of(server: EmbeddedRedis, folder: Any, **more: Any) -> Settings:
    named = {
        "redis_url": server.url,
        "database_url": f"sqlite:///{folder}/s.db",
        "secret": "a long random text that all processes share",
        "api_keys": "client-key",
        "admin_keys": "admin-key",
        "providers": {"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")},
    }
    return Settings(**{**named, **more})


@pytest.fixture
async def process(redis: Redis, redis_server: EmbeddedRedis, tmp_path):
    found = ApiProcess(settings_of(redis_server, tmp_path))
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def client(process: ApiProcess):
    transport = httpx.ASGITransport(create_app(process))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN) as found:
        yield found


async def made(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/admin/keys", json=body)
    assert response.status_code == 201, response.text
    return response.json()


async def lets_in(client: httpx.AsyncClient, key: str) -> bool:
    response = await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert response.status_code in (200, 401), response.text
    return response.status_code == 200


async def test_without_an_admin_key_there_is_no_admin_api(redis, redis_server, tmp_path):
    app = create_app(ApiProcess(settings_of(redis_server, tmp_path, admin_keys="")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=ADMIN) as client:
        answers = [await client.get(path) for path in ("/admin/keys", "/admin/nothing", "/nothing")]

    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(404, "unknown_path")] * 3


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer client-key"}, {"authorization": "Bearer x"}]
)
async def test_only_an_admin_key_is_let_in(client, headers):
    paths = [("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/keys/x"), ("PATCH", "/admin/keys/x")]
    paths += [("DELETE", "/admin/keys/x"), ("POST", "/admin/keys/x/rotate")]

    for method, path in paths:
        assert (await client.request(method, path, headers=headers)).status_code == 401


async def test_a_new_key_is_shown_once_and_lets_in(client):
    told = await made(client, name="shop", tenant="acme", access=WHOLE_ACCESS, expires_at=4_000_000_000)

    shown = (await client.get(f"/admin/keys/{told['id']}")).json()
    listed = (await client.get("/admin/keys")).json()
    assert told.items() >= shown.items()
    assert set(told) - set(shown) == {"key", "served"}
    assert listed["data"] == [shown]
    assert {name: shown["access"][name] for name in WHOLE_ACCESS if name != "guardrails"} == {
        name: value for name, value in WHOLE_ACCESS.items() if name != "guardrails"
    }
    assert shown["access"]["guardrails"]["pii"] == "block"
    assert (shown["name"], shown["tenant"], shown["expires_at"]) == ("shop", "acme", 4_000_000_000)
    assert told["key"] not in str(listed)
    free = await made(client)
    assert await lets_in(client, free["key"])


async def test_answers_with_keys_are_not_kept_by_caches(client):
    response = await client.post("/admin/keys", json={})

    assert response.headers["cache-control"] == "no-store"


async def test_what_is_not_named_stays_as_it_is(client):
    told = await made(client, name="shop", access={"models": ["gpt-*"]}, expires_at=4_000_000_000)
    path = f"/admin/keys/{told['id']}"

    renamed = (await client.patch(path, json={"name": "store"})).json()
    unlimited = (await client.patch(path, json={"expires_at": None, "access": {}})).json()

    assert (renamed["name"], renamed["access"], renamed["expires_at"]) == ("store", told["access"], 4_000_000_000)
    assert (unlimited["name"], unlimited["access"]["models"], unlimited["expires_at"]) == ("store", None, None)


async def test_a_disabled_a_deleted_and_an_expired_key_let_nobody_in(client):
    keys = [await made(client) for _ in range(3)]
    assert [await lets_in(client, each["key"]) for each in keys] == [True] * 3

    await client.patch(f"/admin/keys/{keys[0]['id']}", json={"disabled": True})
    await client.delete(f"/admin/keys/{keys[1]['id']}")
    await client.patch(f"/admin/keys/{keys[2]['id']}", json={"expires_at": 1})
    assert [await lets_in(client, each["key"]) for each in keys] == [False] * 3

    await client.patch(f"/admin/keys/{keys[0]['id']}", json={"disabled": False})
    assert await lets_in(client, keys[0]["key"])


async def test_a_rotated_key_is_the_same_principal_and_the_old_text_is_good_for_the_overlap(client):
    old = await made(client)
    path = f"/admin/keys/{old['id']}/rotate"

    new = (await client.post(path, json={"overlap_s": 60})).json()
    assert new["id"] == old["id"]
    assert [await lets_in(client, each["key"]) for each in (old, new)] == [True, True]

    newest = (await client.post(path)).json()
    assert [await lets_in(client, each["key"]) for each in (old, new, newest)] == [False, False, True]


async def test_keys_are_listed_in_pages(client):
    ids = sorted([(await made(client, tenant="acme"))["id"] for _ in range(5)])
    await made(client, tenant="other")

    pages, after = [], ""
    while True:
        page = (
            await client.get("/admin/keys", params={"limit": 2, "tenant": "acme", **({"after": after} if after else {})})
        ).json()
        pages.append([each["id"] for each in page["data"]])
        after = page["last_id"]
        if not page["has_more"]:
            break

    assert pages == [ids[:2], ids[2:4], ids[4:]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": 5}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"expires_at": -1}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"access": {"modles": []}}, "access.modles"),
        ({"access": {"limits": {"requests": 0}}}, "access.limits.requests"),
        ({"access": {"limits": {"requests": True}}}, "access.limits.requests"),
        ({"access": {"limits": {"window_s": "60"}}}, "access.limits.window_s"),
        ({"access": {"audit": "yes"}}, "access.audit"),
        ({"expires_at": False}, "expires_at"),
        ({"access": {"budget": {"day_usd": "1e3"}}}, "access.budget.day_usd"),
        ({"access": {"budget": {"day_usd": 1_000_000_000}}}, "access.budget.day_usd"),
        ({"access": {"budget": {"day_usd": -1}}}, "access.budget.day_usd"),
        ({"access": {"budget": {"day_usd": "NaN"}}}, "access.budget.day_usd"),
        ({"access": {"disconnect": "grace=soon"}}, "access.disconnect"),
        ({"access": {"guardrails": {"pii": "maybe"}}}, "access.guardrails.pii"),
        ({"access": {"cors_origins": ["app.example"]}}, "access.cors_origins.0"),
        ({"access": {"models": [""]}}, "access.models.0"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_made(client, body, param):
    response = await client.post("/admin/keys", json=body)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert param in error["message"]
    assert (await client.get("/admin/keys")).json()["data"] == []


async def test_control_characters_are_taken_out_of_names(client):
    assert (await made(client, name="a\r\n\0b"))["name"] == "ab"


@pytest.mark.parametrize("id_", ["0123456789ab", "x", "..%2f..", "%00", "é" * 12])
async def test_a_key_that_is_not_there_is_not_found(client, id_):
    for method, path in [("GET", ""), ("PATCH", ""), ("POST", "/rotate")]:
        response = await client.request(method, f"/admin/keys/{id_}{path}", json={})
        assert response.status_code == 404, response.text


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=x", "after=", "tenant=", "tenant=%00"])
async def test_a_list_is_asked_for_rightly_or_not_at_all(client, query):
    response = await client.get(f"/admin/keys?{query}")

    assert (response.status_code, response.json()["error"]["param"]) == (400, query.partition("=")[0])


async def test_a_change_that_is_not_known_everywhere_is_no_success(client, monkeypatch):
    told = await made(client)
    path = f"/admin/keys/{told['id']}"

    async def fail(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(KeyRecords, "store", fail)
        disabled = await client.patch(path, json={"disabled": True})
        deleted = await client.delete(path)
        created = await client.post("/admin/keys", json={})

    assert [each.status_code for each in (disabled, deleted)] == [503, 503]
    assert disabled.json()["error"]["code"] == "change_not_served"
    assert disabled.headers["retry-after"] == "1"
    assert (created.status_code, created.json()["served"]) == (201, False), "its text would be lost with an error"
    assert (await client.patch(path, json={"disabled": True})).status_code == 200


async def test_deleting_again_does_no_harm(client, redis):
    told = await made(client)

    answers = [await client.delete(f"/admin/keys/{told['id']}") for _ in range(2)]

    assert [(each.status_code, each.json()["deleted"]) for each in answers] == [(200, True)] * 2
    assert isinstance(await KeyRecords(redis).load(told["id"]), DeletedKey)


async def test_without_redis_nothing_is_changed(client, process):
    process.services.pulse.is_up = False

    response = await client.post("/admin/keys", json={})

    assert response.status_code == 503
    assert response.headers["retry-after"]


async def test_without_a_database_the_client_is_told_to_come_again(client, tmp_path):
    (tmp_path / "s.db").mkdir()

    response = await client.post("/admin/keys", json={})

    assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
    assert str(tmp_path) not in response.text


async def test_the_schema_tells_what_is_asked_and_answered(client):
    schema = (await client.get("/openapi.json")).json()

    operation = schema["paths"]["/admin/keys"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is False
    assert body["properties"]["access"]["properties"]["limits"]["properties"]["requests"]
    assert set(operation["responses"]) == {"201", "default"}
    assert "$ref" not in str(schema["paths"]["/admin/keys"])
    assert operation["security"] == [{"HTTPBearer": []}]
