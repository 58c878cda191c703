"""Can a tenant get an answer that was made for another one? Not by any header, field, dialect or credential."""

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.security.conftest import SECRET
from tests.support.clients.identical import PATHS, cache_state, send
from tests.support.fleet import CHAT, KEY, OTHER_KEY, Fleet, fleet, headers_of, until

ADMIN_KEY = "admin-of-these-tests"
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Victim:
    """A key whose answers its whole tenant shares, the id of a generation of it, and an idempotency-key that it used."""

    key: str
    key_id: str
    generation_id: str
    idempotency_key: str = "the-victims-own"


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": SECRET,
        "SLUICE_ADMIN_KEYS": ADMIN_KEY,
        "SLUICE_CACHE_TTL_S": "600",
        "SLUICE_CACHE_POLICY": "all",
        "SLUICE_CACHE_SCOPE": "tenant",
        "SLUICE_REFUSED_CREDENTIALS_MAX": "0",
    }
    with fleet(tmp_path_factory.mktemp("cached"), **settings) as found:
        yield found


def create_key(found: Fleet, **fields: Any) -> dict[str, Any]:
    response = found.client.post(f"{found.url}/admin/keys", json=fields, headers=headers_of(ADMIN_KEY))
    assert response.status_code == 201, response.text
    return dict(response.json())


def calls(found: Fleet) -> int:
    return int(found.stats()["requests"])


@pytest.fixture(scope="module")
def text() -> str:
    return "a question that both tenants ask"


@pytest.fixture(scope="module")
def victim(cached: Fleet, text: str) -> Victim:
    """Every dialect's answer is in the cache, as a stream and as a whole."""
    made, colleague = create_key(cached, tenant="acme"), create_key(cached, tenant="acme")["key"]
    for dialect, stream in itertools.product(PATHS, (True, False)):
        first = send(cached, dialect, "n3-d1", stream=stream, key=made["key"], text=text)
        assert (first.status_code, cache_state(first)) == (200, "miss")
    until(lambda: not cached.running(), "everything is stored")
    for dialect, stream in itertools.product(PATHS, (True, False)):
        assert cache_state(send(cached, dialect, "n3-d1", stream=stream, key=colleague, text=text)) == "hit"
    started = send(cached, CHAT, "n3-d1", key=made["key"], text=text, **{"idempotency-key": Victim.idempotency_key})
    return Victim(made["key"], made["id"], started.headers["x-generation-id"])


HEADERS = [
    {},
    {"x-sluice-cache": "use"},
    {"cache-control": "max-age=31536000"},
    {"cache-control": "only-if-cached"},
    {"x-sluice-cache": "use", "cache-control": "only-if-cached, max-stale"},
    {"x-sluice-tenant": "acme", "x-tenant": "acme", "x-tenant-id": "acme"},
    {"x-sluice-cache-scope": "tenant", "x-sluice-cache-key": "acme"},
    {"idempotency-key": "{idempotency_key}"},
    {"x-generation-id": "{generation_id}", "if-none-match": "*", "x-request-id": "{generation_id}"},
    {"x-disconnect": "detach"},
    {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1"},
]
FIELDS: list[dict[str, Any]] = [
    {"user": "{key_id}"},
    {"metadata": {"tenant": "acme", "user_id": "{key_id}"}},
    {"tenant": "acme", "owner": "{key_id}"},
    {"prompt_cache_key": "acme", "safety_identifier": "{key_id}"},
    {"cache": {"scope": "tenant"}, "scope": "tenant"},
]


def filled(value: Any, victim: Victim) -> Any:
    """Return a header or field with what the attacker knows of the victim."""
    if isinstance(value, dict):
        return {name: filled(inner, victim) for name, inner in value.items()}
    known = {"key_id": victim.key_id, "generation_id": victim.generation_id, "idempotency_key": victim.idempotency_key}
    return value.format(**known)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", PATHS)
def test_no_header_and_no_field_gets_an_answer_of_another_tenant(
    cached: Fleet, victim: Victim, text: str, dialect: str, stream: bool
):
    for headers, fields in [*((headers, {}) for headers in HEADERS), *(({}, fields) for fields in FIELDS)]:
        # A fresh tenant for each attempt, so that it cannot find its own answer.
        key, before = create_key(cached, tenant=f"acme.{next(NUMBERS)}")["key"], calls(cached)
        known = {"text": text, "fields": filled(fields, victim), **filled(headers, victim)}

        got = send(cached, dialect, "n3-d1", stream=stream, key=key, **known)

        if "only-if-cached" in headers.get("cache-control", ""):
            assert (got.status_code, calls(cached)) == (504, before), headers
        else:
            assert (got.status_code, calls(cached)) == (200, before + 1), (headers, fields, got.text)
        assert cache_state(got) != "hit"


def test_nobody_joins_a_running_call_of_another_tenant(cached: Fleet, text: str):
    keys = [create_key(cached, tenant=f"runner-{number}")["key"] for number in range(2)]
    cached.reset_demo()
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda key=key: answers.append(send(cached, CHAT, "n40-d20", key=key, text=text)))
        for key in keys
    ]
    threads[0].start()
    until(lambda: calls(cached) == 1, "the first one runs")
    threads[1].start()
    for thread in threads:
        thread.join()

    assert [cache_state(answer) for answer in answers] == ["miss", "miss"]
    assert calls(cached) == 2


def test_a_key_that_shares_with_itself_alone_neither_takes_nor_gives(cached: Fleet, text: str):
    alone = create_key(cached, tenant="mixed", access={"cache": {"scope": "key"}})["key"]
    shared, colleague = [create_key(cached, tenant="mixed")["key"] for _ in range(2)]

    def state(key: str) -> str | None:
        state = cache_state(send(cached, CHAT, "n2-d1", key=key, text=text))
        until(lambda: not cached.running(), "it is stored")
        return state

    assert [state(key) for key in (alone, shared, colleague, alone)] == ["miss", "miss", "hit", "hit"]


def test_an_answer_that_one_provider_key_paid_for_is_not_given_to_another(cached: Fleet, text: str):
    key = create_key(cached, tenant="brings")["key"]

    def state(own_key: str | None) -> str | None:
        credentials = (
            {"authorization": f"Bearer {own_key}", "x-sluice-key": key} if own_key else {"authorization": f"Bearer {key}"}
        )
        body = {"model": "openai/demo-n2-d1", "messages": [{"role": "user", "content": text}]}
        answer = cached.client.post(f"{cached.url}/v1/chat/completions", json=body, headers=credentials)
        assert answer.status_code == 200, answer.text
        until(lambda: not cached.running(), "it is stored")
        return cache_state(answer)

    assert [state(own) for own in (None, "sk-own-one", "sk-own-two", "sk-own-one", None)] == [
        "miss",
        "miss",
        "miss",
        "hit",
        "hit",
    ]


def test_only_an_admin_sees_or_removes_what_is_stored(cached: Fleet, victim: Victim, text: str):
    for key, method in itertools.product((victim.key, KEY, OTHER_KEY, ""), ("GET", "DELETE")):
        assert cached.client.request(method, f"{cached.url}/admin/cache", headers=headers_of(key)).status_code == 401

    shown = cached.client.get(f"{cached.url}/admin/cache", headers=headers_of(ADMIN_KEY)).text
    assert '"acme"' in shown
    assert text not in shown, "nor do they see what was asked and answered"
