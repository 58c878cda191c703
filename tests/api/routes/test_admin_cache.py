"""The cache over the admin API, on a real Redis and a database."""

from dataclasses import replace

import httpx
import pytest

from api.main import ApiProcess, create_app
from cli.dev.embedded_redis import free_port
from common.database.store import add
from tests.api.routes.test_admin import ADMIN, settings_of
from tests.cli.test_cache import ended
from tests.common.cache.test_store import ENTRY

NOTHING = {"requests": 0, "saved_usd": "0.00"}


@pytest.fixture
async def make_client(redis, redis_server, tmp_path):
    processes = []

    async def make(**settings):
        process = ApiProcess(settings_of(redis_server, tmp_path, **settings))
        await process.start()
        processes.append(process)
        transport = httpx.ASGITransport(create_app(process))
        return process, httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN)

    yield make
    for process in processes:
        await process.stop()


async def fill(process: ApiProcess) -> None:
    for number, (tenant, model) in enumerate([("acme", "fast"), ("acme", "gpt-5"), ("other", "gpt-5"), ("other", "x")]):
        entry = replace(ENTRY, key=f"k{number}", tenant=tenant, model=model, provider="demo", upstream_model=model)
        assert await process.services.cache.put(entry)


async def test_an_admin_sees_what_is_stored_and_what_it_saved(make_client):
    process, client = await make_client()
    await fill(process)
    await add(await process.database.engine(), [ended("hit", 1, saved=250_000_000), ended("miss", 1)])

    response = await client.get("/admin/cache")

    report = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert (report["entries"], report["bytes_max"]) == (4, process.settings.cache_bytes_max)
    assert {(group["tenant"], group["target"]): group["entries"] for group in report["data"]} == {
        ("acme", "demo/fast"): 1,
        ("acme", "demo/gpt-5"): 1,
        ("other", "demo/gpt-5"): 1,
        ("other", "demo/x"): 1,
    }
    assert report["last_day"] == {
        "hit": {"requests": 1, "saved_usd": "0.25"},
        "join": NOTHING,
        "miss": {"requests": 1, "saved_usd": "0.00"},
        "bypass": NOTHING,
    }


async def test_an_admin_removes_answers_by_tenant_and_model(make_client):
    process, client = await make_client()
    await fill(process)

    queries = [{"tenant": "acme", "model": "demo/gpt-5"}, {"model": "gpt-?"}, {"tenant": "acme"}, {"tenant": "nobody"}, {}]
    responses = [await client.delete("/admin/cache", params=query) for query in queries]

    assert [response.json()["deleted"] for response in responses] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("query", ["tenat=acme", "tenant=", "model=", "tenant=a&tenant=b", f"model={'x' * 256}", "=", "tenant"])
async def test_a_query_that_is_not_understood_removes_nothing(make_client, query):
    process, client = await make_client()
    await fill(process)

    response = await client.delete(f"/admin/cache?{query}")

    assert response.status_code == 400 or response.json()["deleted"] == 0
    assert (await client.get("/admin/cache")).json()["entries"] == 4


@pytest.mark.parametrize("key", ["", "Bearer client-key", "Bearer x"])
async def test_only_an_admin_key_is_let_in(make_client, key):
    process, client = await make_client()
    await fill(process)

    for method in ("GET", "DELETE"):
        assert (await client.request(method, "/admin/cache", headers={"authorization": key})).status_code == 401
    assert (await client.get("/admin/cache")).json()["entries"] == 4


async def test_without_admin_keys_the_paths_do_not_exist(make_client):
    _, client = await make_client(admin_keys="")

    responses = [await client.request(method, "/admin/cache") for method in ("GET", "DELETE")]
    assert [(response.status_code, response.json()["error"]["code"]) for response in responses] == [(404, "unknown_path")] * 2


async def test_while_the_cache_is_away_the_error_says_so(make_client):
    _, client = await make_client(cache_redis_url=f"redis://127.0.0.1:{free_port()}/0")

    for method in ("GET", "DELETE"):
        response = await client.request(method, "/admin/cache")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "cache_unavailable")
        assert response.headers["retry-after"]


async def test_while_the_ledger_is_away_the_cache_is_shown_without_it(make_client, tmp_path):
    process, client = await make_client(database_url=f"sqlite:///{tmp_path}/no/such/folder/s.db")
    await fill(process)

    report = (await client.get("/admin/cache")).json()
    assert (report["entries"], report["last_day"]) == (4, None)
