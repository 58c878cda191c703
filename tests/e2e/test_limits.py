"""Limits and budgets on two API replicas, as real clients meet them."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from tests.support.fleet import CHAT, KEY, MESSAGES, OTHER_KEY, PATH_OF, Fleet, body_of, fleet, headers_of, until

CLIENTS = 50
LIMITS = '{"key": {"requests": 20, "window_s": 3600}}'
DIALECT_PATHS = {**PATH_OF, "openai-responses": "/v1/responses", "agentary": "/api/demo", "unified": "/v1/chat"}


def ask(found: Fleet, replica: int, path: str, body: dict, key: str = KEY) -> httpx.Response:
    url = f"http://127.0.0.1:{found.ports[replica % len(found.ports)]}{path}"
    return httpx.post(url, json=body, headers=headers_of(key), timeout=120)


def ask_at_once(found: Fleet, model: str, key: str = KEY) -> list[httpx.Response]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        body = body_of(CHAT, model)
        asked = [pool.submit(ask, found, n, PATH_OF[CHAT], body, key) for n in range(CLIENTS)]
        return [each.result() for each in asked]


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in set(found)}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("limits"), apis=2, workers=2, SLUICE_LIMITS=LIMITS) as found:
        yield found


def test_twenty_of_fifty_clients_on_two_replicas_are_admitted_and_each_key_has_its_own(limited: Fleet):
    for key in (KEY, OTHER_KEY):
        answers = ask_at_once(limited, "demo-n2", key)

        assert statuses(answers) == {200: 20, 429: 30}
        assert sorted(int(a.headers["x-ratelimit-remaining-requests"]) for a in answers if a.is_success) == list(range(20))
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) > 3000
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.json()["error"]["code"] == "requests_limit"


def test_what_was_refused_reached_neither_queue_nor_upstream(limited: Fleet):
    before = limited.stats()["requests"]

    assert ask(limited, 0, PATH_OF[CHAT], body_of(CHAT, "demo-n2")).status_code == 429

    assert limited.stats()["requests"] == before
    leftover = [key for key in limited.redis.scan_iter("*:state") if limited.redis.hget(key, "pos") == b"0  0-0"]
    assert leftover == []


@pytest.mark.parametrize("dialect", DIALECT_PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_each_dialect_says_it_in_its_own_shape(limited: Fleet, dialect: str, stream: bool):
    body = body_of(MESSAGES, "demo-n2", stream=stream, provider="demo", input="hi")

    answer = ask(limited, 1, DIALECT_PATHS[dialect], body)

    assert answer.status_code == 429
    assert "retry-after" in answer.headers
    said = answer.json()
    match dialect:
        case "openai-chat" | "openai-responses":
            assert (said["error"]["type"], said["error"]["code"]) == ("requests", "requests_limit")
        case "anthropic-messages":
            assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")
        case "agentary":
            assert said["error"] == "Rate limit exceeded"
        case "unified":
            assert "20 requests per 3600 seconds" in str(said)


def test_the_sdks_know_it_as_a_rate_limit(limited: Fleet):
    chat = openai.OpenAI(api_key=KEY, base_url=f"{limited.url}/v1", max_retries=0)
    claude = anthropic.Anthropic(api_key=KEY, base_url=limited.url, max_retries=0)

    with pytest.raises(openai.RateLimitError) as caught:
        chat.chat.completions.create(model="demo-n2", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "requests_limit"
    with pytest.raises(anthropic.RateLimitError):
        claude.messages.create(model="demo-n2", max_tokens=9, messages=[{"role": "user", "content": "hi"}])


def test_a_place_is_free_within_ten_seconds_of_its_workers_death(tmp_path: Path):
    limits = '{"key": {"concurrent": 1}}'
    with fleet(tmp_path, workers=1, SLUICE_LIMITS=limits, SLUICE_SECRET="a secret of these tests, 32 bytes or more") as found:

        def start(model: str) -> int:
            """Without waiting for the answer: nobody may be there to give it."""
            url = f"{found.url}/v1/generations"
            return found.client.post(url, json=body_of(CHAT, model), headers=headers_of()).status_code

        assert start("demo-n9-f600000") == 202
        until(lambda: found.stats()["open"] == 1, "the upstream is called")
        assert start("demo-n2") == 429
        found.workers[0].send(signal.SIGKILL)

        until(lambda: start("demo-n2") == 202, "the place is free", within_s=10)


def test_tokens_are_reserved_and_then_settled(tmp_path: Path):
    with fleet(tmp_path, SLUICE_LIMITS='{"key": {"tokens": 1000, "window_s": 3600}}') as found:
        first = found.post(CHAT, body_of(CHAT, "demo-n30", max_tokens=900))
        assert first.status_code == 200
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100
        used = first.json()["usage"]["total_tokens"]

        def remaining() -> int:
            return int(found.post(CHAT, body_of(CHAT, "demo-n1", max_tokens=1)).headers["x-ratelimit-remaining-tokens"])

        until(lambda: 1000 - used - 100 < remaining() < 1000 - used, "only what was used counts")


def test_end_users_and_tenants_have_limits_of_their_own(tmp_path: Path):
    limits = '{"end_user": {"requests": 1, "window_s": 3600}}'
    with fleet(tmp_path, SLUICE_LIMITS=limits) as found:
        by_user = {user: body_of(CHAT, "demo-n1", user=user) for user in ("ann", "bob")}

        assert [found.post(CHAT, by_user[user]).status_code for user in ("ann", "bob", "ann")] == [200, 200, 429]
        metadata = body_of(MESSAGES, "demo-n1", metadata={"user_id": "bob"})
        assert found.post(MESSAGES, metadata).status_code == 429, "whatever the dialect calls it"
        assert found.post(CHAT, body_of(CHAT, "demo-n1")).status_code == 200, "who is not named is not counted"


def test_an_open_gateway_bounds_each_address(tmp_path: Path):
    with fleet(tmp_path, SLUICE_AUTH="none") as found:
        answer = found.post(CHAT, body_of(CHAT, "demo-n1"), key="")

        assert answer.headers["x-ratelimit-limit-requests"] == "300"


def test_a_spent_budget_refuses_and_is_told(tmp_path: Path):
    prices = '{"demo/demo-n5": {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 1000}}'
    providers = '{"demo": {"budget": {"day_usd": 0.001}}}'
    with fleet(tmp_path, SLUICE_PRICES=prices, SLUICE_PROVIDERS=providers) as found:
        until(lambda: found.post(CHAT, body_of(CHAT, "demo/demo-n5")).status_code == 200, "a worker knows what was spent")
        until(lambda: found.workers[0].events("budget_mark_passed"), "the worker has settled it")

        for dialect in (CHAT, MESSAGES):
            refused = found.post(dialect, body_of(dialect, "demo/demo-n5"))
            assert refused.status_code == 402
            assert "budget for demo is spent" in refused.json()["error"]["message"]
        marks = found.metrics(found.worker_ports[0])
        assert marks['sluice_budget_marks_total{percent="100",scope="provider"}'] == 1
        assert marks['sluice_budget_marks_total{percent="80",scope="provider"}'] == 1
        assert found.post(CHAT, body_of(CHAT, "openai/demo-n5")).status_code == 200, "others go on"
