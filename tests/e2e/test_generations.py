"""Can a client come back to its generation, from any event on, on any replica, and stop it?"""

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from demo_provider.script import answer
from tests.support.fleet import (
    CHAT,
    DIALECTS,
    MESSAGES,
    OTHER_KEY,
    Fleet,
    RawClient,
    SseEvent,
    body_of,
    fleet,
    headers_of,
    sse_events,
    until,
)

SLOTS = 4


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two APIs and a worker that asks often whether to stop. Logs of generations that nobody may come back to die at once."""
    settings = {
        "SLUICE_RETENTION_STOP_S": "0.3",
        "SLUICE_HEARTBEAT_S": "0.2",
        "SLUICE_LEASE_S": "2",
        "SLUICE_RENEW_S": "0.5",
        "SLUICE_WORKER_SLOTS": str(SLOTS),
    }
    with fleet(tmp_path_factory.mktemp("replicas"), apis=2, **settings) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(replicas: Fleet) -> Iterator[None]:
    replicas.reset_demo()
    yield
    for generation_id in _jobs(replicas):
        _delete(replicas, generation_id)
    until(lambda: replicas.stats()["open"] == 0, "all upstreams are closed")


@pytest.fixture(params=itertools.product(DIALECTS, ("openai", "anthropic")), ids="-on-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def _url(found: Fleet, generation_id: str, replica: int = 0) -> str:
    return f"http://127.0.0.1:{found.ports[replica]}/v1/generations/{generation_id}"


def _read(found: Fleet, generation_id: str, after: str = "", replica: int = 0, key: str | None = None) -> httpx.Response:
    headers = headers_of(**({"last_event_id": after} if after else {}), **({"key": key} if key is not None else {}))
    return httpx.get(_url(found, generation_id, replica), headers=headers, timeout=120)


def _delete(found: Fleet, generation_id: str, replica: int = 0, **headers: str) -> httpx.Response:
    return httpx.delete(_url(found, generation_id, replica), headers=headers_of(**headers), timeout=120)


def _jobs(found: Fleet) -> set[str]:
    """The generations that wait or run."""
    return {key.decode().rpartition(":")[2] for key in found.redis.keys("sluice:q:job:*")}


def _finished(found: Fleet, dialect: str, model: str, **more: Any) -> tuple[str, list[SseEvent]]:
    """Run a generation that its client may come back to; return its id and its events."""
    response = found.post(dialect, body_of(dialect, model, stream=True, **more), x_disconnect="detach")
    return response.headers["x-generation-id"], sse_events(response.text)


@contextlib.contextmanager
def _running(
    found: Fleet, dialect: str, model: str, *, policy: str = "detach", stream: bool = True
) -> Iterator[tuple[str, RawClient]]:
    """A generation whose first event has come, and its client."""
    with RawClient(found.ports[0]) as client:
        client.post(dialect, body_of(dialect, model, stream=stream), x_disconnect=policy)
        received = client.read_until(b"data: ")
        yield received.partition(b"x-generation-id: ")[2].partition(b"\r\n")[0].decode(), client


def _text(dialect: str, events: list[SseEvent]) -> str:
    fields = [event.fields for event in events if event.data != "[DONE]"]
    if dialect == MESSAGES:
        return "".join(event["delta"].get("text", "") for event in fields if event["type"] == "content_block_delta")
    return "".join(choice["delta"].get("content") or "" for event in fields for choice in event.get("choices", []))


# Coming back


def test_replay_then_live_gives_every_event_once(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    with ThreadPoolExecutor() as threads, _running(replicas, dialect, f"{provider}/demo-n60-d10") as (generation_id, client):
        # Given viewers on both replicas that come one after the other while it runs
        viewers = [threads.submit(_read, replicas, generation_id, replica=i % 2) for i in range(6)]
        client.read_until(b"\r\n0\r\n\r\n")

        # When all have read to the end
        read = [sse_events(viewer.result().text) for viewer in viewers]

    # Then each has the full list
    complete = sse_events(_read(replicas, generation_id).text)
    assert _text(dialect, complete) == answer(60)
    assert len({event.id for event in complete}) == len(complete)
    assert read == [complete] * 6
    assert replicas.stats()["requests"] == 1  # Reading never starts work.


@pytest.mark.parametrize("spec", ["n12-d0", "n12-d2"])  # Many events in a frame, and few.
def test_every_event_of_a_finished_log_is_a_place_to_resume_from(replicas: Fleet, pair: tuple[str, str], spec: str):
    dialect, provider = pair
    generation_id, events = _finished(replicas, dialect, f"{provider}/demo-{spec}")

    for i, event in enumerate(events[:-1]):
        response = _read(replicas, generation_id, after=event.id, replica=i % 2)
        assert response.status_code == 200
        assert sse_events(response.text) == events[i + 1 :]
    last = _read(replicas, generation_id, after=events[-1].id)

    assert (last.status_code, last.content) == (204, b"")  # A native EventSource would else come back for ever.
    assert sse_events(_read(replicas, generation_id).text) == events


def test_a_frame_of_many_events_is_resumed_from_within(replicas: Fleet):
    # The comment on the parametrised test above, made sure of.
    _, events = _finished(replicas, CHAT, "openai/demo-n12-d0")

    assert max(int(event.id.rpartition(".")[2]) for event in events) > 1


def test_a_failed_log_replays_to_its_error_and_then_is_over(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    generation_id, events = _finished(replicas, dialect, f"{provider}/demo-cut5-d1")

    assert _text(dialect, [event for event in events if "error" not in event.fields]) == answer(5)
    assert events[-1].fields["error"]["message"]
    assert sse_events(_read(replicas, generation_id, after=events[-2].id).text) == events[-1:]
    assert _read(replicas, generation_id, after=events[-1].id).status_code == 204


def test_what_failed_before_it_began_is_read_as_its_error_not_as_a_status_to_come_back_for(replicas: Fleet):
    body, headers = body_of(CHAT, "openai/demo-e400", stream=True), headers_of(x_disconnect="detach")
    failed = replicas.client.post(f"{replicas.url}/v1/chat/completions", json=body, headers=headers)
    assert failed.status_code == 400

    read = _read(replicas, failed.headers["x-generation-id"])

    assert (read.status_code, read.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    (event,) = sse_events(read.text)
    assert event.fields["error"]["message"] == failed.json()["error"]["message"]


def test_the_cursor_may_stand_in_the_query(replicas: Fleet):
    # EventSource cannot send headers at its first connection.
    generation_id, events = _finished(replicas, CHAT, "openai/demo-n12-d1")

    response = httpx.get(_url(replicas, generation_id), params={"after": events[3].id}, headers=headers_of())

    assert sse_events(response.text) == events[4:]


def test_a_resumed_stream_goes_on_live_on_another_replica(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    with _running(replicas, dialect, f"{provider}/demo-n60-d10") as (generation_id, client):
        seen = sse_events(client.read_until(b"data: ", times=8).partition(b"\r\n\r\n")[2].decode())[:-1]
    assert replicas.stats()["completed"] == 0

    rest = sse_events(_read(replicas, generation_id, after=seen[-1].id, replica=1).text)

    complete = sse_events(_read(replicas, generation_id).text)
    assert [event.id for event in rest] == [event.id for event in complete[-len(rest) :]]
    assert [event.id for event in complete[: -len(rest)]][-1] == seen[-1].id
    assert _text(dialect, complete) == answer(60)


def test_a_client_may_come_back_after_every_few_events(replicas: Fleet):
    with _running(replicas, CHAT, "openai/demo-n100-d5", policy="grace=5") as (generation_id, _):
        pass
    events: list[SseEvent] = []
    for turn in itertools.count():
        after = {"last_event_id": events[-1].id} if events else {}
        with httpx.stream("GET", _url(replicas, generation_id, turn % 2), headers=headers_of(**after)) as response:
            if response.status_code == 204:
                break
            text = ""
            for piece in response.iter_text():
                text += piece
                if text.count("\n\n") >= 7:
                    break
        events += sse_events(text.rpartition("\n\n")[0] + "\n\n")

    assert turn > 3
    assert len({event.id for event in events}) == len(events)
    assert _text(CHAT, events) == answer(100)
    assert events[-1].data == "[DONE]"


def test_a_resumed_stream_has_the_headers_of_one(replicas: Fleet):
    generation_id, events = _finished(replicas, MESSAGES, "anthropic/demo-n3-d0")

    response = _read(replicas, generation_id)

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-generation-id"] == generation_id
    assert 1000 <= int(response.text.split("\n")[1].removeprefix("retry: ")) <= 5000
    assert events


def test_a_whole_reply_can_be_fetched_again(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    first = replicas.post(dialect, body_of(dialect, f"{provider}/demo-n9-d0"), x_disconnect="detach")

    again = _read(replicas, first.headers["x-generation-id"], replica=1)

    assert (again.status_code, again.headers["content-type"]) == (200, "application/json")
    assert again.content == first.content


def test_a_whole_reply_that_still_runs_is_waited_for(replicas: Fleet):
    with ThreadPoolExecutor() as threads:
        body = body_of(CHAT, "anthropic/demo-n30-d10")
        first = threads.submit(replicas.post, CHAT, body, x_disconnect="detach")
        until(lambda: replicas.stats()["open"] == 1, "it runs")
        (generation_id,) = _jobs(replicas)

        again = _read(replicas, generation_id, replica=1)

        assert again.content == first.result().content


# What cannot be read


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "1", "1-2", "1-2.", "1.2", "-1-2.3", "1-2.3.4", "1-2.3 ", "1e3-1.1", "9" * 30 + "-1.1", "0x1-1.1", "*", "$"),
        *("0-0.0", "0-3.1", "01-2.1"),  # Epochs are counted from 1.
    ],
)
def test_a_malformed_cursor_is_refused(replicas: Fleet, cursor: str):
    generation_id, events = _finished(replicas, CHAT, "openai/demo-n3-d0")

    response = httpx.get(_url(replicas, generation_id), params={"after": cursor}, headers=headers_of())

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_cursor"
    assert "1-2.3" in response.json()["error"]["message"]
    assert events


def test_a_cursor_that_an_ended_log_does_not_have_is_refused(replicas: Fleet):
    generation_id, events = _finished(replicas, CHAT, "openai/demo-n3-d0")
    frame, _, k = events[-1].id.rpartition(".")
    epoch, _, n = frame.partition("-")

    for cursor in (f"{frame}.{int(k) + 1}", f"{epoch}-{int(n) + 9}.1", f"{int(epoch) + 1}-1.1", "999999999-1.1"):
        response = _read(replicas, generation_id, after=cursor)
        assert response.status_code == 400, cursor
        assert response.json()["error"]["code"] == "invalid_cursor"


def test_a_cursor_ahead_of_a_running_log_waits_and_then_fails(replicas: Fleet):
    # Redis may have lost what the client has: the worker would append it again, here there is nothing.
    with _running(replicas, CHAT, "openai/demo-stall3-d1") as (generation_id, _):
        response = _read(replicas, generation_id, after="1-999.1")

    # A true status, as it failed before the status was due; past that it is an error event.
    assert (response.status_code, response.json()["error"]["code"]) == (500, "frames_lost")


def test_a_strangers_generation_is_not_found(replicas: Fleet):
    generation_id, events = _finished(replicas, CHAT, "openai/demo-n3-d0")

    stranger = _read(replicas, generation_id, key=OTHER_KEY)
    resuming = _read(replicas, generation_id, after=events[0].id, key=OTHER_KEY)
    unknown = _read(replicas, "gen_" + "0" * 32)

    assert stranger.status_code == resuming.status_code == unknown.status_code == 404
    # A stranger cannot even tell that it exists.
    assert stranger.json()["error"]["code"] == unknown.json()["error"]["code"] == "generation_not_found"
    assert _delete(replicas, generation_id, key=OTHER_KEY).status_code == 404
    assert _read(replicas, generation_id, key="").status_code == 401
    assert _read(replicas, generation_id, key="sk-wrong").status_code == 401


@pytest.mark.parametrize("generation_id", ["gen_", "x", "gen_}:state", "%7B%7D", "gen_0*", "😀"])
def test_any_text_is_an_unknown_generation(replicas: Fleet, generation_id: str):
    assert _read(replicas, generation_id).status_code == 404
    assert _delete(replicas, generation_id).status_code == 404


def test_an_expired_generation_is_gone_for_its_owner_and_unknown_to_others(replicas: Fleet):
    response = replicas.post(CHAT, body_of(CHAT, "openai/demo-n3-d0", stream=True))
    generation_id = response.headers["x-generation-id"]

    gone = until(lambda: found if (found := _read(replicas, generation_id)).status_code != 200 else None, "its log expires")

    assert gone.status_code == 410
    assert gone.json()["error"]["code"] == "generation_expired"
    assert "new" in gone.json()["error"]["message"]
    assert _read(replicas, generation_id, key=OTHER_KEY).status_code == 404
    assert _read(replicas, generation_id, after="1-2.1").status_code == 410
    assert _delete(replicas, generation_id).status_code == 410
    assert replicas.stats()["requests"] == 1
    left = f"{{{generation_id}}}:[^t]*"
    until(lambda: not replicas.redis.keys(left), "nothing is left but the tombstone, once the ledger has the record")


# Stopping


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("spec", ["n100000-d10", "stall3-d1"])
def test_a_running_generation_is_stopped_for_all_its_viewers(replicas: Fleet, pair: tuple[str, str], spec: str, replica: int):
    dialect, provider = pair
    with ThreadPoolExecutor() as threads, _running(replicas, dialect, f"{provider}/demo-{spec}") as (generation_id, client):
        viewer = threads.submit(_read, replicas, generation_id, replica=1)
        until(lambda: replicas.metrics(replicas.ports[1])["sluice_open_viewers"] == 1, "a second viewer reads")

        response = _delete(replicas, generation_id, replica)

        assert (response.status_code, response.json()["stopped"]) == (200, True)
        events = sse_events(viewer.result().text)
        assert events[-1].fields["error"]["code"] == "cancelled"
        assert b'"code":"cancelled"' in client.read_until(b"\r\n0\r\n\r\n")
        assert b"[DONE]" not in client.received
        assert b"message_stop" not in client.received
    until(lambda: replicas.stats()["aborted"] == 1 and replicas.stats()["open"] == 0, "the upstream is closed")
    again = _delete(replicas, generation_id)
    assert (again.status_code, again.json()["stopped"]) == (200, False)
    assert sse_events(_read(replicas, generation_id).text) == events


def test_a_stopped_stream_that_has_not_begun_is_a_true_status(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    with ThreadPoolExecutor() as threads:
        for stream in (True, False):
            replicas.reset_demo()
            asked = threads.submit(replicas.post, dialect, body_of(dialect, f"{provider}/demo-f60000", stream=stream))
            until(lambda: replicas.stats()["open"] == 1, "it runs")
            (generation_id,) = _jobs(replicas)

            assert _delete(replicas, generation_id).status_code == 200

            response = asked.result()
            assert response.status_code == 499
            assert response.json()["error"]["code"] == "cancelled"
            until(lambda: replicas.stats()["open"] == 0, "the upstream is closed")


def test_a_waiting_generation_is_stopped_before_the_upstream_hears_of_it(replicas: Fleet, pair: tuple[str, str]):
    dialect, provider = pair
    # Given all slots are taken, and another request waits
    with ThreadPoolExecutor() as threads, contextlib.ExitStack() as busy:
        for _ in range(SLOTS):
            busy.enter_context(_running(replicas, CHAT, "demo-stall3-d1-taken", policy="stop"))
        taken = _jobs(replicas)
        asked = threads.submit(replicas.post, dialect, body_of(dialect, f"{provider}/demo-n3-waiting", stream=True))
        (generation_id,) = until(lambda: _jobs(replicas) - taken, "it waits")

        # When it is stopped, by way of the other replica
        response = _delete(replicas, generation_id, replica=1)

        # Then its client hears of it at once, and nothing is left of it
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert (asked.result().status_code, asked.result().json()["error"]["code"]) == (499, "cancelled")
        assert _jobs(replicas) == taken
    until(lambda: replicas.stats()["open"] == 0, "the slots are free")
    assert replicas.post(dialect, body_of(dialect, "demo-n1-d0")).status_code == 200
    assert "demo-n3-waiting" not in [request["body"]["model"] for request in replicas.upstream_requests()]


def test_stopping_what_has_ended_changes_nothing(replicas: Fleet):
    generation_id, events = _finished(replicas, CHAT, "openai/demo-n3-d0")

    for _ in range(2):
        response = _delete(replicas, generation_id)
        assert response.status_code == 200
        assert response.json() == {"id": generation_id, "object": "generation", "status": "completed", "stopped": False}

    assert sse_events(_read(replicas, generation_id).text) == events


def test_a_stop_is_for_good_even_if_the_client_comes_back(replicas: Fleet):
    with _running(replicas, CHAT, "openai/demo-n100000-d10", policy="grace=30") as (generation_id, _):
        pass
    assert _delete(replicas, generation_id).json()["stopped"]

    events = sse_events(_read(replicas, generation_id).text)

    assert events[-1].fields["error"]["code"] == "cancelled"


def test_listening_ends_when_the_viewers_do(replicas: Fleet):
    until(
        lambda: (
            not any(
                replicas.metrics(port)[name]
                for port in replicas.ports
                for name in ("sluice_open_viewers", "sluice_subscriptions")
            )
        ),
        "nobody is listened for",
    )
