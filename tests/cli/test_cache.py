"""``sluice cache`` as an operator types it: a real Redis and a real database."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from cli.main import main
from common.cache.store import CacheStore
from common.config.settings import Settings
from common.redis.client import connect
from tests.cli.test_usage import fill, row
from tests.common.cache.test_store import ENTRY

DAY_MS = 86_400_000


@pytest.fixture
def database(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/s.db"


@pytest.fixture
def sluice(redis_server: EmbeddedRedis, database, tmp_path, monkeypatch):
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUICE_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SLUICE_DATABASE_URL", database)

    def run(*words: str, status: int = 0, typed: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["cache", *words], input=typed)
        assert result.exit_code == status, result.output
        return result

    return run


def store(url: str, *groups: tuple[str, str, str]) -> None:
    """Put an entry into the cache for each (tenant, model, upstream model)."""

    async def put() -> None:
        redis = connect(url)
        cache = CacheStore(redis, Settings())
        for number, (tenant, model, upstream_model) in enumerate(groups):
            entry = replace(
                ENTRY, key=f"k{number}", tenant=tenant, model=model, provider="openai", upstream_model=upstream_model
            )
            assert await cache.put(entry)
        await redis.aclose()

    asyncio.run(put())


def ended(cache: str, number: int, *, age_ms: int = 1000, saved: int | None = None):
    return row(f"gen_{cache}{number}", cache=cache, ended_ms=time.time_ns() // 1_000_000 - age_ms, saved_nano_usd=saved)


def test_stats_show_what_is_stored_and_what_the_last_day_saved(sluice, redis_server, database):
    store(redis_server.url, ("acme", "fast", "gpt-5"), ("acme", "fast", "gpt-5"), ("other", "a\x1b[2Jb", "gpt-5"))
    rows = [ended("hit", n, saved=1_500_000_000) for n in range(3)] + [ended("join", 1, saved=5_000_000), ended("miss", 1)]
    fill(database, *rows, ended("bypass", 1), ended("off", 1), ended("hit", 9, age_ms=DAY_MS + 60_000, saved=10**12))

    report = json.loads(sluice("stats", "--json").stdout)
    text = sluice("stats").stdout

    assert (report["entries"], report["bytes_max"], report["has_more"]) == (3, 256 * 1024**2, False)
    assert report["bytes"] == sum(group["bytes"] for group in report["data"])
    assert [(group["tenant"], group["model"], group["target"], group["entries"]) for group in report["data"]] == [
        ("acme", "fast", "openai/gpt-5", 2),
        ("other", "a\x1b[2Jb", "openai/gpt-5", 1),
    ]
    assert report["last_day"] == {
        "hit": {"requests": 3, "saved_usd": "4.50"},
        "join": {"requests": 1, "saved_usd": "0.005"},
        "miss": {"requests": 1, "saved_usd": "0.00"},
        "bypass": {"requests": 1, "saved_usd": "0.00"},
    }
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["tenant", "model", "answered", "by", "answers", "size"]
    assert lines[1][:4] == ["acme", "fast", "openai/gpt-5", "2"]
    assert ["hit", "3", "4.50"] in lines
    assert "\x1b" not in text, "a client's name must not control the terminal"


def test_stats_of_an_empty_cache_without_a_database(sluice):
    result = sluice("stats")

    assert result.stdout == "Answers in the cache: 0, 0 bytes of 256 MiB (SLUICE_CACHE_BYTES_MAX).\n"
    assert "ledger cannot be read" in result.stderr
    assert json.loads(sluice("stats", "--json").stdout)["last_day"] is None


def test_answers_are_cleared_by_tenant_and_model(sluice, redis_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    store(redis_server.url, ("acme", "fast", "gpt-5"), ("acme", "m", "gpt-4"), ("other", "m", "gpt-5"), ("third", "m", "gpt-4"))

    assert sluice("clear", "--tenant", "acme", "--model", "openai/gpt-5").stdout == "1 answer removed.\n"
    assert sluice("clear", "--model", "openai/gpt-5").stdout == "1 answer removed.\n"
    assert sluice("clear", "--tenant", "acme").stdout == "1 answer removed.\n"
    assert sluice("clear", "--tenant", "nobody").stdout == "0 answers removed.\n"
    assert [group["tenant"] for group in json.loads(sluice("stats", "--json").stdout)["data"]] == ["third"]


def test_all_answers_are_cleared_only_after_a_question(sluice, redis_server):
    store(redis_server.url, ("acme", "m", "x"), ("other", "m", "x"))

    sluice("clear", typed="n\n", status=1)
    sluice("clear", status=1)  # Nobody is there to answer.
    assert json.loads(sluice("stats", "--json").stdout)["entries"] == 2
    assert sluice("clear", typed="y\n").stdout.endswith("2 answers removed.\n")
    assert sluice("clear", "--yes").stdout == "0 answers removed.\n"


def test_an_empty_option_does_not_clear_all(sluice, redis_server):
    store(redis_server.url, ("acme", "m", "x"))

    for option in ("--tenant", "--model"):
        assert "must not be empty" in sluice("clear", option, "", status=2).stderr
    assert json.loads(sluice("stats", "--json").stdout)["entries"] == 1


def test_the_cache_of_its_own_redis_is_used(sluice, redis_server, monkeypatch):
    store(redis_server.url, ("acme", "m", "x"))
    with EmbeddedRedis() as own:
        monkeypatch.setenv("SLUICE_CACHE_REDIS_URL", own.url)
        store(own.url, ("other", "m", "x"))

        assert [group["tenant"] for group in json.loads(sluice("stats", "--json").stdout)["data"]] == ["other"]


@pytest.mark.parametrize("variable", ["SLUICE_REDIS_URL", "SLUICE_CACHE_REDIS_URL"])
@pytest.mark.parametrize("command", [["stats"], ["clear", "--yes"]])
def test_without_redis_the_commands_say_which_setting_leads_there(sluice, monkeypatch, variable, command):
    port = free_port()
    monkeypatch.setenv(variable, f"redis://:secret@127.0.0.1:{port}/0")

    output = sluice(*command, status=1).output

    assert f"127.0.0.1:{port}" in output
    assert f"Is {variable} right?" in output
    assert ".." not in output
    assert "sluice dev" in output
    assert "secret" not in output
    assert "Traceback" not in output
