"""``sluice keys`` as an operator types it: a real database and a real Redis."""

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from cli.dev.embedded_redis import EmbeddedRedis
from cli.main import main
from common.access.key_text import is_id, parse_key
from common.config.settings import Settings

SECRET = "a long random text that all processes share"


@pytest.fixture
def environment(redis_server: EmbeddedRedis, tmp_path, monkeypatch) -> dict[str, str]:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    monkeypatch.chdir(tmp_path)
    found = {
        "SLUICE_REDIS_URL": redis_server.url,
        "SLUICE_DATABASE_URL": f"sqlite:///{tmp_path}/s.db",
        "SLUICE_SECRET": SECRET,
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def sluice(environment):
    def run(*words: str, status: int = 0) -> Result:
        result = CliRunner().invoke(main, ["keys", *words])
        assert result.exit_code == status, result.output
        return result

    return run


def made(sluice, *words: str) -> dict[str, Any]:
    return json.loads(sluice("create", "--json", *words).stdout)


def shown(sluice, id_: str) -> dict[str, Any]:
    return json.loads(sluice("show", id_, "--json").stdout)


@pytest.mark.parametrize(
    "command", [[], ["create"], ["list"], ["show"], ["rotate"], ["disable"], ["enable"], ["update"], ["delete"]]
)
def test_help_teaches(command):
    result = CliRunner().invoke(main, ["keys", *command, "--help"])

    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3


def test_only_the_key_itself_goes_to_standard_output(sluice):
    result = sluice("create", "--name", "shop")

    assert parse_key(result.stdout.strip(), Settings().secret)
    assert "only this once" in result.stderr


def test_all_that_a_key_may_can_be_said(sluice):
    told = made(
        sluice,
        *("--name", "shop", "--tenant", "acme", "--expires", "2100-01-01"),
        *("--model", "gpt-*", "--model", "fast", "--provider", "openai", "--dialect", "openai-chat"),
        *("--origin", "https://app.example", "--disconnect", "grace=60"),
        *("--requests", "60", "--tokens", "1000", "--concurrent", "5", "--window", "30"),
        *("--day-usd", "1.5", "--month-usd", "20", "--guardrail", "pii=block", "--audit"),
        *("--cache-ttl", "10m", "--cache-policy", "all", "--cache-scope", "tenant"),
    )

    assert is_id(told["id"])
    assert (told["name"], told["tenant"], told["expires_at"]) == ("shop", "acme", "2100-01-01T00:00:00Z")
    assert told["access"] == {
        "models": ["gpt-*", "fast"],
        "providers": ["openai"],
        "dialects": ["openai-chat"],
        "cors_origins": ["https://app.example"],
        "disconnect": "grace=60",
        "limits": {"requests": 60, "tokens": 1000, "concurrent": 5, "window_s": 30.0},
        "budget": {"day_usd": "1.5", "month_usd": "20"},
        "guardrails": {"pii": "block"},
        "audit": True,
        "cache": {"ttl_s": 600.0, "policy": "all", "scope": "tenant"},
    }
    assert told["key"] not in sluice("show", told["id"]).output + sluice("list").output


def test_what_is_not_named_stays_and_what_is_cleared_goes(sluice):
    id_ = made(sluice, "--model", "gpt-*", "--requests", "60", "--tokens", "9", "--expires", "30d", "--day-usd", "1")["id"]

    sluice("update", id_, "--requests", "70", "--name", "new", "--expires", "never", "--clear", "models", "--clear", "day-usd")

    told = shown(sluice, id_)
    assert told["access"] == {"limits": {"requests": 70, "tokens": 9}}
    assert (told["name"], told["expires_at"]) == ("new", None)


def test_the_cache_rule_of_a_key_is_changed_field_by_field(sluice):
    id_ = made(sluice, "--cache-ttl", "2h", "--cache-scope", "tenant")["id"]

    sluice("update", id_, "--cache-ttl", "0", "--clear", "cache-scope")
    assert shown(sluice, id_)["access"] == {"cache": {"ttl_s": 0.0}}
    sluice("update", id_, "--clear", "cache-ttl")
    assert shown(sluice, id_)["access"] == {}


def test_keys_are_disabled_enabled_rotated_and_deleted(sluice):
    told = made(sluice)
    id_ = told["id"]

    states = [shown(sluice, id_)["state"]]
    for command in ("disable", "enable"):
        sluice(command, id_)
        states.append(shown(sluice, id_)["state"])
    rotated = json.loads(sluice("rotate", id_, "--overlap", "10m", "--json").stdout)
    assert states == ["enabled", "disabled", "enabled"]
    assert (rotated["id"], rotated["previous_good_until"] is not None) == (id_, True)
    assert rotated["key"] != told["key"]
    sluice("delete", id_, "--yes")
    assert f"no key {id_}" in sluice("show", id_, status=1).output


def test_deleting_asks_first(sluice):
    id_ = made(sluice)["id"]

    sluice("delete", id_, status=1)

    assert shown(sluice, id_)["state"] == "enabled"


def test_the_list_tells_tenants_and_states(sluice):
    one, two = made(sluice, "--tenant", "a")["id"], made(sluice, "--tenant", "b", "--expires", "2001-01-01")["id"]
    sluice("disable", one)

    lines = {line.split()[0]: line for line in sluice("list").stdout.splitlines()}
    assert "disabled" in lines[one]
    assert "expired" in lines[two]
    assert [each["id"] for each in json.loads(sluice("list", "--tenant", "b", "--json").stdout)] == [two]


@pytest.mark.parametrize(
    ("text", "after_s"), [("90s", 90), ("10m", 600), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_an_expiry_may_be_a_span_from_now(sluice, text, after_s, monkeypatch):
    now_ns = 1_900_000_000 * 1_000_000_000
    monkeypatch.setattr("cli.keys.options.time.time_ns", lambda: now_ns)

    told = made(sluice, "--expires", text)

    assert told["expires_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_900_000_000 + after_s))


def test_what_a_key_is_allowed_and_does_not_exist_is_told(sluice):
    result = sluice("create", "--provider", "opnai", "--dialect", "openai-chat", "--model", "nowhere/m", "--model", "gpt-*")

    assert "! It is allowed the provider 'opnai', which does not exist. Did you mean openai?" in result.output
    assert "the provider of models 'nowhere', which does not exist" in result.output
    assert "dialect" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--expires", "soon"], "30d"),
        (["create", "--requests", "0"], "--requests: it must be a whole number from 1"),
        (["create", "--day-usd", "many"], "--day-usd: "),
        (["create", "--disconnect", "later"], "--disconnect: it must be text such as grace=60"),
        (["create", "--origin", "app.example"], "--origin: it must be text such as https://app.example"),
        (["create", "--guardrail", "pii"], "pii=block"),
        (["create", "--guardrail", "pii=maybe"], "--guardrail: it must be one of"),
        (["create", "--guardrail", "nothing=block"], "there is no 'nothing' here"),
        (["create", "--cache-ttl", "soon"], "10m"),
        (["create", "--cache-ttl", "31d"], "--cache-ttl: it must be a number from 0 to 2592000"),
        (["create", "--cache-policy", "some"], "--cache-policy: it must be one of deterministic, all"),
        (["create", "--cache-scope", "all"], "--cache-scope: it must be one of key, tenant"),
        (["create", "--tenant", "a b"], "--tenant"),
        (["update", "0123456789ab", "--clear", "everything"], "models"),
        (["rotate", "0123456789ab", "--overlap", "5w"], "30d"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(sluice, words, said):
    if words[0] == "update":
        words[1] = made(sluice)["id"]

    result = sluice(*words, status=2)

    assert said in result.output
    assert "Traceback" not in result.output


def test_without_a_secret_it_says_what_to_set(sluice, monkeypatch):
    monkeypatch.delenv("SLUICE_SECRET")

    assert "SLUICE_SECRET" in sluice("create", status=2).output


def test_without_redis_a_key_is_made_and_a_revocation_is_said_not_to_count_yet(sluice, monkeypatch, environment):
    id_ = made(sluice)["id"]
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://127.0.0.1:9")

    disabled = sluice("disable", id_, status=1)
    deleted = sluice("delete", id_, "--yes", status=1)
    created = sluice("create", status=1)

    assert f"sluice keys update {id_}" in disabled.stderr
    assert "Run the command again" in deleted.stderr
    assert parse_key(created.stdout.strip(), Settings().secret)
    monkeypatch.setenv("SLUICE_REDIS_URL", environment["SLUICE_REDIS_URL"])
    sluice("update", id_)
    with Redis.from_url(environment["SLUICE_REDIS_URL"]) as redis:
        assert json.loads(redis.get(f"sluice:key:{id_}"))["is_disabled"]


def test_without_a_database_it_says_so(sluice, monkeypatch, tmp_path):
    monkeypatch.setenv("SLUICE_DATABASE_URL", f"sqlite:///{tmp_path}/no/such/folder.db")

    assert "SLUICE_DATABASE_URL" in sluice("list", status=1).output


@pytest.mark.parametrize("command", [["list"], ["show", "4f7k2m9qwxyz"]])
def test_no_database_is_not_an_empty_one(sluice, monkeypatch, tmp_path, command):
    file = tmp_path / "typing_error.db"
    monkeypatch.setenv("SLUICE_DATABASE_URL", f"sqlite:///{file}")

    assert f"there is no file {file}" in sluice(*command, status=1).output
    assert not file.exists()
