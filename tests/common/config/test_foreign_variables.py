import os

import pytest
from structlog.testing import capture_logs

from common.access.cache_rule import CacheRule
from common.access.principal import Limits
from common.config.foreign_effect import in_effect, log_foreign, turns_cache_on, without_effect
from common.config.foreign_variables import foreign_values
from common.config.settings import Settings, environment


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLUICE_", "CCPROXY_")):
            monkeypatch.delenv(name)
    for name in ("PORT", "REDIS_URL", "LOG_LEVEL", "DEBUG", "CORS_ORIGIN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


SEEDS = {
    "ACCOUNT_ID": "acct",
    "GATEWAY_ID": "gw",
    "GatewayToken": "tok",
    "AZURE_RESOURCE": "res",
    "AZURE_API_VERSION": "2024-02-01",
    "CCPROXY_API_KEYS": "sk-1, sk-2",
    "CCPROXY_BEARER_TOKEN": "sk-3",
    "CCPROXY_HOST": "127.0.0.2",
    "CCPROXY_PORT": "8000",
    "CCPROXY_LOG_LEVEL": "WARNING",
    "REDIS_URL": "redis://elsewhere:6379",
    "CORS_ORIGIN": "https://yourdomain.com",
}


def test_another_gateway_s_environment_is_enough(monkeypatch):
    for name, value in SEEDS.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.2", 8000, "warning")
    assert (settings.redis_url, settings.cors_origins) == ("redis://elsewhere:6379", ("https://yourdomain.com",))
    assert [key.get_secret_value() for key in settings.api_keys] == ["tok", "sk-1", "sk-2", "sk-3"]
    assert (settings.azure_resource, settings.azure_api_version) == ("res", "2024-02-01")
    assert settings.ai_gateway_url == "https://gateway.ai.cloudflare.com/v1/acct/gw"
    assert settings.ai_gateway_token is not None
    assert settings.ai_gateway_token.get_secret_value() == "tok"
    assert set(in_effect(environment(), settings)) == set(SEEDS)


def test_they_are_read_from_the_env_file_too(elsewhere):
    (elsewhere / ".env").write_text("PORT=3001\n")

    assert Settings().port == 3001


def test_they_are_weaker_than_any_source_of_ours(elsewhere, monkeypatch):
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("LOG_LEVEL", "error")
    monkeypatch.setenv("CCPROXY_API_KEYS", "sk-foreign")
    (elsewhere / "sluice.yaml").write_text("port: 2\n")
    (elsewhere / ".env").write_text("SLUICE_LOG_LEVEL=debug\n")
    monkeypatch.setenv("SLUICE_API_KEYS", "sk-ours")

    settings = Settings()

    assert (settings.port, settings.log_level) == (2, "debug")
    assert [key.get_secret_value() for key in settings.api_keys] == ["sk-ours"]
    assert in_effect(environment(), settings) == []


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({"DEBUG": "true"}, "debug"),
        ({"DEBUG": "true", "LOG_LEVEL": "error"}, "debug"),
        ({"DEBUG": "express:*"}, None),  # Node's own use of the name.
        ({"DEBUG": "0"}, None),
        ({"LOG_LEVEL": "warn"}, "warning"),
        ({"LOG_LEVEL": "chatty"}, None),
        ({"LOG_LEVEL": "info", "CCPROXY_LOG_LEVEL": "ERROR"}, "error"),
    ],
)
def test_levels_are_understood_in_the_words_of_others(variables, level):
    assert foreign_values(variables).get("log_level") == level


def test_the_more_specific_of_two_is_taken():
    assert foreign_values({"PORT": "1", "CCPROXY_PORT": "2"}) == {"port": "2"}


LIMITS = {
    "CCPROXY_RATE_LIMIT_RPM": "60",
    "CCPROXY_RATE_LIMIT_TPM": "90000",
    "CCPROXY_CONCURRENT_REQUESTS": "10",
    "RATE_LIMIT_MAX": "100",
    "RATE_LIMIT_WINDOW_MS": "900000",
}


def test_limits_are_those_of_a_key_or_of_an_address(monkeypatch):
    for name, value in LIMITS.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.limits["key"] == Limits(requests=60, tokens=90_000, concurrent=10, window_s=60)
    assert settings.limits["address"] == Limits(requests=100, window_s=900)
    assert set(in_effect(environment(), settings)) == set(LIMITS)
    assert without_effect(environment(), settings) == {}


def test_each_limit_is_weaker_than_the_same_one_of_ours(monkeypatch):
    monkeypatch.setenv("CCPROXY_RATE_LIMIT_RPM", "60")
    monkeypatch.setenv("CCPROXY_CONCURRENT_REQUESTS", "10")
    monkeypatch.setenv("SLUICE_LIMITS", '{"key": {"requests": 7}, "tenant": {"requests": 9}}')

    settings = Settings()

    assert settings.limits == {"key": Limits(requests=7, concurrent=10), "tenant": Limits(requests=9)}
    assert in_effect(environment(), settings) == ["CCPROXY_CONCURRENT_REQUESTS"]


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "0", ""])
def test_a_limit_that_is_none_sets_none(value):
    assert foreign_values({"RATE_LIMIT_MAX": value}) == {}
    assert foreign_values({"RATE_LIMIT_WINDOW_MS": "900000"}) == {}


def test_a_jwt_secret_lets_tokens_in(monkeypatch):
    monkeypatch.setenv("CCPROXY_JWT_SECRET", "s" * 32)

    settings = Settings()

    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == "s" * 32
    assert in_effect(environment(), settings) == ["CCPROXY_JWT_SECRET"]


@pytest.mark.parametrize(
    ("method", "settings", "is_followed"),
    [
        ("api_key", {"api_keys": "k"}, True),
        ("bearer_token", {"api_keys": "k"}, True),
        ("OAuth2", {"jwt_secret": "s" * 32}, True),
        ("jwt", {"jwt_jwks_url": "https://issuer/keys"}, True),
        ("jwt", {"api_keys": "k"}, False),
        ("api_key", {}, False),
        ("kerberos", {"api_keys": "k"}, False),
    ],
)
def test_a_way_to_authenticate_has_an_effect_where_its_credential_is_set(method, settings, is_followed):
    ignored = without_effect({"CCPROXY_AUTH_METHOD": method}, Settings(**settings))

    assert ("CCPROXY_AUTH_METHOD" not in ignored) is is_followed


def test_the_log_names_them_and_never_their_values():
    variables = {"GatewayToken": "canary", "PORT": "3001", "RATE_LIMIT_MAX": "canary"}
    settings = Settings(**foreign_values(variables))

    with capture_logs() as logs:
        log_foreign(variables, settings)

    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("foreign_variables_taken", "info"),
        ("foreign_variable_has_no_effect", "warning"),
    ]
    assert logs[0]["variables"] == ["GatewayToken", "PORT"]
    assert logs[1]["variable"] == "RATE_LIMIT_MAX"
    assert "canary" not in repr(logs)


def test_nothing_foreign_is_nothing_to_log():
    with capture_logs() as logs:
        log_foreign({}, Settings())

    assert logs == []


CACHED = {"unified": CacheRule(ttl_s=600, policy="all", anonymous=True)}


@pytest.mark.parametrize(
    ("variables", "file", "rules"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "", CACHED),
        ({}, "", {}),
        ({"REDIS_URL": "redis://127.0.0.1:1/0", "SLUICE_REDIS_URL": "redis://127.0.0.1:2/0"}, "", {}),
        ({"REDIS_URL": "redis://127.0.0.1:1/0", "SLUICE_CACHE_TTL_S": "60"}, "", {}),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "redis_url: redis://127.0.0.1:2/0", {}),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "cache_ttl_s: 60", {}),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "port: 81", CACHED),
    ],
)
def test_redis_url_alone_caches_what_the_other_gateway_cached(monkeypatch, tmp_path, variables, file, rules):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sluice.yaml").write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    settings = Settings()
    assert settings.cache_dialects == rules
    assert turns_cache_on("REDIS_URL", settings) == bool(rules)
