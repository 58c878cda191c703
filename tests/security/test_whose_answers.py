"""Are the answers of two principals apart, whatever kind of principals they are? In the cache, and in running calls.

What headers and fields can do is in test_cached_answers.py.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import pytest

from common.redis import keyspace
from tests.security.conftest import SECRET
from tests.support.clients.identical import PATHS, body, cache_state, id_of
from tests.support.fleet import CHAT, KEY, OTHER_KEY, Fleet, RawClient, fleet, headers_of, until

ADMIN, TOKEN_SECRET = "admin-key-of-these-tests", "a-secret-for-the-tokens-of-these-tests"
SETTINGS = {
    "SLUICE_SECRET": SECRET,
    "SLUICE_ADMIN_KEYS": ADMIN,
    "SLUICE_JWT_SECRET": TOKEN_SECRET,
    "SLUICE_CACHE_TTL_S": "600",
    "SLUICE_CACHE_POLICY": "all",
    "SLUICE_CACHE_SCOPE": "tenant",  # The widest, so that only tenants are between these principals.
    "SLUICE_REFUSED_CREDENTIALS_MAX": "0",
    "SLUICE_HEARTBEAT_S": "0.2",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("cached"), apis=2, **SETTINGS) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(gateway: Fleet) -> None:
    gateway.reset_demo()


@pytest.fixture
def new() -> str:
    """A part of a model's name that makes a request another one than those of the other tests."""
    return f"s{next(_numbers)}"


Headers = dict[str, str]


def managed(found: Fleet, tenant: str, scope: str = "tenant") -> Headers:
    fields = ({"tenant": tenant} if tenant else {}) | {"access": {"cache": {"scope": scope}}}
    response = found.client.post(f"{found.url}/admin/keys", json=fields, headers=headers_of(ADMIN))
    return headers_of(response.json()["key"])


def token(subject: str) -> Headers:
    return headers_of(jwt.encode({"sub": subject, "exp": 4_000_000_000}, TOKEN_SECRET, "HS256"))


def own_provider_key(key: str) -> Headers:
    """A client of the gateway that pays with a provider key of its own."""
    return {"x-sluice-key": KEY, "authorization": f"Bearer {key}"}


# Pairs of principals of whom neither may get what the other's requests made.
PAIRS: dict[str, Callable[[Fleet], tuple[Headers, Headers]]] = {
    "two tenants": lambda found: (managed(found, "acme"), managed(found, "globex")),
    "two keys": lambda found: (managed(found, "acme", "key"), managed(found, "acme", "key")),
    "a key and its tenant": lambda found: (managed(found, "acme", "key"), managed(found, "acme")),
    "two keys without a tenant": lambda found: (managed(found, ""), managed(found, "")),
    "two static keys": lambda found: (headers_of(KEY), headers_of(OTHER_KEY)),
    "two tokens": lambda found: (token("ann"), token("bob")),
    "a token and a key": lambda found: (token("ann"), headers_of(KEY)),
    "two provider keys": lambda found: (own_provider_key("sk-one"), own_provider_key("sk-two")),
    "a provider key and none": lambda found: (own_provider_key("sk-one"), headers_of(KEY)),
}


def post(
    found: Fleet, dialect: str, spec: str, sender: Headers, *, stream: bool = False, replica: int = 0, **fields: Any
) -> httpx.Response:
    url = f"http://127.0.0.1:{found.ports[replica]}{PATHS[dialect]}"
    answer = found.client.post(url, json=body(dialect, spec, stream=stream, **fields), headers=sender)
    until(lambda: not found.running(), "the job is over")
    return answer


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("pair", PAIRS)
def test_neither_gets_the_other_s_answer(gateway: Fleet, new: str, pair: str, dialect: str, stream: bool):
    owner, stranger = PAIRS[pair](gateway)
    spec = f"n3-d0-{new}"

    first, own = (post(gateway, dialect, spec, owner, stream=stream) for _ in range(2))
    other = post(gateway, dialect, spec, stranger, stream=stream, replica=1)

    assert (first.status_code, other.status_code) == (200, 200), (first.text, other.text)
    assert (cache_state(first), cache_state(own), cache_state(other)) == ("miss", "hit", "miss")
    assert "age" not in other.headers
    assert id_of(first).removeprefix("gen_") not in other.text
    assert gateway.stats()["requests"] == 2
    assert cache_state(post(gateway, dialect, spec, stranger, stream=stream)) == "hit", "it has an entry of its own"


@pytest.mark.parametrize("pair", PAIRS)
def test_neither_joins_the_other_s_call(gateway: Fleet, new: str, pair: str):
    owner, stranger = PAIRS[pair](gateway)
    spec = f"n40-d25-{new}"
    with RawClient(gateway.ports[0]) as first:
        content = json.dumps(body(CHAT, spec, stream=True)).encode()
        sent = {**owner, "content-type": "application/json", "content-length": str(len(content))}
        first.send("POST", PATHS[CHAT], sent, content)
        first.read_until(b"data: ", times=3)
        other = gateway.client.post(f"{gateway.url}{PATHS[CHAT]}", json=body(CHAT, spec, stream=True), headers=stranger)

        assert cache_state(other) == "miss"
        first.read_until(b"[DONE]")
    assert gateway.stats()["requests"] == 2


# Nor do they notice each other


def test_only_if_cached_tells_nothing_of_another_s_answer(gateway: Fleet, new: str):
    owner, stranger = managed(gateway, "acme"), managed(gateway, "globex")
    post(gateway, CHAT, f"n3-d0-{new}", owner)

    cached, unknown = (
        post(gateway, CHAT, spec, {**stranger, "cache-control": "only-if-cached"})
        for spec in (f"n3-d0-{new}", f"n3-d0-never-{new}")
    )

    assert (cached.status_code, cached.text) == (unknown.status_code, unknown.text)
    assert cached.status_code == 504


def test_one_tenant_s_refresh_or_stop_does_not_reach_another_s(gateway: Fleet, new: str):
    owner, stranger = managed(gateway, "acme"), managed(gateway, "globex")
    spec = f"n3-d0-{new}"
    first = post(gateway, CHAT, spec, owner)
    post(gateway, CHAT, spec, {**stranger, "x-sluice-cache": "refresh"})

    again = post(gateway, CHAT, spec, owner)
    assert (cache_state(again), again.content) == ("hit", first.content)


def test_tenants_whose_names_could_be_mistaken_are_apart(gateway: Fleet, new: str):
    names = ["acme", "ACME", "acme.x", "acme-x", "acme_x", "key", "tenant", "a", "aa"]
    made = [managed(gateway, name) for name in names]

    states = [cache_state(post(gateway, CHAT, f"n3-d0-{new}", sender)) for sender in made]

    assert states == ["miss"] * len(made)


# Clients without a key are all one principal.


def test_clients_without_a_key_share_nothing(tmp_path_factory: pytest.TempPathFactory):
    settings = {
        "SLUICE_API_KEYS": "",
        "SLUICE_CACHE_TTL_S": "600",
        "SLUICE_CACHE_POLICY": "all",
        "SLUICE_CACHE_SCOPE": "tenant",
    }
    with fleet(tmp_path_factory.mktemp("open"), **settings) as found:
        for stream in (True, False):
            for more in ({}, {"x-sluice-cache": "use"}, {"x-sluice-cache": "refresh"}):
                answers = [post(found, CHAT, "n3-d0", dict(more), stream=stream) for _ in range(2)]
                assert [each.status_code for each in answers] == [200, 200], answers[0].text
                assert [cache_state(each) for each in answers] == ["bypass"] * 2, more
        assert found.redis.keys("sluice:cache:*") == []
        assert found.redis.keys(f"{keyspace.QUEUE_PREFIX}flight:*") == []
