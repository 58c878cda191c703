"""What do clients of /api/{provider} and of /v1/chat see of a running Sluice?"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from demo_provider.script import answer
from tests.support.clients import seed_clients
from tests.support.clients.seed_clients import SeedError
from tests.support.fleet import KEY, ROOT, Fleet, RawClient, fleet, headers_of, sse_events, until

PROVIDERS = ("openai", "anthropic", "demo")
USER = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OWN_PRICE = '{"demo/demo-d0-n10": {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 2000}}'


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("priced"), SLUICE_PRICES=OWN_PRICE, SLUICE_HEARTBEAT_S="0.2") as found:
        yield found


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


def agentary(found: Fleet, provider: str, spec: str, *, key: str | None = None, **more: Any) -> httpx.Response:
    """The answer to what agentary-js posts; ``stream`` is not among it."""
    headers = headers_of() if key is None else headers_of(key=key)
    body = {"model": f"demo-d0-{spec}", "messages": USER, **more}
    return found.client.post(f"{found.url}/api/{provider}", json=body, headers={**headers, "accept": "text/event-stream"})


def unified(found: Fleet, provider: str, spec: str, query: str = "", **more: Any) -> httpx.Response:
    body = {"provider": provider, "model": f"demo-d0-{spec}", "messages": USER, **more}
    return found.client.post(f"{found.url}/v1/chat{query}", json=body, headers=headers_of())


# /api/{provider}


def test_agentary_streams_unless_told_otherwise(shared: Fleet, provider: str) -> None:
    response = agentary(shared, provider, "n120")

    assert response.headers["content-type"].startswith("text/event-stream")
    seen = seed_clients.agentary_stream(response.content)
    assert (seen.text, seen.finish, seen.output_tokens) == (answer(120), "stop", 120)
    assert seed_clients.as_agentary_js(response.content) == (answer(120), 120)


def test_agentary_gives_json_where_no_stream_is_wanted(shared: Fleet, provider: str) -> None:
    response = agentary(shared, provider, "n12", stream=False)

    assert response.headers["content-type"] == "application/json"
    seen = seed_clients.agentary_whole(response.content)
    assert (seen.text, seen.finish, seen.output_tokens) == (answer(12), "stop", 12)


def test_agentary_calls_tools_and_takes_their_results(shared: Fleet, provider: str) -> None:
    tools = [{"name": "get_weather", "description": "d", "parameters": WEATHER}]
    for read, stream in ((seed_clients.agentary_stream, True), (seed_clients.agentary_whole, False)):
        seen = read(agentary(shared, provider, "tool2", tools=tools, stream=stream).content)

        assert [(name, set(arguments)) for _, name, arguments in seen.calls] == [("get_weather", {"city"})] * 2
        assert (seen.text, seen.finish) == ("", "tool_calls")

    calls = [{"type": "tool_use", "id": id_, "name": name, "arguments": arguments} for id_, name, arguments in seen.calls]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "result": "rain"} for call in calls]
    turns = [*USER, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    again = seed_clients.agentary_stream(agentary(shared, provider, "tool2", messages=turns, tools=tools).content)
    assert "rain" in again.text


def test_agentary_takes_the_body_that_it_sends_for_openai(shared: Fleet, provider: str) -> None:
    items = [
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    tools = [{"type": "function", "name": "get_weather", "parameters": WEATHER}]
    body = {"model": "demo-d0", "stream": False, "input": items, "tools": tools, "max_new_tokens": 50}

    response = shared.client.post(f"{shared.url}/api/{provider}", json=body, headers=headers_of())

    assert "rain" in seed_clients.agentary_whole(response.content).text


def test_agentary_does_not_show_what_the_model_thinks(shared: Fleet, provider: str) -> None:
    assert seed_clients.agentary_stream(agentary(shared, provider, "think5-n3").content).text == answer(3)


@pytest.mark.parametrize(
    ("provider", "body", "key", "status", "error", "detail"),
    [
        ("openai", {}, "sk-wrong", 401, "Unauthorized", "not valid"),
        ("openai", {}, "", 401, "Unauthorized", "No API key"),
        ("groq", {}, None, 400, "Invalid model", "GROQ_API_KEY"),
        ("openai", {"model": "demo-e404"}, None, 400, "Invalid model", ""),
        ("nobody", {}, None, 404, "There is no provider 'nobody'.", "openai"),
        ("openai", {"messages": []}, None, 400, "messages must not be empty.", "messages"),
        ("openai", {"model": "demo-e400"}, None, 400, "", ""),
    ],
)
def test_agentary_errors_before_the_stream_are_json(
    shared: Fleet, provider: str, body: dict[str, Any], key: str | None, status: int, error: str, detail: str
) -> None:
    response = agentary(shared, provider, "n3", key=key, **body)

    assert response.status_code == status
    fields = response.json()
    assert fields["error"].startswith(error)
    assert fields["type"]
    assert detail in fields["message"]


def test_agentary_error_in_the_stream_is_its_last_line(shared: Fleet, provider: str) -> None:
    response = agentary(shared, provider, "err3-d20")

    assert response.status_code == 200
    assert b"[DONE]" not in response.content
    assert b'"isLast"' not in response.content
    with pytest.raises(SeedError) as caught:
        seed_clients.agentary_stream(response.content)
    assert caught.value.status_code
    assert caught.value.status_code >= 500


# /v1/chat


def test_unified_answers_whole_by_default(shared: Fleet, provider: str) -> None:
    response = unified(shared, provider, "n12")

    seen = seed_clients.unified_whole(response.content)
    assert (seen.text, seen.finish, seen.output_tokens) == (answer(12), "stop", 12)
    assert response.json()["provider"] == provider
    assert response.json()["cost"]["estimated_cost_usd"] is None


@pytest.mark.parametrize(("query", "more"), [("?stream=true", {}), ("", {"stream": True})])
def test_unified_streams_where_query_or_body_say_so(shared: Fleet, provider: str, query: str, more: dict[str, Any]) -> None:
    response = unified(shared, provider, "n120", query, **more)

    assert response.headers["content-type"].startswith("text/event-stream")
    seen = seed_clients.unified_stream(response.content)
    assert (seen.text, seen.finish, seen.output_tokens) == (answer(120), "stop", 120)
    assert seen.input_tokens


def test_unified_is_read_by_the_python_example(shared: Fleet, provider: str) -> None:
    body = {"provider": provider, "model": "demo-n3-d0", "messages": USER}
    with shared.client.stream("POST", f"{shared.url}/v1/chat?stream=true", json=body, headers=headers_of()) as response:
        printed = seed_clients.as_the_python_example(response.read().split(b"\n"))

    assert "".join(data["content"] for data in printed[:-1]) == answer(3)
    assert printed[-1]["usage"]["completion_tokens"] == 3


def test_unified_is_read_by_the_documented_javascript(shared: Fleet, tmp_path: Path) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("no node: install nodejs")
    page = (ROOT / "docs" / "dialects" / "unified.md").read_text()
    [code] = re.findall(r"```javascript\n(.*?)```", page, re.DOTALL)
    client = tmp_path / "client.mjs"
    client.write_text(f'const url = "{shared.url}";\n' + code.replace("sk-demo", KEY))

    printed = subprocess.run([node, client], capture_output=True, text=True, timeout=120, check=True).stdout

    assert printed.startswith("A\n sluice\n is\n{")
    assert "estimated_cost_usd: null" in printed


def test_unified_calls_tools_and_takes_their_results(shared: Fleet, provider: str) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
    streamed = seed_clients.unified_stream(unified(shared, provider, "tool", stream=True, tools=tools).content)
    response = unified(shared, provider, "tool", tools=tools, tool_choice="required")

    assert [(name, set(arguments)) for _, name, arguments in streamed.calls] == [("get_weather", {"city"})]
    assert seed_clients.unified_whole(response.content).finish == "tool_calls"

    message = response.json()["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
    again = unified(shared, provider, "tool", messages=[*USER, message, result], tools=tools)
    assert "rain" in seed_clients.unified_whole(again.content).text


def test_unified_prices_what_it_knows(shared: Fleet, priced: Fleet) -> None:
    listed = unified(shared, "openai", "n3", model="gpt-4o-2024-11-20", max_tokens=4).json()
    own = unified(priced, "demo", "n10").json()

    tokens = listed["usage"]
    expected = (tokens["prompt_tokens"] * Decimal("2.5"), tokens["completion_tokens"] * 10)
    assert listed["cost"]["input_cost_usd"] == f"{expected[0] / 1_000_000:.6f}"
    assert listed["cost"]["output_cost_usd"] == f"{expected[1] / 1_000_000:.6f}"
    assert listed["cost"]["estimated_cost_usd"] == f"{sum(expected) / 1_000_000:.6f}"
    assert own["cost"]["output_cost_usd"] == "0.020000"


def test_unified_tells_what_is_wrong_with_a_body(shared: Fleet) -> None:
    response = shared.client.post(f"{shared.url}/v1/chat", json={"provider": "closedai"}, headers=headers_of())

    assert response.status_code == 400
    fields = response.json()
    assert fields["error"] == "Invalid request"
    assert fields["details"]["model"] == fields["details"]["messages"] == {"_errors": ["Required"]}
    assert fields["details"]["provider"]["_errors"]
    example = fields["expectedSchema"]["example"]
    right = shared.client.post(f"{shared.url}/v1/chat", json={**example, "model": "demo-n3-d0"}, headers=headers_of())
    assert seed_clients.unified_whole(right.content).text == answer(3)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [(b"{", {}, 400), (b"{}", {"content-type": "text/plain"}, 415), (b"{}", {"authorization": "Bearer sk-wrong"}, 401)],
)
def test_unified_refuses_in_its_own_shape(shared: Fleet, content: bytes, headers: dict[str, str], status: int) -> None:
    asked = {**headers_of(), "content-type": "application/json", **headers}
    response = shared.client.post(f"{shared.url}/v1/chat", content=content, headers=asked)

    assert response.status_code == status
    assert isinstance(response.json()["error"], str)
    assert response.headers["x-request-id"]


def test_unified_error_in_the_stream_is_its_last_event(shared: Fleet, provider: str) -> None:
    response = unified(shared, provider, "err3-d20", stream=True)

    assert response.status_code == 200
    events = sse_events(response.text)
    assert [event.name for event in events] == ["chunk"] * (len(events) - 1) + ["error"]
    assert len(events) == 4 or provider == "demo"  # It takes a prefill: its answers go on, and break off again.
    assert events[-1].fields["error"]


# Both


@pytest.mark.parametrize(("path", "shape"), [("/v1/chat", "code"), ("/api/openai", "type")])
def test_wrong_method_is_refused_in_the_paths_own_shape(shared: Fleet, path: str, shape: str) -> None:
    response = shared.client.get(shared.url + path, headers=headers_of())

    assert response.status_code == 405
    assert isinstance(response.json()["error"], str)
    assert shape in response.json()


@pytest.mark.parametrize("path", ["/v1/chat?stream=true", "/api/openai", "/api/anthropic"])
def test_leaving_closes_the_upstream(priced: Fleet, path: str) -> None:
    priced.reset_demo()
    raw = orjson.dumps({"provider": "openai", "model": "demo-n100000-d20", "messages": USER})
    with RawClient(priced.ports[0]) as client:
        client.send("POST", path, headers_of(content_type="application/json", content_length=str(len(raw))), raw)
        client.read_until(b"data: ")

    until(lambda: priced.stats()["aborted"] == 1 and priced.stats()["open"] == 0, "the upstream is closed")


@pytest.mark.parametrize("path", ["/v1/chat?stream=true", "/api/openai"])
def test_stream_may_be_read_again_with_ids(shared: Fleet, path: str) -> None:
    body = {"provider": "openai", "model": "demo-n5-d0", "messages": USER}
    first = shared.client.post(shared.url + path, json=body, headers=headers_of(x_disconnect="grace=60"))

    url = f"{shared.url}/v1/generations/{first.headers['x-generation-id']}"
    again = shared.client.get(url, headers=headers_of())

    assert [event.data for event in sse_events(again.text)] == [event.data for event in sse_events(first.text)]
    assert all(event.id for event in sse_events(again.text))
