"""Which URLs can work?"""

import pytest
from pydantic import TypeAdapter, ValidationError

from common.config.setting_values import CommaList, DatabaseUrl, HttpUrl, Keys, Origins, ProviderUrl, RedisUrl, SecretCommaList
from common.redis.client import connect

REDIS, DATABASE, HTTP, ORIGINS = (TypeAdapter(kind) for kind in (RedisUrl, DatabaseUrl, HttpUrl, Origins))


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:p%40ss@host:6379/3",
        "rediss://[::1]:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://user:pass@a:26379,b/master/2",
        "rediss+sentinel://[::1]:26379,[::2]/master",
    ],
)
def test_what_a_client_can_be_made_of_is_taken(url: str):
    assert REDIS.validate_python(url) == url
    connect(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://host",
        "redis://",
        "redis://host:0",
        "redis://host:70000",
        "redis://host:port",
        "redis://host/name",
        "redis://host/0/1",
        "redis://ho st/0",
        "redis://host/0\n",
        "redis://host/0?nonsense=1",
        "redis://host?db=x",
        "unix://",
        "redis+sentinel://a:1,b",
        "redis+sentinel://a:x/master",
        "redis+sentinel://a,/master",
        "redis+sentinel://a/master/x",
    ],
)
def test_what_no_client_can_be_made_of_is_refused(url: str):
    with pytest.raises(ValidationError):
        REDIS.validate_python(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///sluice.db",
        "sqlite:////var/a folder/sluice.db",
        "sqlite+aiosqlite:///x",
        "postgres://u:p@h/n",
        "postgresql+asyncpg://h:5432/n?ssl=require",
    ],
)
def test_a_database_that_processes_can_share_is_taken(url: str):
    assert DATABASE.validate_python(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "sluice.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/name",
        "mysql://h/n",
        "postgresql://h",
        "postgresql://h:port/n",
        "postgresql://h/n?sslmode=require",
    ],
)
def test_another_database_is_refused(url: str):
    with pytest.raises(ValidationError):
        DATABASE.validate_python(url)


@pytest.mark.parametrize(
    "url", ["h", "h:80", "ftp://h", "http://", "https:///v1", "http://h:x", "http://h:99999", "http://a b"]
)
def test_an_address_needs_scheme_and_host(url: str):
    with pytest.raises(ValidationError):
        HTTP.validate_python(url)


@pytest.mark.parametrize("login", ["user:secret-word@", "user@", ":secret-word@", "@"])
def test_an_address_of_a_provider_has_no_login(login: str):
    url = TypeAdapter(ProviderUrl)
    assert url.validate_python("https://h:80/v1/@cf") == "https://h:80/v1/@cf"
    with pytest.raises(ValidationError, match="put the key into api_keys") as refused:
        url.validate_python(f"http://{login}h:80/v1")
    assert "secret-word" not in refused.value.errors(include_input=False)[0]["msg"]


def test_a_closing_slash_is_no_part_of_an_address():
    assert HTTP.validate_python("https://h/v1/") == "https://h/v1"
    assert ORIGINS.validate_python("https://a.example/, *") == ("https://a.example", "*")


@pytest.mark.parametrize("kind", [CommaList, SecretCommaList, Keys, Origins], ids=["texts", "secrets", "keys", "origins"])
def test_a_list_whose_parts_got_lost_is_not_an_empty_one(kind):
    """As of ``"$ONE,$TWO"``, neither of which is set: without keys everybody is let in, without an audience every token."""
    assert len(TypeAdapter(kind).validate_python("")) == 0
    for lost in (",", " , ,"):
        with pytest.raises(ValidationError, match="only commas and no values"):
            TypeAdapter(kind).validate_python(lost)
