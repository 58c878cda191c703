"""What clients see when a process dies, freezes or is told to stop, or when Redis does: real signals to real processes."""

import signal
import threading
from pathlib import Path

import httpx
import pytest

from common.redis import keyspace
from demo_provider.script import answer
from tests.support.clients.streams import ChatStream
from tests.support.fleet import KEY, QUICK_LEASE, Fleet, fleet, until


def busy_worker(found: Fleet) -> int:
    """The index of the worker that runs the one generation there is."""

    def running() -> int | None:
        for index, port in enumerate(found.worker_ports):
            if found.workers[index].is_alive and found.metrics(port)["sluice_running_generations"] == 1:
                return index + 1
        return None

    return until(running, "a worker runs the job") - 1


def test_a_worker_killed_before_the_first_token_is_not_noticed(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK_LEASE) as found:
        until(lambda: all(w.events("starting") for w in found.workers), "both workers are up")
        client = ChatStream(found, "demo-n20-d1-f3000")
        index = busy_worker(found)
        until(lambda: found.stats()["open"] == 1, "the upstream is called")

        found.workers[index].kill()

        client.finished()
        assert client.text == answer(20)
        assert client.events[-1] == "[DONE]"
        assert found.takeovers() == 1


def test_a_worker_killed_after_the_first_token_ends_the_stream_with_the_error_event_where_it_cannot_go_on(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK_LEASE) as found:
        client = ChatStream(found, "openai/demo-n1000-d20")  # OpenAI takes no prefill.
        until(lambda: len(client.text) > 20, "tokens flow")

        found.workers[busy_worker(found)].kill()

        client.finished()
        assert client.error and client.error["code"] == "worker_lost"
        assert "[DONE]" not in client.events
        assert answer(1000).startswith(client.text)


def test_a_frozen_worker_is_fenced_and_its_upstream_closed_when_it_wakes(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK_LEASE) as found:
        client = ChatStream(found, "demo-n400-d20")
        until(lambda: len(client.text) > 20, "tokens flow")
        zombie = found.workers[busy_worker(found)]

        zombie.send(signal.SIGSTOP)
        client.finished()
        generation = client.headers["x-generation-id"]
        length = found.redis.xlen(keyspace.log(generation))
        zombie.send(signal.SIGCONT)

        until(lambda: found.stats()["open"] == 0, "the zombie's upstream is closed")
        assert found.redis.xlen(keyspace.log(generation)) == length
        assert client.text == answer(400)
        assert client.events[-1] == "[DONE]"
        assert zombie.is_alive


@pytest.mark.parametrize("how", ["frozen", "restarted"])
def test_an_outage_longer_than_the_lease_costs_no_token_and_no_takeover(tmp_path: Path, how: str):
    with fleet(tmp_path, workers=2, **QUICK_LEASE) as found:
        client = ChatStream(found, "demo-n400-d20")
        until(lambda: len(client.text) > 20, "tokens flow")
        server = found.redis_server

        if how == "frozen":
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.stop()
        refused = until(lambda: refusal(found), "the breaker is open")
        threading.Event().wait(3)  # The outage itself: longer than the lease.
        if how == "frozen":
            server.process.send_signal(signal.SIGCONT)
        else:
            server.start()

        client.finished()
        assert client.text == answer(400)
        assert client.events[-1] == "[DONE]"
        assert found.takeovers() == 0
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        found.ready()
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
        for process in [*found.apis, *found.workers]:
            assert len(process.events("redis_away")) == 1, "logged once per change of state"


def refusal(found: Fleet) -> httpx.Response | None:
    body = {"model": "demo-n1", "messages": [{"role": "user", "content": "hi"}]}
    response = httpx.post(f"{found.url}/v1/chat/completions", json=body, headers={"x-api-key": KEY}, timeout=10)
    return response if response.status_code == 503 else None


def test_a_stopping_worker_finishes_what_runs_and_takes_no_more(tmp_path: Path):
    with fleet(tmp_path, workers=1, SLUICE_WORKER_DRAIN_S="3600") as found:
        client = ChatStream(found, "demo-n100-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        found.workers[0].send(signal.SIGTERM)
        late = ChatStream(found, "demo-n5-d1")

        client.finished()
        assert client.text == answer(100)
        assert found.workers[0].wait(120) == 0
        found.start_worker()
        assert late.finished().text == answer(5)


def test_a_worker_whose_grace_is_over_hands_its_jobs_over_at_once(tmp_path: Path):
    # With the default lease of 6 s: only a handover lets the other worker begin before that.
    with fleet(tmp_path, workers=2, SLUICE_WORKER_DRAIN_S="1") as found:
        client = ChatStream(found, "demo-n20-d1-f5000")
        index = busy_worker(found)
        until(lambda: found.stats()["open"] == 1, "the upstream is called")

        found.workers[index].send(signal.SIGTERM)

        client.finished()
        assert client.text == answer(20)
        assert found.workers[index].wait(120) == 0
        assert found.takeovers() == 0
        assert found.stats()["aborted"] == 1


def test_a_stopping_api_lets_its_streams_run_on(tmp_path: Path):
    with fleet(tmp_path, workers=1, SLUICE_API_DRAIN_S="3600") as found:
        client = ChatStream(found, "demo-n150-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        found.apis[0].send(signal.SIGTERM)

        client.finished()
        assert client.text == answer(150)
        assert client.events[-1] == "[DONE]"
        assert found.apis[0].wait(120) == 0


def test_a_stopping_api_is_unready_first_and_still_answers(tmp_path: Path):
    with fleet(tmp_path, SLUICE_API_UNREADY_S="10") as found:
        found.apis[0].send(signal.SIGTERM)

        until(lambda: found.client.get(f"{found.url}/readyz").status_code == 503, "it is unready")
        assert found.client.get(f"{found.url}/readyz").json()["status"] == "draining"
        assert ChatStream(found, "demo-n5-d1").finished().text == answer(5)
        assert found.apis[0].wait(120) == 0


def test_a_stopping_api_whose_grace_is_over_ends_its_streams_with_an_error_event(tmp_path: Path):
    with fleet(tmp_path, workers=1, SLUICE_API_DRAIN_S="2") as found:
        client = ChatStream(found, "demo-n2000-d20")
        until(lambda: len(client.text) > 20, "tokens flow")

        found.apis[0].send(signal.SIGTERM)

        client.finished()
        assert client.error and client.error["code"] == "gateway_restarting"
        assert found.apis[0].wait(120) == 0
        until(lambda: found.stats()["open"] == 0, "the upstream is closed")


def test_without_a_worker_a_request_ends_at_its_queue_deadline(tmp_path: Path):
    with fleet(tmp_path, workers=0, SLUICE_QUEUE_WAIT_S="1") as found:
        body = {"model": "demo-n1", "messages": [{"role": "user", "content": "hi"}]}

        response = httpx.post(f"{found.url}/v1/chat/completions", json=body, headers={"x-api-key": KEY}, timeout=120)

        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        until(lambda: found.redis.zcard(keyspace.ENQUEUED) == 0, "its job is withdrawn")


def test_a_killed_api_leaves_a_detached_generation_to_its_end_and_another_replica_serves_it(tmp_path: Path):
    with fleet(tmp_path, apis=2, workers=1) as found:
        headers = {"x-api-key": KEY, "x-disconnect": "detach"}
        body = {"model": "demo-n100-d20", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        with httpx.stream("POST", f"{found.url}/v1/chat/completions", json=body, headers=headers) as response:
            generation = response.headers["x-generation-id"]
            lines = response.iter_lines()
            last_id = next(line.removeprefix("id: ") for line in lines if line.startswith("id: "))
            found.apis[0].kill()

        url = f"http://127.0.0.1:{found.ports[1]}/v1/generations/{generation}"
        rest = httpx.get(url, headers={"x-api-key": KEY, "last-event-id": last_id}, timeout=120)

        assert rest.status_code == 200
        assert rest.text.endswith("data: [DONE]\n\n")
