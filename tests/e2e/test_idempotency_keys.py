"""Does a client that sends a request again get the same generation, and never a second one that is paid for?"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest

from demo_provider.script import answer
from tests.support.fleet import CHAT, KEY, MESSAGES, OTHER_KEY, Fleet, RawClient, body_of, fleet, headers_of, sse_events, until
from tests.support.servers.cutting_proxy import cutting_proxy

PATHS = {
    CHAT: "/v1/chat/completions",
    MESSAGES: "/v1/messages",
    "openai-responses": "/v1/responses",
    "agentary": "/api/openai",
    "unified": "/v1/chat",
}
USER: Any = [{"role": "user", "content": "hi"}]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_HEARTBEAT_S": "0.2",
        "SLUICE_RETENTION_STOP_S": "0.2",
    }
    with fleet(tmp_path_factory.mktemp("replicas"), apis=2, **settings) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(replicas: Fleet) -> Iterator[None]:
    replicas.reset_demo()
    yield
    for job in replicas.redis.keys("sluice:q:job:*"):
        generation_id = job.decode().rpartition(":")[2]
        replicas.client.delete(f"{replicas.url}/v1/generations/{generation_id}", headers=headers_of())
    until(lambda: replicas.stats()["open"] == 0, "all upstreams are closed")


@pytest.fixture
def key() -> str:
    return f"key {next(_numbers)}"


@pytest.fixture(params=PATHS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


def body(dialect: str, spec: str, *, stream: bool) -> dict[str, Any]:
    match dialect:
        case "openai-responses":
            return {"model": f"openai/demo-{spec}", "input": "hi", "stream": stream}
        case "agentary":
            return body_of(CHAT, f"demo-{spec}", stream=stream)
        case "unified":
            return {**body_of(CHAT, f"demo-{spec}", stream=stream), "provider": "openai"}
        case _:
            return body_of(dialect, f"openai/demo-{spec}", stream=stream)


def ask(
    found: Fleet, dialect: str, spec: str, key: str, *, stream: bool = True, replica: int = 0, **headers: str
) -> httpx.Response:
    url = f"http://127.0.0.1:{found.ports[replica]}{PATHS[dialect]}"
    named = headers_of(idempotency_key=key, **headers)
    return httpx.post(url, json=body(dialect, spec, stream=stream), headers=named, timeout=120)


def id_of(response: httpx.Response) -> str:
    return response.headers["x-generation-id"]


def without_retry(response: httpx.Response) -> bytes:
    """Return what came but for when to come back, which each reader is told for itself."""
    return re.sub(rb"(?m)^retry: [0-9]+\n", b"", response.content)


@contextlib.contextmanager
def left(found: Fleet, spec: str, key: str, **headers: str) -> Iterator[str]:
    """A client that leaves once a piece of its answer has come; yields the generation's id after that."""
    with RawClient(found.ports[0]) as client:
        client.post(CHAT, body(CHAT, spec, stream=True), idempotency_key=key, **headers)
        received = client.read_until(b"data: ", times=3)
    yield received.partition(b"x-generation-id: ")[2].partition(b"\r\n")[0].decode()


# The same generation


@pytest.mark.parametrize("stream", [True, False])
def test_a_retry_gets_the_same_answer_from_its_start(replicas: Fleet, dialect: str, key: str, stream: bool):
    first = ask(replicas, dialect, "n12-d1", key, stream=stream)
    again = ask(replicas, dialect, "n12-d1", key, stream=stream, replica=1)

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.headers["content-type"] == again.headers["content-type"]
    assert without_retry(first) == without_retry(again)
    assert id_of(first) == id_of(again)
    assert replicas.stats()["requests"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_come_at_once_are_one_generation(replicas: Fleet, dialect: str, key: str, stream: bool):
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(ask, replicas, dialect, "n30-d5", key, stream=stream, replica=number % 2) for number in range(8)
        ]
        answers = [each.result() for each in asked]

    assert {each.status_code for each in answers} == {200}
    assert len({without_retry(each) for each in answers}) == 1
    assert len({id_of(each) for each in answers}) == 1
    assert replicas.stats()["requests"] == 1
    until(lambda: not replicas.redis.keys("sluice:q:job:*"), "no job is left")


def test_who_left_in_mid_answer_is_given_time_and_gets_all_of_it(replicas: Fleet, key: str):
    with left(replicas, "n60-d10", key) as generation_id:
        assert replicas.stats()["aborted"] == 0

        again = ask(replicas, CHAT, "n60-d10", key, replica=1)

    events = sse_events(again.text)
    assert id_of(again) == generation_id
    assert "".join(c["delta"].get("content") or "" for e in events[:-1] for c in e.fields["choices"]) == answer(60)
    assert len({event.id for event in events}) == len(events)  # It may come back with these, too.
    assert replicas.stats()["requests"] == 1


def test_a_whole_answer_that_nobody_waited_for_is_there_for_the_retry(replicas: Fleet, key: str):
    with RawClient(replicas.ports[0]) as client:
        client.post(MESSAGES, body(MESSAGES, "n40-d10", stream=False), idempotency_key=key)
        until(lambda: replicas.stats()["open"] == 1, "it runs")

    again = ask(replicas, MESSAGES, "n40-d10", key, stream=False)

    assert again.json()["content"][0]["text"] == answer(40)
    assert (replicas.stats()["requests"], replicas.stats()["aborted"]) == (1, 0)


def test_the_log_is_kept_for_as_long_as_the_key_counts(replicas: Fleet, key: str):
    first = ask(replicas, CHAT, "n3-d0", key, x_disconnect="stop")

    state = f"{{{id_of(first)}}}:state"
    once = next(iter(replicas.redis.keys("sluice:q:once:*")))
    assert replicas.redis.ttl(state) > 3500
    assert 3500 < replicas.redis.ttl(once) <= 3600
    assert replicas.redis.ttl(state) >= replicas.redis.ttl(once)


def test_a_failure_after_the_first_token_is_told_again_and_not_paid_for_again(replicas: Fleet, key: str):
    first = ask(replicas, CHAT, "cut5-d1", key)
    again = ask(replicas, CHAT, "cut5-d1", key)

    assert '"error"' in first.text
    assert without_retry(again) == without_retry(first)
    assert replicas.stats()["requests"] == 1


# Another one


def test_a_key_with_another_request_is_refused(replicas: Fleet, dialect: str, key: str):
    ask(replicas, dialect, "n3-d0", key)

    for other in ({"spec": "n4-d0"}, {"spec": "n3-d0", "stream": False}):
        response = ask(replicas, dialect, key=key, **other)
        assert response.status_code == 422
        assert "idempotency-key" in response.text
    assert replicas.stats()["requests"] == 1


def test_keys_are_of_a_principal_and_a_dialect(replicas: Fleet, key: str):
    first = ask(replicas, CHAT, "n3-d0", key)

    theirs = headers_of(OTHER_KEY, idempotency_key=key)
    stranger = httpx.post(f"{replicas.url}{PATHS[CHAT]}", json=body(CHAT, "n3-d0", stream=True), headers=theirs)

    assert stranger.status_code == 200
    assert id_of(stranger) != id_of(first)
    assert ask(replicas, MESSAGES, "n3-d0", key).status_code == 422


@pytest.mark.parametrize("sent", ["", "x" * 256, "tab\there"])
def test_a_key_that_cannot_be_is_refused(replicas: Fleet, dialect: str, sent: str):
    response = ask(replicas, dialect, "n3", sent)

    assert response.status_code == 400
    assert "idempotency-key" in response.text
    assert replicas.stats()["requests"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_token_frees_the_key(replicas: Fleet, dialect: str, key: str, stream: bool):
    first, again, once_more = (ask(replicas, dialect, "n3-d0-e400x1", key, stream=stream) for _ in range(3))

    assert (first.status_code, again.status_code) == (400, 200)
    assert id_of(first) != id_of(again)
    assert without_retry(once_more) == without_retry(again)
    assert replicas.stats()["requests"] == 2


def test_an_ending_through_absence_frees_the_key_and_a_stop_does_not(replicas: Fleet, key: str):
    with left(replicas, "n100000-d10", key, x_disconnect="stop") as gone:
        until(lambda: replicas.stats()["aborted"] == 1, "it was stopped")
    until(lambda: replicas.redis.hget(f"{{{gone}}}:state", "ended") == b"1", "it has ended")

    with left(replicas, "n100000-d10", key, x_disconnect="detach") as second:
        assert second != gone
        stopped = replicas.client.delete(f"{replicas.url}/v1/generations/{second}", headers=headers_of())
        assert stopped.json()["stopped"]
    again = ask(replicas, CHAT, "n100000-d10", key)

    assert id_of(again) == second
    assert sse_events(again.text)[-1].fields["error"]["code"] == "cancelled"
    assert replicas.stats()["requests"] == 2


# Elsewhere


def test_a_generation_for_later_is_started_once(replicas: Fleet, key: str):
    def post() -> dict[str, Any]:
        headers = headers_of(idempotency_key=key)
        return httpx.post(f"{replicas.url}/v1/generations", json=body_of(CHAT, "openai/demo-n5-d20"), headers=headers).json()

    first, second = post(), post()
    until(lambda: replicas.stats()["completed"] == 1, "it runs to its end, though nobody reads it")
    third = until(lambda: found if (found := post())["status"] == "completed" else None, "the log has its end")

    assert first["id"] == second["id"] == third["id"]
    assert first["read_token"] == third["read_token"]
    assert replicas.stats()["requests"] == 1


def test_a_background_response_is_created_once_and_stored_once(replicas: Fleet, key: str):
    def post() -> dict[str, Any]:
        asked = {**body("openai-responses", "n5-d20", stream=False), "background": True}
        return httpx.post(f"{replicas.url}/v1/responses", json=asked, headers=headers_of(idempotency_key=key)).json()

    first, second = post(), post()
    third = until(lambda: found if (found := post())["status"] == "completed" else None, "it has completed")

    assert first["id"] == second["id"] == third["id"]
    assert third["output"][0]["content"][0]["text"] == answer(5)
    assert replicas.stats()["requests"] == 1
    stored = [name.decode() for name in replicas.redis.keys("{gen_*}:asked")]
    assert [name for name in stored if first["id"].removeprefix("resp_") in name] != []
    ids = {name.decode().partition("}")[0] for name in replicas.redis.keys("{gen_*}:response")}
    assert all(replicas.redis.get(f"{id_}}}:response") for id_ in ids)  # None that will never be filled in.


# The vendors' own SDKs, which send a request again by themselves


@pytest.mark.parametrize("stream", [True, False])
def test_openai_s_sdk_retries_into_the_same_generation(replicas: Fleet, key: str, stream: bool):
    with cutting_proxy(replicas.ports[0]) as proxy, ThreadPoolExecutor() as threads:
        client = openai.OpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{proxy.port}/v1", max_retries=2)

        def create() -> str:
            made: Any = client.chat.completions.create(
                model="openai/demo-f300-n20-d1", messages=USER, stream=stream, extra_headers={"Idempotency-Key": key}
            )
            if not stream:
                return made.choices[0].message.content
            return "".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices)

        with client:
            asked = threads.submit(create)
            until(lambda: replicas.stats()["open"] == 1, "the provider is at work")
            proxy.target = replicas.ports[1]
            proxy.cut()

            assert asked.result() == answer(20)
        assert proxy.connections == 2
    assert replicas.stats()["requests"] == 1


def test_anthropic_s_sdk_retries_into_the_same_generation(replicas: Fleet, key: str):
    with cutting_proxy(replicas.ports[0]) as proxy, ThreadPoolExecutor() as threads:
        client = anthropic.Anthropic(api_key=KEY, base_url=f"http://127.0.0.1:{proxy.port}", max_retries=2)
        with client:
            asked = threads.submit(
                client.messages.create,
                model="anthropic/demo-f300-n20-d1",
                messages=USER,
                max_tokens=1000,
                extra_headers={"Idempotency-Key": key},
            )
            until(lambda: replicas.stats()["open"] == 1, "the provider is at work")
            proxy.target = replicas.ports[1]
            proxy.cut()

            assert asked.result().content[0].text == answer(20)
        assert proxy.connections == 2
    assert replicas.stats()["requests"] == 1
