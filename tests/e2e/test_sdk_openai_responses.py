"""What does the official ``openai`` SDK see of Sluice's responses API, whatever the provider speaks?"""

import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from demo_provider.script import answer
from tests.support.fleet import KEY, OTHER_KEY, Fleet, fleet, headers_of, sse_events, until

PROVIDERS = ("demo", "anthropic", "openai")  # Translated to chat completions and to messages, and passed through.
TOOLS: Any = [
    {
        "type": "function",
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
ENDED = ("completed", "failed", "cancelled", "incomplete")


@pytest.fixture
def client(shared: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{shared.url}/v1", max_retries=0) as found:
        yield found


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


def ended(client: openai.OpenAI, id_: str) -> Response:
    def look() -> Response | None:
        found = client.responses.retrieve(id_)
        return found if found.status in ENDED else None

    return until(look, f"{id_} has ended")


def strictly(event: Any) -> None:
    """The SDK itself checks nothing that it reads."""
    TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump())


# Answers


def test_create_gives_a_whole_answer(client: openai.OpenAI, provider: str):
    response = client.responses.create(model=f"{provider}/demo-n12-d0", input="hi", instructions="Be brief.")

    assert response.output_text == answer(12)
    assert (response.status, response.model.rpartition("/")[2]) == ("completed", "demo-n12-d0")
    assert response.instructions == "Be brief."
    assert response.usage
    assert response.usage.output_tokens == 12
    assert client.responses.retrieve(response.id) == response


def test_create_with_stream_gives_typed_events(client: openai.OpenAI, provider: str):
    with client.responses.create(model=f"{provider}/demo-think5-n12-d1", input="hi", stream=True) as stream:
        events = list(stream)

    for event in events if provider != "openai" else ():  # What passes through is the upstream's own affair.
        strictly(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer(12)
    assert any(event.type == "response.reasoning_summary_text.delta" for event in events)
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == answer(12)
    assert client.responses.retrieve(last.response.id) == last.response


def test_the_stream_helper_accumulates(client: openai.OpenAI, provider: str):
    with client.responses.stream(model=f"{provider}/demo-n12-d1", input="hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()

    assert "".join(deltas) == response.output_text == answer(12)


def test_an_answer_that_was_cut_short_is_incomplete(client: openai.OpenAI, provider: str):
    response = client.responses.create(model=f"{provider}/demo-n40-d0", input="hi", max_output_tokens=20)

    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == answer(20)


def test_a_typed_answer_is_parsed(client: openai.OpenAI, provider: str):
    class Report(BaseModel):
        city: str
        degrees: int

    response = client.responses.parse(model=f"{provider}/demo-d0", input="hi", text_format=Report)

    assert response.output_parsed == Report(city="Zürich", degrees=1)


# Tools and conversations


def test_an_agent_loop_ends_with_the_conversation_kept_here(client: openai.OpenAI, provider: str):
    model = f"{provider}/demo-think3-tool2-d0"
    asked = client.responses.create(model=model, input="hi", tools=TOOLS, reasoning={"effort": "low"})
    calls = [item for item in asked.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == [("get_weather", '{"city":"Zürich"}')] * 2
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"} for call in calls]

    last = client.responses.create(model=model, input=results, tools=TOOLS, previous_response_id=asked.id)

    assert last.output_text == "The tool answered: 18 degrees, 18 degrees"
    assert last.previous_response_id == asked.id


def test_an_agent_loop_ends_with_the_conversation_kept_by_the_client(client: openai.OpenAI, provider: str):
    model, conversation = f"{provider}/demo-think3-tool-d0", [{"role": "user", "content": "hi"}]
    include: Any = ["reasoning.encrypted_content"]
    asked = client.responses.create(model=model, input=conversation, tools=TOOLS, store=False, include=include)  # type: ignore[arg-type]
    items: Any = [*conversation, *[item.model_dump(exclude_none=True) for item in asked.output]]
    items += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "fine"}
        for item in asked.output
        if item.type == "function_call"
    ]

    last = client.responses.create(model=model, input=items, tools=TOOLS, store=False, include=include)

    assert last.output_text == "The tool answered: fine"


def test_a_conversation_goes_on_with_all_that_was_said_but_the_instructions(
    shared: Fleet, client: openai.OpenAI, provider: str
):
    model = f"{provider}/demo-n3-d0"
    first = client.responses.create(model=model, input="one", instructions="Be brief.")
    second = client.responses.create(model=model, input="two", previous_response_id=first.id)
    shared.reset_demo()

    client.responses.create(model=model, input=[{"role": "user", "content": "three"}], previous_response_id=second.id)

    body = str(shared.upstream_requests()[-1]["body"])
    places = [body.index(word) for word in ("one", "two", "three")]
    assert places == sorted(places)
    assert body.count(answer(3)) == 2
    assert "Be brief" not in body
    assert "previous_response_id" not in body


def test_items_that_are_only_referred_to_are_found(shared: Fleet, client: openai.OpenAI):
    # As the AI SDK's agents do, wherever they may store.
    model = "anthropic/demo-think3-tool-d0"
    asked = client.responses.create(model=model, input="hi", tools=TOOLS)
    references: Any = [{"type": "item_reference", "id": item.id} for item in asked.output]
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "fine"}
        for item in asked.output
        if item.type == "function_call"
    ]
    user: Any = [{"role": "user", "content": "hi"}]

    last = client.responses.create(model=model, input=[*user, *references, *results], tools=TOOLS)

    assert last.output_text == "The tool answered: fine"
    blocks = shared.upstream_requests()[-1]["body"]["messages"][1]["content"]
    assert [block["type"] for block in blocks] == ["thinking", "tool_use"]  # Signed, as it came.
    with openai.OpenAI(api_key=OTHER_KEY, base_url=f"{shared.url}/v1", max_retries=0) as stranger:
        for each, id_ in ((stranger, references[0]["id"]), (client, "rs_" + "0" * 34)):
            with pytest.raises(openai.BadRequestError, match=id_):
                each.responses.create(model=model, input=[*user, {"type": "item_reference", "id": id_}])


def test_a_streamed_answer_can_be_continued_at_once(client: openai.OpenAI):
    # As soon as its last event is there, and before its connection is closed.
    with client.responses.create(model="demo-n3-d0", input="one", stream=True) as stream:
        last = next(event for event in stream if event.type == "response.completed")
        second = client.responses.create(model="demo-n3-d0", input="two", previous_response_id=last.response.id)

    assert second.output_text == answer(3)


@pytest.mark.parametrize("previous", ["unknown", "stranger", "unstored", "deleted", "failed"])
def test_what_cannot_be_continued_is_not_found(shared: Fleet, client: openai.OpenAI, previous: str):
    id_ = "resp_" + "0" * 32
    if previous == "stranger":
        with openai.OpenAI(api_key=OTHER_KEY, base_url=f"{shared.url}/v1", max_retries=0) as stranger:
            id_ = stranger.responses.create(model="demo-n2-d0", input="hi").id
    elif previous == "failed":
        id_ = client.responses.create(model="demo-err2-d0", input="hi", background=True).id
        assert ended(client, id_).status == "failed"
    elif previous != "unknown":
        id_ = client.responses.create(model="demo-n2-d0", input="hi", store=previous != "unstored").id
    if previous == "deleted":
        client.responses.delete(id_)

    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo-n2-d0", input="hi", previous_response_id=id_)

    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_server_tools_that_are_merely_offered_are_dropped_and_named(client: openai.OpenAI):
    tools: Any = [{"type": "web_search"}, *TOOLS, {"type": "namespace", "name": "n", "description": "d", "tools": TOOLS}]

    raw = client.responses.with_raw_response.create(model="anthropic/demo-tool2-d0", input="hi", tools=tools)

    assert raw.headers["x-sluice-dropped"] == "tools.0"
    calls = [item for item in raw.parse().output if item.type == "function_call"]
    assert [(call.namespace, call.name) for call in calls] == [(None, "get_weather"), ("n", "get_weather")]


# The store


def test_a_deleted_response_is_gone(client: openai.OpenAI):
    response = client.responses.create(model="demo-n2-d0", input="hi")

    client.responses.delete(response.id)

    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(response.id)


@pytest.mark.parametrize("id_", ["resp_", "x", "gen_0", "resp_}:state", "resp_%7B%7D", "resp_😀"])
def test_any_text_is_an_unknown_response(shared: Fleet, id_: str):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        response = httpx.request(method, f"{shared.url}/v1/responses/{id_}{path}", headers=headers_of())
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_strangers_response_is_not_found(shared: Fleet, client: openai.OpenAI):
    id_ = client.responses.create(model="demo-n2-d0", input="hi", background=True).id
    with openai.OpenAI(api_key=OTHER_KEY, base_url=f"{shared.url}/v1", max_retries=0) as stranger:
        for call in (
            stranger.responses.retrieve,
            stranger.responses.delete,
            stranger.responses.cancel,
            stranger.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                call(id_)
    assert ended(client, id_).status == "completed"


def test_nothing_is_stored_where_store_is_false(shared: Fleet, client: openai.OpenAI):
    response = client.responses.create(model="demo-n2-d0", input="a secret", store=False)

    assert response.store is False
    assert not shared.redis.keys(f"*{response.id.removeprefix('resp_')}*:response")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_input_items_are_listed_in_pages(client: openai.OpenAI):
    items: Any = [{"role": "user", "content": f"message {i}"} for i in range(5)]
    response = client.responses.create(model="demo-n2-d0", input=items)

    page = client.responses.input_items.list(response.id, limit=2)

    texts = [item.content[0].text for item in page]  # type: ignore[union-attr]  # Follows the pages.
    assert texts == [f"message {i}" for i in (4, 3, 2, 1, 0)]
    first = client.responses.input_items.list(response.id, limit=2, order="asc").data
    assert [item.content[0].text for item in first] == ["message 0", "message 1"]  # type: ignore[union-attr]


# In the background


def test_a_background_response_is_polled_to_its_end(client: openai.OpenAI, provider: str):
    queued = client.responses.create(model=f"{provider}/demo-n12-d20", input="hi", background=True)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])

    response = ended(client, queued.id)

    assert (response.id, response.status, response.background) == (queued.id, "completed", True)
    assert response.output_text == answer(12)


def test_background_events_are_resumed_from_any_of_them(client: openai.OpenAI, provider: str):
    with client.responses.create(model=f"{provider}/demo-n12-d5", input="hi", background=True, stream=True) as stream:
        complete = list(stream)
    id_ = complete[0].response.id  # type: ignore[union-attr]

    for after in (0, 5, len(complete) - 2, len(complete) - 1):
        with client.responses.retrieve(id_, stream=True, starting_after=after) as stream:
            assert list(stream) == complete[after + 1 :]
    with client.responses.retrieve(id_, stream=True) as stream:
        assert list(stream) == complete
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.retrieve(id_, stream=True, starting_after=len(complete))
    assert caught.value.param == "starting_after"


def test_background_goes_on_when_its_client_leaves_and_is_resumed_live(client: openai.OpenAI, provider: str):
    with client.responses.create(model=f"{provider}/demo-n40-d20", input="hi", background=True, stream=True) as stream:
        seen = [next(stream) for _ in range(10)]
    id_ = seen[0].response.id  # type: ignore[union-attr]
    assert client.responses.retrieve(id_).status == "in_progress"

    with client.responses.retrieve(id_, stream=True, starting_after=seen[-1].sequence_number) as stream:
        rest = list(stream)

    assert [event.sequence_number for event in seen + rest] == list(range(len(seen + rest)))
    assert "".join(event.delta for event in seen + rest if event.type == "response.output_text.delta") == answer(40)
    assert rest[-1].type == "response.completed"


def test_one_that_was_only_polled_can_be_streamed_too(client: openai.OpenAI):
    queued = client.responses.create(model="demo-n12-d5", input="hi", background=True)

    with client.responses.retrieve(queued.id, stream=True) as stream:
        events = list(stream)

    assert events[-1].type == "response.completed"
    assert events[-1].response == ended(client, queued.id)


def test_a_failure_in_the_background_is_fetched(client: openai.OpenAI, provider: str):
    failed = ended(client, client.responses.create(model=f"{provider}/demo-cut5-d1", input="hi", background=True).id)
    refused = ended(client, client.responses.create(model=f"{provider}/demo-e400", input="hi", background=True).id)

    assert failed.status == refused.status == "failed"
    assert failed.error
    assert refused.error
    assert "asked to reject" in refused.error.message
    with client.responses.retrieve(failed.id, stream=True, starting_after=3) as stream:
        events = list(stream)
    assert events[-1].type == "response.failed"
    assert events[-1].response.id == failed.id
    assert [event.sequence_number for event in events] == list(range(4, 4 + len(events)))
    with client.responses.retrieve(failed.id, stream=True, starting_after=events[-1].sequence_number) as stream:
        assert list(stream) == []


@pytest.mark.parametrize("spec", ["n100000-d10", "stall3-d1", "f60000"])
def test_a_background_response_is_cancelled(shared: Fleet, client: openai.OpenAI, provider: str, spec: str):
    shared.reset_demo()
    id_ = client.responses.create(model=f"{provider}/demo-{spec}", input="hi", background=True).id
    until(lambda: shared.stats()["open"] == 1, "it runs")

    for _ in range(2):
        response = client.responses.cancel(id_)
        assert (response.id, response.status) == (id_, "cancelled")

    assert client.responses.retrieve(id_).status == "cancelled"
    until(lambda: shared.stats()["open"] == 0, "the upstream is closed")


def test_a_cancelled_stream_ends_with_a_failure_that_says_so(client: openai.OpenAI):
    with client.responses.create(model="demo-n100000-d10", input="hi", background=True, stream=True) as stream:
        events = [next(stream) for _ in range(5)]
        client.responses.cancel(events[0].response.id)  # type: ignore[union-attr]
        events += list(stream)

    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error
    assert last.response.error.code == "cancelled"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_what_has_ended_is_not_cancelled(client: openai.OpenAI):
    completed = ended(client, client.responses.create(model="demo-n2-d0", input="hi", background=True).id)

    assert client.responses.cancel(completed.id) == completed


def test_a_running_response_that_is_deleted_stops(shared: Fleet, client: openai.OpenAI):
    shared.reset_demo()
    id_ = client.responses.create(model="demo-stall3-d1", input="hi", background=True).id
    until(lambda: shared.stats()["open"] == 1, "it runs")

    client.responses.delete(id_)

    until(lambda: shared.stats()["open"] == 0, "the upstream is closed")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id_)


def test_only_background_responses_are_cancelled_or_streamed_again(client: openai.OpenAI):
    id_ = client.responses.create(model="demo-n2-d0", input="hi").id

    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(id_)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(id_, stream=True)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo-n2-d0", input="hi", background=True, store=False)
    assert caught.value.param == "store"


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("spec", "error", "status"),
    [("e400", openai.BadRequestError, 400), ("e404", openai.NotFoundError, 404), ("e401", openai.InternalServerError, 502)],
)
def test_an_upstreams_refusal_is_the_sdks_own_class(
    client: openai.OpenAI, provider: str, stream: bool, spec: str, error: type[openai.APIStatusError], status: int
):
    with pytest.raises(error) as caught:
        client.responses.create(model=f"{provider}/demo-{spec}", input="hi", stream=stream)

    assert (caught.value.status_code, bool(caught.value.request_id)) == (status, True)


@pytest.mark.parametrize("spec", ["err5", "cut5", "end5"])
def test_an_answer_that_breaks_off_ends_with_a_failure(shared: Fleet, provider: str, spec: str):
    body = {"model": f"{provider}/demo-{spec}-d20", "input": "hi", "stream": True}
    response = shared.client.post(f"{shared.url}/v1/responses", json=body, headers=headers_of())

    events = sse_events(response.text)
    text = "".join(event.fields["delta"] for event in events if event.name == "response.output_text.delta")
    # The demo provider takes a prefill: its answers go on a few times, and break off each time.
    assert text.startswith(answer(5)) if provider == "demo" else text == answer(5)
    assert [event.fields["sequence_number"] for event in events] == list(range(len(events)))
    assert [event.name for event in events].count("response.failed") == 1
    last = events[-1].fields
    assert (last["type"], last["response"]["id"]) == ("response.failed", events[0].fields["response"]["id"])
    assert last["response"]["error"]["message"]
    assert "[DONE]" not in response.text


def test_errors_on_its_paths_have_its_shape(shared: Fleet, client: openai.OpenAI):
    unauthorized = httpx.get(f"{shared.url}/v1/responses/resp_1")
    unknown = httpx.put(f"{shared.url}/v1/responses/resp_1", headers=headers_of())

    assert (unauthorized.status_code, unauthorized.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (405, "unknown_path")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input=[])
    assert caught.value.param == "input"


# Past one process


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {"SLUICE_LEASE_S": "2", "SLUICE_RENEW_S": "0.5", "SLUICE_HEARTBEAT_S": "0.3"}
    with fleet(tmp_path_factory.mktemp("replicas"), apis=2, **settings) as found:
        yield found


@pytest.fixture
def clients(replicas: Fleet) -> Iterator[list[openai.OpenAI]]:
    found = [openai.OpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) for port in replicas.ports]
    yield found
    for each in found:
        each.close()


def test_any_replica_resumes_cancels_and_continues(clients: list[openai.OpenAI]):
    here, there = clients
    with here.responses.create(model="demo-n60-d20", input="hi", background=True, stream=True) as stream:
        seen = [next(stream) for _ in range(8)]
        id_ = seen[0].response.id  # type: ignore[union-attr]
        with there.responses.retrieve(id_, stream=True, starting_after=seen[-1].sequence_number) as resumed:
            rest = list(resumed)
        assert list(stream) == rest
    endless = here.responses.create(model="demo-n100000-d10", input="hi", background=True).id

    assert there.responses.create(model="demo-n2-d0", input="on", previous_response_id=id_).output_text == answer(2)
    assert there.responses.cancel(endless).status == "cancelled"
    assert here.responses.cancel(endless).status == "cancelled"


def test_one_that_waits_is_cancelled_before_the_upstream_hears_of_it(replicas: Fleet, clients: list[openai.OpenAI]):
    replicas.workers[0].send(signal.SIGSTOP)
    try:
        id_ = clients[0].responses.create(model="demo-n2-waiting", input="hi", background=True).id
        assert clients[1].responses.retrieve(id_).status == "queued"

        assert clients[1].responses.cancel(id_).status == "cancelled"
        assert clients[0].responses.retrieve(id_).status == "cancelled"
    finally:
        replicas.workers[0].send(signal.SIGCONT)
    clients[0].responses.create(model="demo-n2-d0", input="hi")
    assert "demo-n2-waiting" not in [request["body"]["model"] for request in replicas.upstream_requests()]


def test_the_failure_of_a_lost_worker_is_fetched(replicas: Fleet, clients: list[openai.OpenAI]):
    with clients[0].responses.create(model="openai/demo-n100000-d10", input="hi", background=True, stream=True) as stream:
        events = [next(stream) for _ in range(8)]
        replicas.workers[0].kill()
        replicas.start_worker()
        events += list(stream)
    id_ = events[0].response.id  # type: ignore[union-attr]

    response = clients[1].responses.retrieve(id_)

    assert (events[-1].type, response.status) == ("response.failed", "failed")
    assert response.error
    assert response.error.code == "worker_lost"
