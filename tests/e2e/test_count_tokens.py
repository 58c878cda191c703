"""How are tokens counted, for a client of Anthropic's: by the provider, or by an estimate that says so?"""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.support.fleet import KEY, Fleet, headers_of, until

PATH = "/v1/messages/count_tokens"
USER: Any = [{"role": "user", "content": "one two three"}]
TOOLS: Any = [{"name": "get_weather", "description": "Of a city.", "input_schema": {"type": "object", "properties": {}}}]


@pytest.fixture
def client(shared: Fleet) -> Iterator[anthropic.Anthropic]:
    shared.reset_demo()
    with anthropic.Anthropic(api_key=KEY, base_url=shared.url, max_retries=0) as found:
        yield found


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_provider_that_counts_is_asked(client: anthropic.Anthropic, shared: Fleet, provider: str):
    raw = client.messages.with_raw_response.count_tokens(
        model=f"{provider}/demo-count", messages=USER, system="Be brief.", tools=TOOLS
    )

    (asked,) = shared.upstream_requests()
    assert asked["path"] == {"anthropic": PATH, "openai": "/v1/responses/input_tokens"}[provider]
    assert asked["body"]["model"] == "demo-count"
    assert "max_tokens" not in asked["body"]
    # The demo provider counts words: those of all strings in what it was sent.
    assert raw.parse().input_tokens > 5
    assert "x-sluice-estimated" not in raw.headers
    assert raw.headers["x-generation-id"].startswith("gen_")


def test_another_provider_is_not_asked_and_the_answer_says_so(client: anthropic.Anthropic, shared: Fleet):
    raw = client.messages.with_raw_response.count_tokens(model="demo", messages=[{"role": "user", "content": "x" * 400}])

    assert raw.parse().input_tokens == 104
    assert raw.headers["x-sluice-estimated"] == "true"
    assert shared.upstream_requests() == []


def test_a_server_without_the_path_is_not_held_to_it(client: anthropic.Anthropic):
    # Its refusal does not name the model, so it is the path that is unknown.
    raw = client.messages.with_raw_response.count_tokens(model="openai/demo-e501", messages=USER)

    assert raw.headers["x-sluice-estimated"] == "true"


def test_query_and_headers_of_claude_code_do_no_harm(client: anthropic.Anthropic, shared: Fleet):
    betas = {"anthropic-beta": "token-counting-2024-11-01,other", "anthropic-version": "2026-10-21"}
    body = {"model": "anthropic/demo", "messages": USER, "max_tokens": 9, "stream": True}

    answer = shared.client.post(f"{shared.url}{PATH}?beta=true", json=body, headers={**headers_of(), **betas})

    assert answer.json().keys() == {"input_tokens"}
    (asked,) = shared.upstream_requests()
    assert betas.items() <= {name.lower(): value for name, value in asked["headers"].items()}.items()
    assert asked["body"] == {"model": "demo", "messages": USER}


@pytest.mark.parametrize(
    ("model", "error", "status", "type_"),
    [
        ("anthropic/demo-e400", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("anthropic/demo-e404", anthropic.NotFoundError, 404, "not_found_error"),
        ("openai/demo-e404", anthropic.NotFoundError, 404, "not_found_error"),
        ("anthropic/demo-e429-ra1-sdk", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("nobody-knows-it", anthropic.NotFoundError, 404, "not_found_error"),
    ],
)
def test_errors_have_anthropics_shape(
    client: anthropic.Anthropic, model: str, error: type[anthropic.APIStatusError], status: int, type_: str
):
    with pytest.raises(error) as caught:
        client.messages.count_tokens(model=model, messages=USER)

    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == type_


def test_a_bad_body_names_its_field(client: anthropic.Anthropic):
    with pytest.raises(anthropic.BadRequestError, match="messages must not be empty"):
        client.messages.count_tokens(model="demo", messages=[])


def test_a_failed_count_is_tried_again(client: anthropic.Anthropic, shared: Fleet):
    counted = client.messages.count_tokens(model="anthropic/demo-e503x1", messages=USER)

    assert counted.input_tokens
    assert len(shared.upstream_requests()) == 2


def test_nothing_is_billed(client: anthropic.Anthropic, shared: Fleet):
    client.messages.count_tokens(model="anthropic/demo-billing", messages=USER)

    def ended() -> list[dict[str, Any]]:
        lines = [line for worker in shared.workers for line in worker.events("generation_ended")]
        return [line for line in lines if line["model"] == "anthropic/demo-billing"]

    (line,) = until(ended, "the count is in the log")
    assert (line["outcome"], line["input_tokens"], line["output_tokens"]) == ("completed", None, None)
