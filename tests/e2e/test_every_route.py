"""What holds on every route that generates, whichever its dialect? What a browser, a slow answer and a late failure need."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from demo_provider.script import answer
from tests.support.clients import seed_clients
from tests.support.clients.routes import ORIGIN, ROUTES, Route
from tests.support.fleet import KEY, Fleet, fleet, sse_events

PROVIDERS = ("openai", "anthropic", "google-ai-studio", "cohere")
SLOW = "demo-n3-f250-d250"  # Slow to begin, and slow in the middle.


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that commits to 200 at once, and says often that it is still there."""
    settings = {"SLUICE_CORS_ORIGINS": ORIGIN, "SLUICE_KEEP_ALIVE_S": "0.1", "SLUICE_STATUS_HOLD_S": "0.1"}
    with fleet(tmp_path_factory.mktemp("hasty"), **settings) as found:
        yield found


@pytest.fixture(params=ROUTES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def route(name: str) -> Route:
    return ROUTES[name]


# Browsers

ASKED = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,x-stainless-helper-method,"
    "anthropic-version,anthropic-dangerous-direct-browser-access"
)


def test_a_preflight_gets_all_the_headers_that_it_asks_for(hasty: Fleet, route: Route) -> None:
    url = hasty.url + route.path.replace("{provider}", "demo")
    asked = {"access-control-request-method": "POST", "access-control-request-headers": ASKED}

    response = hasty.client.options(url, headers={"origin": ORIGIN, **asked})

    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == ASKED
    assert response.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    ("spec", "key", "more", "statuses"),
    [
        ("demo-n1-d0", KEY, {}, {200}),
        ("demo-n1-d0", KEY, {"temperature": "hot"}, {400}),
        ("demo-n1-d0", "sk-wrong", {}, {401}),
        ("demo-e400", KEY, {}, {400}),
        ("demo-e401", KEY, {}, {502}),
    ],
    ids=["answer", "bad-field", "wrong-key", "refused-upstream", "our-key-refused-upstream"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_every_answer_can_be_read_and_traced(
    hasty: Fleet, route: Route, spec: str, key: str, more: dict[str, Any], statuses: set[int], stream: bool
) -> None:
    response = route.post(hasty, "openai", spec, stream=stream, key=key, **more)

    assert response.status_code in statuses
    assert response.headers["x-request-id"] == response.headers["request-id"] != ""
    assert response.headers["access-control-allow-origin"] == ORIGIN
    exposed = {each.strip() for each in response.headers["access-control-expose-headers"].split(",")}
    assert {"x-request-id", "request-id", "retry-after"} <= exposed
    if response.status_code != 200:
        assert response.headers["content-type"].startswith("application/json")


# Slow answers


def lines_of(response: httpx.Response) -> list[str]:
    return response.text.split("\n")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_keep_alive_is_one_comment_line_between_events(hasty: Fleet, name: str, route: Route, provider: str) -> None:
    lines = lines_of(route.post(hasty, provider, SLOW, stream=True))

    comments = [i for i, line in enumerate(lines) if line.startswith(":")]
    assert comments[0] == 0
    assert {lines[i] for i in comments} == {": keep-alive"}
    assert comments[-1] > next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert not [i for i in comments if lines[i + 1] == ""]
    assert not [i for i in comments if i > 0 and lines[i - 1] != "" and not lines[i - 1].startswith(":")]
    assert text_of(name, "\n".join(line for line in lines if not line.startswith(":"))) == answer(3)


def text_of(name: str, text: str) -> str:
    match name:
        case "agentary":
            return seed_clients.agentary_stream(text.encode()).text
        case "unified":
            return seed_clients.unified_stream(text.encode()).text
        case "openai-responses":
            deltas = [event.fields for event in sse_events(text) if event.name == "response.output_text.delta"]
            return "".join(event["delta"] for event in deltas)
        case "anthropic-messages":
            deltas = [event.fields for event in sse_events(text) if event.name == "content_block_delta"]
            return "".join(event["delta"]["text"] for event in deltas)
        case _:
            chunks = [event.fields for event in sse_events(text) if event.data != "[DONE]"]
            return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_agentary_js_reads_keep_alives(hasty: Fleet) -> None:
    response = ROUTES["agentary"].post(hasty, "anthropic", SLOW, stream=True)

    assert seed_clients.as_agentary_js(response.content) == (answer(3), 3)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("policy", ["stop", "grace=5"])
def test_openais_sdk_reads_keep_alives_and_ids_of_responses(hasty: Fleet, provider: str, policy: str) -> None:
    with openai.OpenAI(api_key=KEY, base_url=f"{hasty.url}/v1", max_retries=0) as client:
        headers = {"x-disconnect": policy}
        events = list(client.responses.create(model=f"{provider}/{SLOW}", input="hi", stream=True, extra_headers=headers))

    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == answer(3)
    assert [event.sequence_number for event in events] == list(range(len(events)))


# Failures once the 200 is out

SAYS_THE_END = ("[DONE]", "message_stop", "response.completed", "event: done", '"isLast"')


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("spec", ["demo-e400-f600", "demo-cut3-d1", "demo-err3-d1"])
def test_a_failure_after_the_200_is_never_a_clean_end(hasty: Fleet, route: Route, provider: str, spec: str) -> None:
    response = route.post(hasty, provider, spec, stream=True)

    if response.status_code == 200:
        assert "error" in response.text.strip().split("\n\n")[-1]
        assert not [mark for mark in SAYS_THE_END if mark in response.text]
    else:
        assert "f600" not in spec  # Those come after the 200 for sure.
        assert response.status_code >= 500


# Ids


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_has_one_id_and_no_other_answer_has_it(hasty: Fleet, provider: str) -> None:
    for name, fields in (
        ("openai-chat", ("id",)),
        ("anthropic-messages", ("message", "id")),
        ("openai-responses", ("response", "id")),
    ):
        found = [ids_in(ROUTES[name].post(hasty, provider, "demo-n3-d0", stream=True).text, fields) for _ in range(2)]

        assert [len(ids) for ids in found] == [1, 1]
        assert not found[0] & found[1]


def ids_in(text: str, fields: tuple[str, ...]) -> set[str]:
    found = set()
    for event in sse_events(text):
        value: Any = event.fields if event.data != "[DONE]" else None
        for each in fields:
            value = value.get(each) if isinstance(value, dict) else None
        found |= {value} if value is not None else set()
    return found
