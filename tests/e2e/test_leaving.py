"""What happens to the upstream when a client leaves? It is closed, unless the client said that it wants otherwise."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from demo_provider.script import answer
from tests.support.fleet import (
    CHAT,
    DIALECTS,
    FAMILY_OF,
    MESSAGES,
    Fleet,
    RawClient,
    body_of,
    fleet,
    headers_of,
    sse_events,
    until,
)

FOR_EVER = "demo-n100000-d20"
FIRST_OUTPUT = {CHAT: b'"content":"A', MESSAGES: b"text_delta"}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker that runs one generation at a time, and asks often whether anybody still listens."""
    settings = {"SLUICE_WORKER_SLOTS": "1", "SLUICE_HEARTBEAT_S": "0.2"}
    with fleet(tmp_path_factory.mktemp("narrow"), **settings) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(narrow: Fleet) -> Iterator[None]:
    narrow.reset_demo()
    yield
    until(lambda: _is_idle(narrow), "nothing runs, waits, or is listened to")


def _is_idle(found: Fleet) -> bool:
    metrics = found.metrics(found.ports[0])
    is_heard = metrics["sluice_open_viewers"] or metrics["sluice_subscriptions"]
    return not (found.stats()["open"] or found.running() or found.waiting() or is_heard)


@pytest.fixture(
    params=itertools.product(DIALECTS, ("openai", "anthropic"), (True, False)),
    ids=lambda p: f"{p[0]}-on-{p[1]}-{'stream' if p[2] else 'whole'}",
)
def case(request: pytest.FixtureRequest) -> tuple[str, str, bool]:
    return request.param


def _until_open(found: Fleet, count: int = 1) -> None:
    until(lambda: found.stats()["open"] == count, "the upstream is called")


def _until_aborted(found: Fleet) -> None:
    until(lambda: found.stats()["aborted"] == 1 and found.stats()["open"] == 0, "the upstream is closed")


# By default an absent client wants nothing


def test_leaving_before_the_first_token_closes_the_upstream(narrow: Fleet, case: tuple[str, str, bool]):
    dialect, provider, stream = case
    with RawClient(narrow.ports[0]) as client:
        client.post(dialect, body_of(dialect, f"{provider}/demo-f60000", stream=stream))
        _until_open(narrow)

    _until_aborted(narrow)
    assert narrow.stats()["requests"] == 1  # Nobody tries again for nobody.


def test_leaving_amid_the_tokens_closes_the_upstream(narrow: Fleet, case: tuple[str, str, bool]):
    dialect, provider, stream = case
    with RawClient(narrow.ports[0]) as client:
        client.post(dialect, body_of(dialect, f"{provider}/{FOR_EVER}", stream=stream))
        _until_open(narrow)
        if stream:
            client.read_until(FIRST_OUTPUT[dialect])
        elif FAMILY_OF[dialect] != provider:  # Of the same family a whole answer is asked for, and its tokens are not counted.
            until(lambda: narrow.stats()["tokens"] > 2, "tokens flow upstream")

    _until_aborted(narrow)


def test_leaving_a_stalled_answer_closes_the_upstream(narrow: Fleet, case: tuple[str, str, bool]):
    dialect, provider, stream = case
    with RawClient(narrow.ports[0]) as client:
        client.post(dialect, body_of(dialect, f"{provider}/demo-stall3-d1", stream=stream))
        _until_open(narrow)
        if stream:
            client.read_until(FIRST_OUTPUT[dialect])

    _until_aborted(narrow)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_leaving_between_two_tries_ends_the_tries(narrow: Fleet, dialect: str, stream: bool):
    # A model of its own: the other case's has asked to be left alone.
    # A stream waits only as long as it can still be given the status.
    model = f"{FAMILY_OF[dialect]}/demo-e429-" + ("ra3-stream" if stream else "ra30-whole")
    with RawClient(narrow.ports[0]) as client:
        client.post(dialect, body_of(dialect, model, stream=stream))
        until(lambda: narrow.stats()["errors"] == 1, "the first try has failed")

    until(lambda: _is_idle(narrow), "the generation has ended")
    assert narrow.stats()["requests"] == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_leaving_the_queue_leaves_the_upstream_alone(narrow: Fleet, dialect: str, stream: bool):
    # Given the one slot is taken, and another request waits
    with RawClient(narrow.ports[0]) as busy:
        busy.post(CHAT, body_of(CHAT, "demo-stall3-taken", stream=True))
        _until_open(narrow)
        with RawClient(narrow.ports[0]) as waiting:
            waiting.post(dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n3-waiting", stream=stream))
            until(lambda: narrow.waiting() == 1, "the request waits")

        # When its client leaves
        until(lambda: narrow.waiting() == 0, "the request is gone")

    # Then the upstream never hears of it, even when the slot is free and others are served
    _until_aborted(narrow)
    assert narrow.post(dialect, body_of(dialect, "demo-n3-d0-next")).status_code == 200
    assert [request["body"]["model"] for request in narrow.upstream_requests()] == ["demo-stall3-taken", "demo-n3-d0-next"]


def test_a_client_that_shuts_only_its_sending_side_is_gone(narrow: Fleet):
    # As with every server that reads ahead of its responses: there is no telling it from a close.
    with RawClient(narrow.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, f"openai/{FOR_EVER}", stream=True))
        client.read_until(FIRST_OUTPUT[CHAT])
        client.shut_sending()

        _until_aborted(narrow)


def test_many_clients_that_leave_at_once_leave_nothing_behind(narrow: Fleet):
    clients = [RawClient(narrow.ports[0]) for _ in range(20)]
    for client in clients:
        client.post(CHAT, body_of(CHAT, "demo-stall3-d1", stream=True))
    until(lambda: narrow.waiting() == 19, "one runs, the others wait")

    for client in clients:
        client.leave()

    until(lambda: _is_idle(narrow), "nothing is left")
    assert narrow.stats()["requests"] == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_as_long_as_one_viewer_is_left_it_runs_on(narrow: Fleet, dialect: str):
    with RawClient(narrow.ports[0]) as first:
        first.post(dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n60-d20", stream=True))
        generation_id = _id_in(first.read_until(FIRST_OUTPUT[dialect]))
        with ThreadPoolExecutor() as threads:
            second = threads.submit(_come_back, narrow, generation_id)
            until(lambda: narrow.metrics(narrow.ports[0])["sluice_open_viewers"] == 2, "a second viewer reads")
            first.leave()

            assert _text(dialect, second.result()) == answer(60)
    assert (narrow.stats()["completed"], narrow.stats()["aborted"]) == (1, 0)


# What the client can ask for instead


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_detached_generation_runs_to_its_end(narrow: Fleet, dialect: str, stream: bool):
    model = f"{FAMILY_OF[dialect]}/demo-n30-d10"
    generation_id = _start_and_leave(narrow, dialect, model, stream, x_disconnect="detach")

    until(lambda: narrow.stats()["completed"] == 1, "the answer is complete")
    assert narrow.stats()["aborted"] == 0
    if generation_id:
        assert _text(dialect, _come_back(narrow, generation_id)) == answer(30)


def test_a_detached_generation_runs_even_if_it_still_waits(narrow: Fleet):
    with RawClient(narrow.ports[0]) as busy:
        busy.post(CHAT, body_of(CHAT, "demo-stall3-taken", stream=True))
        _until_open(narrow)
        with RawClient(narrow.ports[0]) as waiting:
            waiting.post(CHAT, body_of(CHAT, "demo-n3-d0", stream=True), x_disconnect="detach")
            until(lambda: narrow.waiting() == 1, "the request waits")
        until(lambda: narrow.metrics(narrow.ports[0])["sluice_open_viewers"] == 1, "its client has left")
        assert narrow.waiting() == 1

    until(lambda: narrow.stats()["completed"] == 1, "it has run")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_generation_is_stopped_once_its_grace_is_over(narrow: Fleet, dialect: str, stream: bool):
    model = f"{FAMILY_OF[dialect]}/{FOR_EVER}"
    _start_and_leave(narrow, dialect, model, stream, x_disconnect="grace=1")
    until(lambda: narrow.metrics(narrow.ports[0])["sluice_open_viewers"] == 0, "the client has left")
    assert narrow.stats()["aborted"] == 0

    _until_aborted(narrow)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_comes_back_within_the_grace_keeps_its_generation(narrow: Fleet, dialect: str):
    # It runs for longer than the grace, so it would not end if the clock went on.
    model = f"{FAMILY_OF[dialect]}/demo-n120-d20"
    generation_id = _start_and_leave(narrow, dialect, model, stream=True, x_disconnect="grace=1")

    text = _come_back(narrow, generation_id)

    assert _text(dialect, text) == answer(120)
    assert (narrow.stats()["completed"], narrow.stats()["aborted"]) == (1, 0)


def test_leaving_again_after_coming_back_counts_anew(narrow: Fleet):
    generation_id = _start_and_leave(narrow, CHAT, f"openai/{FOR_EVER}", stream=True, x_disconnect="grace=1")
    with RawClient(narrow.ports[0]) as client:
        client.send("GET", f"/v1/generations/{generation_id}", headers_of())
        client.read_until(FIRST_OUTPUT[CHAT])

    _until_aborted(narrow)
    last = sse_events(_come_back(narrow, generation_id))[-1]
    assert last.fields["error"]["code"] == "cancelled"


def _start_and_leave(found: Fleet, dialect: str, model: str, stream: bool, **headers: str) -> str:
    """Leave a generation that runs, once its first output is here; return its id, which only a stream has told by then."""
    with RawClient(found.ports[0]) as client:
        client.post(dialect, body_of(dialect, model, stream=stream), **headers)
        _until_open(found)
        if not stream:
            return ""
        received = client.read_until(FIRST_OUTPUT[dialect])
    return _id_in(received)


def _id_in(received: bytes) -> str:
    return received.partition(b"x-generation-id: ")[2].partition(b"\r\n")[0].decode()


def _come_back(found: Fleet, generation_id: str) -> str:
    response = httpx.get(f"{found.url}/v1/generations/{generation_id}", headers=headers_of(), timeout=120)
    assert response.status_code == 200
    return response.text


def _text(dialect: str, text: str) -> str:
    events = [event.fields for event in sse_events(text) if event.data != "[DONE]"]
    if dialect == MESSAGES:
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
