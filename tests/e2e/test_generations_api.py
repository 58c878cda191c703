"""Can a generation be started for later, listed and stopped, and read by a browser without a key?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from demo_provider.script import answer
from tests.support.clients.generations_client import (
    AGENTARY,
    ALL,
    JSON,
    RESPONSES,
    UNIFIED,
    body,
    read_record,
    start_generation,
    stop,
    url,
    wait_until_ended,
)
from tests.support.fleet import CHAT, MESSAGES, OTHER_KEY, Fleet, body_of, fleet, headers_of, sse_events, until


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_HEARTBEAT_S": "0.2",
        "SLUICE_RETENTION_STOP_S": "60",
    }
    with fleet(tmp_path_factory.mktemp("replicas"), apis=2, **settings) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(replicas: Fleet) -> Iterator[None]:
    replicas.reset_demo()
    yield
    until(lambda: replicas.stats()["open"] == 0, "all upstreams are closed")


# Starting


@pytest.mark.parametrize("dialect", ALL)
def test_a_generation_of_any_dialect_runs_by_itself_and_is_read_with_its_token(replicas: Fleet, dialect: str):
    response = start_generation(replicas, dialect, "n20-d5")

    assert response.status_code == 202, response.text
    said = response.json()
    generation_id = said["id"]
    assert response.headers["location"] == said["url"] == f"/v1/generations/{generation_id}"
    assert response.headers["x-generation-id"] == generation_id
    assert (said["object"], said["dialect"], said["model"]) == ("generation", dialect, body(dialect, "n20-d5")["model"])
    assert said["status"] in ("queued", "running")
    assert said["events_url"] == f"{said['url']}?token={said['read_token']}"
    # Without a key, on the other replica, to the end
    stream = replicas.client.get(url(replicas, said["events_url"], 1), headers={"accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = sse_events(stream.text)
    assert len({event.id for event in events}) == len(events)
    over = replicas.client.get(url(replicas, said["events_url"]), headers={"last-event-id": events[-1].id})
    assert over.status_code == 204
    whole = wait_until_ended(replicas, generation_id, include="text")
    assert (whole["status"], whole["text"]) == ("completed", answer(20))
    assert replicas.stats()["requests"] == 1


@pytest.mark.parametrize("dialect", ALL)
def test_it_runs_to_its_end_though_nobody_reads_it(replicas: Fleet, dialect: str):
    generation_id = start_generation(replicas, dialect, "n30-d5").json()["id"]

    assert wait_until_ended(replicas, generation_id)["status"] == "completed"
    assert (replicas.stats()["completed"], replicas.stats()["aborted"]) == (1, 0)


def test_with_grace_somebody_must_come_in_time(replicas: Fleet):
    generation_id = start_generation(replicas, CHAT, "n100000-d10", x_disconnect="grace=0").json()["id"]

    assert wait_until_ended(replicas, generation_id)["status"] == "cancelled"
    until(lambda: replicas.stats()["open"] == 0, "the upstream is closed, if it was ever called")


def test_a_policy_that_would_end_it_at_once_is_refused(replicas: Fleet):
    response = start_generation(replicas, CHAT, "n3", x_disconnect="stop")

    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-disconnect")
    assert replicas.stats()["requests"] == 0


@pytest.mark.parametrize("dialect", ALL)
def test_a_fault_is_told_in_the_dialect_s_own_shape(replicas: Fleet, dialect: str):
    answered = replicas.client.post(url(replicas), params={"dialect": dialect}, json={"messages": 3}, headers=headers_of())
    nobody = replicas.client.post(url(replicas), params={"dialect": dialect}, json={}, headers=headers_of(key=""))

    assert (answered.status_code, nobody.status_code) == (400, 401)
    shape = {
        CHAT: {"error": {"message", "type", "param", "code"}},
        RESPONSES: {"error": {"message", "type", "param", "code"}},
        MESSAGES: {"error": {"type", "message"}, "type": None, "request_id": None},
        AGENTARY: {"error": None, "type": None, "message": None, "code": None, "param": None},
        UNIFIED: {"error": None, "details": None, "expectedSchema": None},
    }[dialect]
    said = answered.json()
    assert said.keys() == shape.keys()
    assert all(inner is None or inner <= said[name].keys() for name, inner in shape.items())


def test_an_unknown_dialect_is_named(replicas: Fleet):
    response = replicas.client.post(url(replicas), params={"dialect": "x"}, json={}, headers=headers_of())

    assert (response.status_code, response.json()["error"]["param"]) == (400, "dialect")
    assert all(name in response.json()["error"]["message"] for name in ALL)


def test_a_stored_response_can_be_started_for_later_and_gone_on_with(replicas: Fleet):
    generation_id = start_generation(replicas, RESPONSES, "n5-d0").json()["id"]
    wait_until_ended(replicas, generation_id)
    response_id = generation_id.replace("gen_", "resp_")

    stored = replicas.client.get(url(replicas, f"/v1/responses/{response_id}"), headers=headers_of())
    more = {**body(RESPONSES, "n6-d0"), "previous_response_id": response_id}
    second = replicas.client.post(url(replicas), params={"dialect": RESPONSES}, json=more, headers=headers_of())

    assert stored.json()["status"] == "completed"
    assert wait_until_ended(replicas, second.json()["id"], include="text")["text"] == answer(6)
    assert answer(5) in str(replicas.upstream_requests()[-1]["body"]["messages"])


# The read token


def test_a_read_token_only_reads_and_only_its_own_generation(replicas: Fleet):
    first, second = (start_generation(replicas, CHAT, "n100000-d10").json() for _ in range(2))
    token = {"token": first["read_token"]}
    client = replicas.client

    record = client.get(url(replicas, first["id"]), params=token, headers=JSON)
    others = client.get(url(replicas, second["id"]), params=token, headers=JSON)
    stopping = client.delete(url(replicas, first["id"]), params=token)
    listing = client.get(url(replicas), params=token)
    with_a_key = client.get(url(replicas, first["id"]), params={"token": "x.y"}, headers=headers_of())

    assert (record.status_code, record.json()["id"]) == (200, first["id"])
    assert (others.status_code, others.json()["error"]["code"]) == (401, "invalid_read_token")
    assert [answered.status_code for answered in (stopping, listing, with_a_key)] == [401, 401, 401]
    assert all(stop(replicas, each["id"]).json()["stopped"] for each in (first, second))


def test_no_process_logs_a_read_token(replicas: Fleet):
    said = start_generation(replicas, CHAT, "n3-d0").json()
    replicas.client.get(url(replicas, said["events_url"]))

    until(
        lambda: any(line.get("route") == "/v1/generations/{generation_id}" for line in replicas.apis[0].lines()), "it is logged"
    )
    for process in [*replicas.apis, *replicas.workers]:
        assert said["read_token"] not in process.log.read_text()


def test_without_a_secret_the_setting_is_named(tmp_path):
    with fleet(tmp_path, SLUICE_SECRET="") as found:
        for dialect in ALL:
            response = start_generation(found, dialect, "n3")
            assert response.status_code == 400
            assert "SLUICE_SECRET" in response.text
        assert found.stats()["requests"] == 0
        # Nothing else needs it.
        assert found.post(CHAT, body_of(CHAT, "demo-n1-d0")).status_code == 200


# The list


def listed(found: Fleet, key: str, replica: int = 0, **params: Any) -> httpx.Response:
    return found.client.get(url(found, replica=replica), params=params, headers=headers_of(key=key))


def test_ones_own_generations_are_listed_newest_first_and_paged(tmp_path):
    with fleet(
        tmp_path, apis=2, SLUICE_SECRET="a secret of these tests, 32 bytes or more", SLUICE_RETENTION_STOP_S="0.2"
    ) as found:
        assert listed(found, OTHER_KEY).json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        ids = [start_generation(found, dialect, "n3-d0", key=OTHER_KEY).json()["id"] for dialect in ALL]
        gone = found.post(CHAT, body_of(CHAT, "demo-n1-d0"), key=OTHER_KEY).headers["x-generation-id"]
        mine = start_generation(found, CHAT, "n3-d0").json()["id"]
        until(lambda: not found.redis.exists(f"{{{gone}}}:state"), "one has expired")

        whole, first = listed(found, OTHER_KEY, 1).json(), listed(found, OTHER_KEY, limit=2).json()
        second = listed(found, OTHER_KEY, limit=3, after=first["last_id"]).json()

        assert [each["id"] for each in whole["data"]] == ids[::-1]
        assert [each["dialect"] for each in whole["data"]] == list(ALL[::-1])
        assert whole["data"][0].keys() == {"id", "object", "status", "dialect", "model", "created_at", "url"}
        assert [each["id"] for each in first["data"] + second["data"]] == ids[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert [each["id"] for each in listed(found, "sk-test").json()["data"]] == [mine]
        # Past one that has expired, and past none of one's own
        assert [each["id"] for each in listed(found, OTHER_KEY, after=gone).json()["data"]] == ids[::-1]
        for wrong in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "x"}, {"after": mine}):
            refused = listed(found, OTHER_KEY, **wrong)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(wrong)))


# Stopping


@pytest.mark.parametrize("dialect", ALL)
def test_stopping_is_heard_in_every_dialect_as_its_own_error(replicas: Fleet, dialect: str):
    said = start_generation(replicas, dialect, "n100000-d10").json()
    until(lambda: read_record(replicas, said["id"])["status"] == "running", "it runs")
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(httpx.get, url(replicas, said["events_url"], 1), timeout=120)
        until(lambda: replicas.metrics(replicas.ports[1])["sluice_open_viewers"] == 1, "it is read")

        assert stop(replicas, said["id"]).json() == {
            "id": said["id"],
            "object": "generation",
            "status": "cancelling",
            "stopped": True,
        }

        last = reading.result().text.rstrip("\n").rpartition("\n\n")[2]
    assert '"code":"cancelled"' in last
    assert last.startswith("id: ")
    mark = {
        CHAT: 'data: {"error"',
        MESSAGES: "event: error",
        RESPONSES: "event: response.failed",
        AGENTARY: "error: {",
        UNIFIED: "event: error",
    }
    assert f"\n{mark[dialect]}" in last
    assert stop(replicas, said["id"]).json()["status"] == "cancelled"
    assert read_record(replicas, said["id"])["status"] == "cancelled"
