"""Do real workers together keep to what vendors allow, by their word and by the settings?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from common.canonical.money import NANO_USD
from common.limits.charges import periods
from common.redis import keyspace
from demo_provider.script import answer
from tests.support.fleet import CHAT, MESSAGES, Fleet, body_of, fleet, until
from tests.support.upstreams.recording_upstream import RecordingUpstream

PAUSED = 'sluice_upstream_paused{provider="openai"}'
ANSWERED = 'sluice_upstream_calls_total{provider="openai",status="200"}'


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as found:
        yield found


def keys_called(upstream: RecordingUpstream) -> list[str]:
    return [request.headers["authorization"].removeprefix("Bearer ") for request in upstream.requests]


def providers(**chosen: object) -> str:
    return orjson.dumps(chosen).decode()


def ask_at_once(found: Fleet, count: int, model: str) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: found.post(CHAT, body_of(CHAT, model)), range(count)))


def record(found: Fleet, response: httpx.Response) -> dict:
    return orjson.loads(found.redis.xrevrange(keyspace.log(response.headers["x-generation-id"]), count=1)[0][1][b"d"])


def test_a_429_on_one_key_moves_the_traffic_of_both_workers_to_the_other(tmp_path: Path, upstream: RecordingUpstream):
    settings = {"OPENAI_BASE_URL": f"{upstream.url}/v1", "OPENAI_API_KEY": "key-a,key-b"}
    with fleet(tmp_path, workers=2, **settings) as found:
        upstream.rate_limited["key-a"] = "25"
        first = found.post(CHAT, body_of(CHAT, "openai/m"))
        upstream.rate_limited.clear()  # It would answer again, but has asked to be left alone for longer.

        assert (first.status_code, keys_called(upstream)) == (200, ["key-a", "key-b"])
        for port in found.worker_ports:
            until(lambda port=port: found.metrics(port).get(PAUSED) == 1, "the worker knows")

        def both_have_worked() -> bool:
            assert found.post(CHAT, body_of(CHAT, "openai/m")).status_code == 200
            return all(found.metrics(port).get(ANSWERED, 0) >= 2 for port in found.worker_ports)

        until(both_have_worked, "both workers have answered")
        assert set(keys_called(upstream)[1:]) == {"key-b"}
        # What one model has used up says nothing of another.
        found.post(CHAT, body_of(CHAT, "openai/another"))
        assert keys_called(upstream)[-1] == "key-a"


def test_where_every_key_is_to_be_left_alone_the_client_is_told_until_when(tmp_path: Path, upstream: RecordingUpstream):
    settings = {"OPENAI_BASE_URL": f"{upstream.url}/v1", "OPENAI_API_KEY": "key-a,key-b", "SLUICE_RETRY_AFTER_MAX_S": "3"}
    with fleet(tmp_path, **settings) as found:
        upstream.rate_limited.update({"key-a": "1", "key-b": "2"})
        refused = found.post(CHAT, body_of(CHAT, "openai/m"))
        calls = keys_called(upstream)

    assert refused.status_code == 429
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) in {
        ("rate_limit_exceeded", "1"),
        ("rate_limit_exceeded", "2"),
    }
    assert calls[:2] == ["key-a", "key-b"]
    assert (calls.count("key-a"), calls.count("key-b")) == (3, 3)


@pytest.mark.parametrize("upstream_keys", [1, 2])
def test_a_quota_of_requests_lets_that_many_through_for_each_key(tmp_path: Path, upstream_keys: int):
    settings = {
        "OPENAI_API_KEY": ",".join(f"key-{n}" for n in range(upstream_keys)),
        "SLUICE_PROVIDERS": providers(openai={"limits": {"requests": 3}}),
        "SLUICE_RETRY_AFTER_MAX_S": "2",
    }
    with fleet(tmp_path, workers=2, **settings) as found:
        answers = ask_at_once(found, 12, "openai/demo-n3-d0")
        calls = found.stats()["requests"]
        refusals = [response for response in answers if response.status_code == 429]
        ends = [record(found, response) for response in refusals]
        counted = sum(
            found.metrics(port).get(f'{REFUSALS}{{limit="requests",provider="openai"}}', 0) for port in found.worker_ports
        )

    admitted = 3 * upstream_keys
    assert [response.status_code for response in answers].count(200) == calls == admitted
    assert {response.json()["error"]["code"] for response in refusals} == {"upstream_quota"}
    assert all("quota of requests at the provider openai for now. Try again in" in response.text for response in refusals)
    assert {response.headers["retry-after"] for response in refusals} == {"2"}  # A minute, but no more than is relayed.
    assert {end["tries"] for end in ends} == {0}  # Nobody was called.
    assert counted >= len(refusals)


REFUSALS = "sluice_upstream_quota_refusals_total"


def test_tokens_that_an_answer_did_not_use_are_there_for_the_next(tmp_path: Path):
    settings = {"SLUICE_PROVIDERS": providers(openai={"limits": {"tokens": 1500}})}
    with fleet(tmp_path, workers=2, **settings) as found:
        used = 0
        for _ in range(6):
            answer = found.post(CHAT, body_of(CHAT, "openai/demo-n3-d0", max_tokens=1000))
            assert answer.status_code == 200, answer.text
            used += answer.json()["usage"]["total_tokens"]
            (window,) = found.redis.keys("sluice:q:limit:upstream:*:tokens")
            until(lambda window=window, used=used: sum(map(int, found.redis.hvals(window))) == used, "it is settled")
        too_long = found.post(CHAT, body_of(CHAT, "openai/demo-n3-d0", max_tokens=100_000))

    assert too_long.status_code == 429  # It takes the whole limit, of which a part is used.


def test_a_request_waits_for_a_place_among_the_concurrent_calls(tmp_path: Path):
    settings = {"SLUICE_PROVIDERS": providers(openai={"limits": {"concurrent": 2}})}
    with fleet(tmp_path, workers=2, **settings) as found:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(found.post, CHAT, body_of(CHAT, "openai/demo-n10-d20")) for _ in range(8)]
            most = 0
            while not all(each.done() for each in asked):
                most = max(most, found.stats()["open"])
        answers = [each.result() for each in asked]
        ends = [record(found, response) for response in answers]

    assert [response.json()["choices"][0]["message"]["content"] for response in answers] == [answer(10)] * 8
    assert most == 2
    assert {end["tries"] for end in ends} == {1}  # Waiting for a place is no try.


def test_a_killed_workers_place_is_free_for_who_goes_on_with_its_answer(tmp_path: Path):
    settings = {
        "SLUICE_PROVIDERS": providers(openai={"limits": {"concurrent": 1}, "continuation": "instruction"}),
        "SLUICE_LEASE_S": "2",
        "SLUICE_RENEW_S": "0.5",
    }
    with fleet(tmp_path, **settings) as found, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(found.post, CHAT, body_of(CHAT, "openai/demo-n60-d30", stream=True))
        until(lambda: found.redis.zcard(_places(found)) == 1 and found.stats()["open"], "the call runs")
        found.workers[0].kill()
        found.start_worker()

        assert asked.result().text.endswith("data: [DONE]\n\n")
        until(lambda: not found.redis.keys("sluice:q:slots:upstream:*"), "no place is held")


def _places(found: Fleet) -> str:
    return next((name.decode() for name in found.redis.keys("sluice:q:slots:upstream:*")), "none")


def test_a_provider_whose_budget_is_spent_is_passed_over(tmp_path: Path):
    settings = {
        "SLUICE_PROVIDERS": providers(openai={"budget": {"day_usd": 1}}),
        "SLUICE_ALIASES": providers(both=["openai/demo-n3-d0", "anthropic/demo-n3-d0"]),
    }
    with fleet(tmp_path, **settings) as found:
        counter = keyspace.spent("provider", "openai", periods()[0])

        def goes_elsewhere() -> bool:
            before = found.stats()["by_wire"].get("messages", 0)
            assert found.post(CHAT, body_of(CHAT, "both")).status_code == 200
            return found.stats()["by_wire"].get("messages", 0) > before

        until(lambda: not goes_elsewhere(), "a worker has read that nothing was spent")
        found.redis.set(counter, NANO_USD, ex=60)
        until(goes_elsewhere, "the other provider answers")
        refused = found.post(MESSAGES, body_of(MESSAGES, "openai/demo-n3-d0"))

    assert refused.status_code == 402
    assert "budget for openai is spent" in refused.json()["error"]["message"]
