"""Do identical requests share one upstream call, and does each of them get the whole answer, whatever befalls the others?"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest

from tests.support.clients.generations_client import JSON, stop, url
from tests.support.clients.identical import (
    PATHS,
    body,
    cache_state,
    id_of,
    is_complete,
    read_many,
    send,
    without_ids,
    without_names,
)
from tests.support.clients.ledger_rows import row_of
from tests.support.fleet import (
    CHAT,
    KEY,
    OTHER_KEY,
    QUICK_LEASE,
    Fleet,
    RawClient,
    fleet,
    headers_of,
    sse_events,
    until,
)

SECRET = "a secret of these tests, 32 bytes or more"
PRICE = {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 2000}
SETTINGS = {
    "SLUICE_SECRET": SECRET,
    "SLUICE_HEARTBEAT_S": "0.2",
    "SLUICE_CACHE_TTL_S": "600",
    "SLUICE_CACHE_POLICY": "all",
    "SLUICE_LIMITS": '{"key": {"concurrent": 10000}}',
    "SLUICE_PRICES": json.dumps({"openai/demo-n40-d25-paid": PRICE}),
}
JOINABLE: dict[str, dict[str, Any]] = {dialect: {} for dialect in PATHS} | {"openai-responses": {"store": False}}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two APIs and a worker for the tests that break no process."""
    with fleet(tmp_path_factory.mktemp("joined"), apis=2, **SETTINGS) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(replicas: Fleet) -> Iterator[None]:
    replicas.reset_demo()
    yield
    until(lambda: is_idle(replicas), "nothing runs, waits, or is listened to")


@pytest.fixture
def new() -> str:
    """A part of a model's name that makes a request another one than those of the other tests."""
    return f"j{next(_numbers)}"


def is_idle(found: Fleet) -> bool:
    heard = [found.metrics(port) for port in found.ports]
    is_heard = any(each["sluice_open_viewers"] or each["sluice_subscriptions"] for each in heard)
    return not (found.stats()["open"] or found.running() or found.waiting() or is_heard)


def flights(found: Fleet) -> list[bytes]:
    return found.redis.keys("sluice:q:flight:*")


@contextlib.contextmanager
def reading(found: Fleet, spec: str, replica: int = 0, port: int = 0, **headers: str) -> Iterator[RawClient]:
    """A client of chat completions that has read the beginning of its answer."""
    with RawClient(port or found.ports[replica]) as client:
        client.post(CHAT, body(CHAT, spec, stream=True), **headers)
        client.read_until(b"data: ", times=3)
        yield client


def generation_of(client: RawClient) -> str:
    return client.received.partition(b"x-generation-id: ")[2].partition(b"\r\n")[0].decode()


def rest(client: RawClient) -> bytes:
    """Return the stream of a raw client, read to its end."""
    return client.read_until(b"[DONE]")


def text_of(raw: bytes) -> str:
    """Return the text of a stream of chat completions, of which the HTTP head and chunk sizes may be a part."""
    events = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")]
    deltas = [choice["delta"] for event in events for choice in orjson.loads(event).get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


# All at once


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", JOINABLE)
def test_requests_that_come_at_once_make_one_call(replicas: Fleet, dialect: str, new: str, stream: bool):
    fields = JOINABLE[dialect]
    with ThreadPoolExecutor(8) as threads:
        sent = [
            threads.submit(send, replicas, dialect, f"n30-d20-{new}", stream=stream, replica=number % 2, fields=fields)
            for number in range(8)
        ]
        answers = [each.result() for each in sent]

    assert replicas.stats()["requests"] == 1
    assert sorted(map(str, map(cache_state, answers))) == ["join"] * 7 + ["miss"]
    assert len({each.content for each in answers}) == 1
    assert is_complete(dialect, answers[0].content, 30, stream=stream)
    assert len(set(map(id_of, answers))) == 8, "each is a generation of its own"
    again = send(replicas, dialect, f"n30-d20-{new}", stream=stream, fields=fields)
    assert cache_state(again) in ("hit", "join"), "until the answer is stored, the ended log is joined"
    assert without_names(dialect, again.content) == without_names(dialect, answers[0].content)


def test_five_hundred_streams_of_one_call(replicas: Fleet, new: str):
    readers = read_many(replicas, 500, CHAT, f"n40-d25-{new}")

    assert replicas.stats()["requests"] == 1
    assert [reader for reader in readers if reader.failure or reader.status != 200] == []
    assert {reader.received for reader in readers} == {readers[0].received}
    assert is_complete(CHAT, readers[0].received, 40, stream=True)
    assert len({reader.generation_id for reader in readers}) == 500
    assert sum(reader.cache == "miss" for reader in readers) == 1
    assert {reader.cache for reader in readers} <= {"miss", "join", "hit"}  # A busy machine sends some after the answer's end.


def test_an_answer_that_is_over_before_all_have_come_makes_one_call(replicas: Fleet, new: str):
    """Those that find no cached answer yet, and then no job any more, must not call the provider again."""
    for turn in range(6):
        replicas.reset_demo()
        readers = read_many(replicas, 300, CHAT, f"n1-d0-{new}-{turn}", stream=bool(turn % 2))

        assert replicas.stats()["requests"] == 1
        assert {reader.status for reader in readers} == {200}
        assert {reader.received for reader in readers} == {readers[0].received}
        assert sum(reader.cache == "miss" for reader in readers) == 1


def test_a_late_one_gets_the_stream_from_its_first_token(replicas: Fleet, new: str):
    with reading(replicas, f"n60-d20-{new}") as first:
        late = send(replicas, CHAT, f"n60-d20-{new}", replica=1)

        assert cache_state(late) == "join"
        assert is_complete(CHAT, late.content, 60, stream=True)
        assert text_of(rest(first)) == text_of(late.content)
    assert replicas.stats()["requests"] == 1


# Those who leave


@pytest.mark.parametrize("how", ["leaves", "stops", "stops at the other replica"])
@pytest.mark.parametrize("who", ["the first", "a later one"])
def test_one_goes_and_the_others_get_the_whole_answer(replicas: Fleet, new: str, how: str, who: str):
    spec = f"n60-d20-{new}"
    with reading(replicas, spec) as first, reading(replicas, spec, 1) as second, ThreadPoolExecutor() as threads:
        third = threads.submit(send, replicas, CHAT, spec)
        gone, staying = (first, second) if who == "the first" else (second, first)
        if how == "leaves":
            gone.leave()
        else:
            replica = 1 if how.endswith("replica") else 0
            assert stop(replicas, generation_of(gone), replica).json()["stopped"] is True
            assert b'"code":"cancelled"' in gone.read_until(b'"error"')

        assert text_of(rest(staying)) == text_of(third.result().content)
        assert is_complete(CHAT, third.result().content, 60, stream=True)
        until(lambda: row_of(replicas, generation_of(gone))["outcome"] == "cancelled", "its row says that it left")
    assert (replicas.stats()["requests"], replicas.stats()["aborted"]) == (1, 0)


@pytest.mark.parametrize("how", ["leave", "stop"])
def test_when_all_have_gone_the_upstream_is_closed(replicas: Fleet, new: str, how: str):
    spec = f"n100000-d20-{new}"
    with reading(replicas, spec) as first, reading(replicas, spec, 1) as second:
        for client in (first, second):
            if how == "stop":
                stop(replicas, generation_of(client))
            else:
                client.leave()

        until(lambda: replicas.stats()["aborted"] == 1, "the upstream is closed")
        until(lambda: not flights(replicas), "and nobody can join it any more")
    assert replicas.stats()["requests"] == 1


def test_one_that_comes_after_all_have_gone_calls_again(replicas: Fleet, new: str):
    spec = f"n30-d20-{new}"
    with reading(replicas, spec):
        pass
    late = send(replicas, CHAT, spec)

    assert cache_state(late) in ("miss", "join")
    assert is_complete(CHAT, late.content, 30, stream=True)


def test_many_leave_and_the_others_get_the_whole_answer(replicas: Fleet, new: str):
    readers = read_many(replicas, 60, CHAT, f"n60-d20-{new}", leave=lambda number: number % 3 != 0)

    staying = [reader for number, reader in enumerate(readers) if number % 3 == 0]
    assert len({reader.received for reader in staying}) == 1
    assert is_complete(CHAT, staying[0].received, 60, stream=True)
    assert (replicas.stats()["requests"], replicas.stats()["aborted"]) == (1, 0)


# Disconnect policies and retries


@pytest.mark.parametrize("policy", ["grace=30", "detach"])
def test_a_reader_with_a_policy_comes_back_at_another_replica(replicas: Fleet, new: str, policy: str):
    spec = f"n80-d20-{new}"
    with reading(replicas, spec, x_disconnect=policy) as first, reading(replicas, spec, 1, x_disconnect=policy) as second:
        for client in (first, second):
            client.leave()
        for number, client in enumerate((first, second)):
            seen = sse_events(client.received.decode().partition("\r\n\r\n")[2].replace("\r\n", "\n"))
            last = [event.id for event in seen if event.id][-1]
            headers = headers_of() | {"last-event-id": last}
            resumed = replicas.client.get(url(replicas, generation_of(client), 1 - number), headers=headers)
            whole = replicas.client.get(url(replicas, generation_of(client), number), headers=headers_of())

            assert is_complete(CHAT, whole.content, 80, stream=True)
            assert without_ids(whole.content).endswith(without_ids(resumed.content))
            assert (resumed.text and sse_events(resumed.text)[0].id > last) or len(resumed.text) < len(whole.text)
            again = replicas.client.get(
                url(replicas, generation_of(client)), headers=headers_of() | {"last-event-id": sse_events(whole.text)[-1].id}
            )
            assert again.status_code == 204
    assert (replicas.stats()["requests"], replicas.stats()["aborted"]) == (1, 0)


def test_requests_with_other_policies_do_not_share(replicas: Fleet, new: str):
    spec = f"n30-d20-{new}"
    with reading(replicas, spec), reading(replicas, spec, x_disconnect="detach") as second:
        assert b"x-sluice-cache: miss" in second.received
        rest(second)
    assert replicas.stats()["requests"] == 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_retry_of_a_joined_request_is_the_same_generation(replicas: Fleet, new: str, stream: bool):
    spec = f"n60-d20-{new}"
    with ThreadPoolExecutor() as threads:
        first = threads.submit(send, replicas, CHAT, spec, stream=stream, idempotency_key=f"a-{new}")
        until(lambda: replicas.stats()["open"] == 1, "it runs")
        second, retry = (
            threads.submit(send, replicas, CHAT, spec, stream=stream, replica=replica, idempotency_key=f"b-{new}")
            for replica in (0, 1)
        )
        answers = [each.result() for each in (first, second, retry)]
    later = send(replicas, CHAT, spec, stream=stream, idempotency_key=f"b-{new}")

    assert replicas.stats()["requests"] == 1
    assert id_of(answers[0]) != id_of(answers[1]) == id_of(answers[2]) == id_of(later)
    assert len({without_ids(each.content) for each in [*answers, later]}) == 1
    differs = send(replicas, CHAT, f"n61-d20-{new}", stream=stream, idempotency_key=f"b-{new}")
    assert differs.status_code == 422


# Records and the ledger


def test_each_has_its_record_and_one_pays(replicas: Fleet):
    spec = "n40-d25-paid"
    with ThreadPoolExecutor() as threads:
        sent = [threads.submit(send, replicas, CHAT, spec, replica=number % 2, x_disconnect="detach") for number in range(4)]
        answers = sorted((each.result() for each in sent), key=lambda each: cache_state(each) != "miss")
    ids = [id_of(each) for each in answers]
    rows = [row_of(replicas, id_) for id_ in ids]

    miss, *joins = rows
    assert [row["cache"] for row in rows] == ["miss", "join", "join", "join"]
    assert miss["cost_nano_usd"] == miss["input_tokens"] * 1_000_000 + 40 * 2_000_000
    assert miss["saved_nano_usd"] is None
    for row in joins:
        assert (row["cost_nano_usd"], row["output_tokens"], row["outcome"]) == (0, None, "completed")
        assert (row["saved_nano_usd"], row["answered_by"]) == (miss["cost_nano_usd"], miss["id"])
        assert row["provider"] == miss["provider"]
    listed = replicas.client.get(url(replicas), headers=headers_of(), params={"limit": 100}).json()["data"]
    assert set(ids) <= {item["id"] for item in listed}
    records = [replicas.client.get(url(replicas, id_, 1), headers=headers_of() | JSON).json() for id_ in ids]
    assert [record["id"] for record in records] == ids
    assert {record["status"] for record in records} == {"completed"}
    logs = {event["generation_id"] for worker in replicas.workers for event in worker.events("generation_ended")}
    assert not logs & {item["id"] for item in listed}, "the shared log is in nobody's list"


def test_a_joined_request_that_nobody_reads_holds_no_slot(replicas: Fleet, new: str):
    def slots() -> int:
        return sum(replicas.redis.zcard(key) for key in replicas.redis.keys("sluice:q:slots:*"))

    until(lambda: slots() == 0, "no slot of another test is held")
    content = body(CHAT, f"n100000-d20-{new}", stream=True)
    for replica in (0, 1, 0):  # Generations for later: nobody reads them yet.
        started = replicas.client.post(url(replicas, "", replica), json=content, headers=headers_of())
        assert started.status_code == 202, started.text
    until(lambda: replicas.stats()["open"] == 1, "they share a call")
    assert slots() == 1, "that of the job"
    for item in replicas.client.get(url(replicas), headers=headers_of(), params={"limit": 3}).json()["data"]:
        stop(replicas, item["id"])


def test_a_stranger_does_not_find_a_joined_generation_or_its_log(replicas: Fleet, new: str):
    with reading(replicas, f"n60-d20-{new}"), reading(replicas, f"n60-d20-{new}", 1) as second:
        log_id = next(iter(flights(replicas)))
        ids = [generation_of(second), replicas.redis.get(log_id).decode()]
        for id_, key in ((ids[0], OTHER_KEY), (ids[1], OTHER_KEY), (ids[1], KEY)):
            for method in ("GET", "DELETE"):
                answer = replicas.client.request(method, url(replicas, id_), headers=headers_of(key))
                assert answer.status_code == 404, (id_, key, method)
        rest(second)


# Processes that are killed


@pytest.fixture
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two APIs and two workers, of which a test kills some."""
    settings = SETTINGS | QUICK_LEASE | {"SLUICE_PROVIDERS": '{"openai": {"continuation": "prefill"}}'}
    with fleet(tmp_path_factory.mktemp("fragile"), apis=2, workers=2, **settings) as found:
        yield found


def test_the_api_of_the_first_is_killed_and_the_others_get_the_whole_answer(fragile: Fleet):
    spec = "n200-d25"
    with reading(fragile, spec) as first, reading(fragile, spec, 1) as second:
        generation_id = generation_of(first)
        fragile.apis[0].kill()
        late = send(fragile, CHAT, spec, replica=1)

        assert cache_state(late) == "join"
        assert is_complete(CHAT, late.content, 200, stream=True)
        assert text_of(rest(second)) == text_of(late.content)
    assert fragile.stats()["requests"] == 1
    row = row_of(fragile, generation_id)
    assert row["cache"] == "miss"
    fragile.start_api()
    fragile.ready()


@pytest.mark.parametrize("spec", ["f1500-n20-d20", "n120-d25"], ids=["before the first token", "amid the tokens"])
def test_the_worker_is_killed_and_its_successor_serves_all(fragile: Fleet, spec: str):
    with ThreadPoolExecutor(6) as threads:
        sent = [threads.submit(send, fragile, CHAT, spec, replica=number % 2, x_disconnect="grace=60") for number in range(4)]
        until(lambda: fragile.stats()["open"] == 1, "the provider is called")
        until(lambda: "f1500" in spec or fragile.stats()["tokens"] > 20, "tokens flow")
        worker_of(fragile).kill()
        answers = [each.result() for each in sent]

    tokens = 20 if "f1500" in spec else 120
    assert len({without_ids(each.content) for each in answers}) == 1
    assert is_complete(CHAT, answers[0].content, tokens, stream=True)
    assert sorted(map(str, map(cache_state, answers))) == ["join", "join", "join", "miss"]
    assert fragile.stats()["requests"] == 2
    rows = [row_of(fragile, id_of(each)) for each in answers]
    assert sum(row["cost_nano_usd"] != 0 for row in rows) <= 1
    assert {row["outcome"] for row in rows} == {"completed"}


def worker_of(found: Fleet) -> Any:
    """Return the worker that runs the one running generation."""
    return next(
        worker for worker in found.workers if worker.is_alive and found.metrics(worker.port)["sluice_running_generations"]
    )
