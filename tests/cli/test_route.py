"""``sluice route explain`` as an operator types it, with a real Redis and without one."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from cli.main import main
from common.access.key_records import KeyRecord, KeyRecords
from common.access.principal import Access
from common.canonical.job import Job, Policy
from common.config.settings import Settings
from common.limits.charges import periods
from common.redis import keyspace
from common.redis.client import connect
from workers.quota.health import name_of
from workers.upstream.deployments import deployments

LOCAL = {"base_url": "http://127.0.0.1:9"}
ROUTES: dict[str, Any] = {
    "fast": {
        "targets": [{"model": "one/m", "tags": ["eu"]}, {"model": "two/m", "priority": 2}, "azure/gpt-5"],
        "fallbacks": [{"model": "three/m", "when": ["exhausted"]}, {"model": "four/m", "when": ["context_overflow"]}],
        "hedge_after_ms": 700,
    },
    "old": {"targets": ["one/old"], "fallbacks": [{"model": "two/m", "when": ["retired"]}]},
    "shared": {"strategy": "weighted", "targets": [{"model": "one/m", "weight": 3}, "two/m"]},
}
Sluice = Callable[..., Result]


@pytest.fixture
def sluice(redis_server: EmbeddedRedis, tmp_path, monkeypatch) -> Sluice:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.set(keyspace.SPENT_LOADED, "loaded")  # Otherwise nobody knows what was spent.
    monkeypatch.chdir(tmp_path)
    budget = {"budget": {"day_usd": 1}}
    providers = {"one": LOCAL, "two": LOCAL | budget, "three": LOCAL, "four": LOCAL}
    monkeypatch.setenv("SLUICE_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SLUICE_PROVIDERS", json.dumps(providers))
    monkeypatch.setenv("SLUICE_ROUTES", json.dumps(ROUTES))
    monkeypatch.setenv(
        "SLUICE_MODEL_FACTS", '[{"vendors": ["one"], "models": "old", "retires": "2026-01-01", "context_tokens": 5000}]'
    )
    monkeypatch.setenv("SLUICE_PRICES", '{"one/m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}')

    def run(*words: str, status: int = 0) -> Result:
        result = CliRunner().invoke(main, ["route", "explain", *words])
        assert result.exit_code == status, result.output
        return result

    return run


def explained(sluice: Sluice, *words: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(sluice(*words, "--json").stdout)
    return report


def order(report: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(call["target"], call["reason"]) for call in report["order"]]


def by_target(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {target["target"]: target for target in report["targets"]}


def name_in_redis(model: str) -> str:
    job = Job("g", "", "openai-chat", model, False, Policy.STOP, 0, 0, body=b"{}")
    return name_of(deployments(job, Settings())[0])


def test_a_route_is_shown_in_the_order_of_its_calls_with_all_that_decides_it(sluice):
    report = explained(sluice, "fast")

    assert order(report) == [("one/m", None), ("two/m", None), ("three/m", "exhausted")]
    assert (report["strategy"], report["hedge_after_ms"], report["order_varies"]) == ("priority", 700, False)
    targets = by_target(report)
    assert (targets["one/m"]["tags"], targets["two/m"]["priority"], targets["one/m"]["when"]) == (["eu"], 2, None)
    assert (targets["one/m"]["typical_cost_usd"], targets["two/m"]["typical_cost_usd"]) == ("0.005", None)
    assert targets["four/m"]["when"] == ["context_overflow"]
    assert (targets["azure-openai/gpt-5"]["usable"], targets["azure-openai/gpt-5"]["keys"]) == (False, [])
    assert report["redis_problem"] is None


def test_who_is_unwell_or_paused_or_over_its_budget_is_told(sluice, redis_server):
    with Redis.from_url(redis_server.url) as client:
        now_ms = time.time_ns() // 1_000_000
        client.hset(keyspace.UNWELL, name_in_redis("one/m"), now_ms + 50_000)
        client.hset(keyspace.PAUSED, name_in_redis("three/m"), now_ms + 20_000)
        client.hset(keyspace.UNWELL, name_in_redis("two/m"), now_ms - 1_000)  # It may be tried again.
        client.set(keyspace.spent("provider", "two", periods()[0]), 2 * 10**9)

    report = explained(sluice, "fast")

    assert order(report) == [("three/m", "exhausted"), ("one/m", None)], "who is unwell comes last, and two costs too much"
    targets = by_target(report)
    assert 40 < targets["one/m"]["keys"][0]["unwell_s"] <= 50
    assert 10 < targets["three/m"]["keys"][0]["paused_s"] <= 20
    assert targets["two/m"]["keys"][0]["unwell_s"] is None
    text = sluice("fast").stdout
    assert "unwell for" in text
    assert "paused for" in text
    assert "budget for two is spent" in text


def test_a_key_s_rights_are_applied(sluice, redis_server):
    def store(access: Access) -> None:
        async def put() -> None:
            redis = connect(redis_server.url)
            record = KeyRecord(
                id="4f7k2m9qwxyz", name="", tenant="acme", secret_hash="x", access=access, created_ms=1, updated_ms=1
            )
            await KeyRecords(redis).store(record)
            await redis.aclose()

        asyncio.run(put())

    store(Access(models=("two/*", "three/*"), providers=("two",)))
    report = explained(sluice, "fast", "--key", "4f7k2m9qwxyz")
    assert order(report) == [("two/m", None)]
    refusals = {name: target["refusal"] for name, target in by_target(report).items()}
    assert (refusals["one/m"], refusals["two/m"], refusals["three/m"]) == ("model_not_allowed", None, "provider_not_allowed")
    assert "There is no key" in sluice("fast", "--key", "unknown", status=1).output


def test_a_key_that_may_use_fallbacks_only_gets_nothing(sluice, redis_server):
    async def put() -> None:
        redis = connect(redis_server.url)
        record = KeyRecord(
            id="4f7k2m9qwxyz",
            name="",
            tenant="acme",
            secret_hash="x",
            access=Access(models=("three/*",)),
            created_ms=1,
            updated_ms=1,
        )
        await KeyRecords(redis).store(record)
        await redis.aclose()

    asyncio.run(put())
    assert "the request is refused" in sluice("fast", "--key", "4f7k2m9qwxyz").stdout


def test_a_retired_target_is_shown_as_replaced(sluice):
    report = explained(sluice, "old")
    assert order(report) == [("two/m", "retired")]
    assert (by_target(report)["one/old"]["retires"], by_target(report)["one/old"]["context_tokens"]) == ("2026-01-01", 5000)


def test_other_names_and_orders_by_chance(sluice):
    assert "one of the possible orders" in sluice("shared").stdout
    plain = explained(sluice, "one/m")
    assert (plain["is_route"], order(plain)) == (False, [("one/m", None)])
    assert "does not say which provider" in sluice("nobody-s-model", status=1).output


def test_without_redis_the_settings_are_shown_and_what_is_not_known_is_said(sluice, monkeypatch):
    monkeypatch.setenv("SLUICE_REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    result = sluice("fast")
    assert "1. one/m" in result.stdout
    assert "So it is not known what is unwell" in result.stderr
    assert explained(sluice, "fast")["redis_problem"]
    assert "the key is not known" in sluice("fast", "--key", "4f7k2m9qwxyz", status=1).output
