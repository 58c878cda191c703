"""What do real clients demand? One test for each fact that was captured from them; see the clients' own names in the tests."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from demo_provider.script import answer
from tests.support.clients import sdk_clients
from tests.support.fleet import (
    CHAT,
    DIALECTS,
    FAMILY_OF,
    KEY,
    MESSAGES,
    PATH_OF,
    Fleet,
    RawClient,
    body_of,
    fleet,
    headers_of,
    sse_events,
)

PROVIDERS = ("openai", "anthropic")
ORIGIN = "https://app.example"
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that browsers of one origin may call, quick to commit to 200 and to say that it is still there."""
    settings = {
        "SLUICE_CORS_ORIGINS": f"{ORIGIN},https://other.example",
        "SLUICE_KEEP_ALIVE_S": "0.1",
        "SLUICE_STATUS_HOLD_S": "0.1",
    }
    with fleet(tmp_path_factory.mktemp("browser"), **settings) as found:
        yield found


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


# Claude Code


def _claude_code_body(model: str) -> dict[str, Any]:
    """The shape of what Claude Code sends: nearly 80 kB, most of it tools."""
    tools = [
        {
            "name": f"Tool{i}",
            "description": "Does something. " * 150,
            "input_schema": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {"file_path": {"type": "string", "description": "The absolute path"}},
                "required": ["file_path"],
                "additionalProperties": False,
            },
        }
        for i in range(24)
    ]
    cached = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": model,
        "max_tokens": 64000,
        "system": [{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Be careful. " * 900, **cached}],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<reminder>be brief</reminder>"}, {"type": "text", "text": "hi"}],
            },
            {"role": "assistant", "content": "hello"},
            {"role": "system", "content": "The date has changed."},
            {"role": "user", "content": [{"type": "text", "text": "go on", **cached}]},
        ],
        "tools": tools,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})},
        "stream": True,
    }


def _as_claude_code(found: Fleet, body: dict[str, Any]) -> httpx.Response:
    headers = headers_of(
        anthropic_version="2023-06-01",
        anthropic_beta="claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
        anthropic_dangerous_direct_browser_access="true",
        x_app="cli",
        user_agent="claude-cli/2.1.0 (external, cli)",
    )
    return found.client.post(f"{found.url}/v1/messages?beta=true", json=body, headers=headers)


def test_claude_code_asks_for_the_root_without_a_key_first(shared: Fleet):
    response = shared.client.head(f"{shared.url}/")

    assert (response.status_code, response.content) == (200, b"")


def test_claude_codes_request_reaches_anthropic_as_it_came(shared: Fleet):
    body = _claude_code_body("anthropic/demo-n9-d1")
    assert len(json.dumps(body)) > 70_000

    response = _as_claude_code(shared, body)

    assert sdk_clients.anthropic_stream(response.content).text == answer(9)
    request = shared.upstream_requests()[-1]
    # A system message may not stand before the user's (workers/providers/anthropic/passed.py). All else is as it came.
    messages = [{**message, "role": "user"} if message["role"] == "system" else message for message in body["messages"]]
    assert request["body"] == {**body, "model": "demo-n9-d1", "messages": messages}
    assert request["headers"]["anthropic-beta"].startswith("claude-code-20250219,")
    assert "authorization" not in request["headers"]  # The gateway's key is not the upstream's.


def test_claude_codes_request_works_on_another_family(shared: Fleet):
    response = _as_claude_code(shared, _claude_code_body("openai/demo-tool-d1"))

    seen = sdk_clients.anthropic_stream(response.content)
    assert [call[1:] for call in seen.calls] == [("Tool0", {"file_path": "demo"})]
    sent = shared.upstream_requests()[-1]["body"]
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "system", "user"]
    assert len(sent["tools"]) == 24
    assert sent["max_completion_tokens"] == 64000
    assert "reasoning_effort" not in sent  # Most models of other families refuse it, and the client always sends it.


def test_claude_code_sends_the_whole_request_again_without_stream(shared: Fleet, provider: str):
    broken = _as_claude_code(shared, _claude_code_body(f"{provider}/demo-cut5-d1"))
    body = _claude_code_body(f"{provider}/demo-n9-d1")
    del body["stream"]

    again = _as_claude_code(shared, body)

    assert sse_events(broken.text)[-1].name == "error"
    assert sdk_clients.anthropic_whole(again.content).text == answer(9)


# Keys and headers


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_either_familys_key_header_is_taken_on_either_route(shared: Fleet, dialect: str, header: str):
    headers = {header: f"Bearer {KEY}" if header == "authorization" else KEY}

    response = shared.client.post(shared.url + PATH_OF[dialect], json=body_of(dialect, "demo-n2-d0"), headers=headers)

    assert response.status_code == 200


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "from-tomorrow", None])
def test_any_anthropic_version_is_taken_and_passed_on(shared: Fleet, version: str | None):
    headers = {"anthropic_version": version} if version else {}

    response = shared.post(
        MESSAGES, body_of(MESSAGES, "anthropic/demo-n2-d0"), **headers, anthropic_beta="unheard-of-2040-01-01"
    )

    assert response.status_code == 200
    sent = shared.upstream_requests()[-1]["headers"]
    assert (sent["anthropic-version"], sent["anthropic-beta"]) == (version or "2023-06-01", "unheard-of-2040-01-01")


def test_the_sdks_own_headers_do_not_reach_the_upstream(shared: Fleet, dialect: str):
    shared.post(
        dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n2-d0"), x_stainless_lang="python", cookie="a=b", x_secret="c"
    )

    assert not {"x-stainless-lang", "cookie", "x-secret", "x-forwarded-for"} & shared.upstream_requests()[-1]["headers"].keys()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/livez", 200),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/messages", 405),
        ("POST", "/v1/chat/completions", 415),
        ("GET", "/v1/generations/gen_0", 404),
        ("HEAD", "/", 200),
    ],
)
def test_every_response_has_both_request_ids(shared: Fleet, method: str, path: str, status: int):
    response = shared.client.request(method, shared.url + path, headers=headers_of())

    assert response.status_code == status
    assert response.headers["x-request-id"] == response.headers["request-id"] != ""


def test_a_clients_own_request_id_is_kept_if_it_is_one(shared: Fleet, dialect: str):
    def id_of(sent: str) -> str:
        return shared.post(dialect, body_of(dialect, "demo-n1-d0"), x_request_id=sent).headers["x-request-id"]

    assert id_of("trace-1.a:b_C") == "trace-1.a:b_C"
    assert id_of("x" * 129).startswith("req_")
    assert id_of('"forged" line').startswith("req_")


# Browsers

ASKED = "authorization,content-type,x-stainless-lang,x-stainless-os,anthropic-version,anthropic-dangerous-direct-browser-access"


def test_a_preflight_reflects_the_headers_that_it_asks_for(browser: Fleet, dialect: str):
    response = browser.client.options(
        browser.url + PATH_OF[dialect],
        headers={"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": ASKED},
    )

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-headers"] == ASKED
    assert "POST" in response.headers["access-control-allow-methods"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_preflight_allows_coming_back_and_stopping(browser: Fleet, method: str):
    response = browser.client.options(
        f"{browser.url}/v1/generations/gen_0", headers={"origin": ORIGIN, "access-control-request-method": method}
    )

    assert response.status_code == 200


def test_a_strangers_origin_is_not_let_in(browser: Fleet, dialect: str):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = browser.client.options(browser.url + PATH_OF[dialect], headers=headers)
    response = browser.post(dialect, body_of(dialect, "demo-n1-d0"), origin="https://evil.example")

    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("more", "key", "status"),
    [
        ({}, KEY, 200),
        ({"stream": True}, KEY, 200),
        ({"messages": []}, KEY, 400),
        ({}, "sk-wrong", 401),
        ({"model": "x"}, KEY, 404),
    ],
)
def test_browsers_may_read_answers_and_errors(browser: Fleet, dialect: str, more: dict[str, Any], key: str, status: int):
    body = {**body_of(dialect, "demo-n1-d0"), **more}

    response = browser.post(dialect, body, key=key, origin=ORIGIN)

    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == ORIGIN
    exposed = {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}
    assert {"x-request-id", "request-id", "retry-after", "x-generation-id"} <= exposed


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/messages"])
def test_browsers_may_read_errors_of_no_dialect(browser: Fleet, path: str):
    response = browser.client.put(browser.url + path, headers={"origin": ORIGIN})

    assert response.headers["access-control-allow-origin"] == ORIGIN


# Streams


def test_a_streams_headers_keep_proxies_from_holding_it_back(shared: Fleet, dialect: str, provider: str):
    response = shared.post(dialect, body_of(dialect, f"{provider}/demo-n2-d0", stream=True), accept_encoding="gzip, br, zstd")

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert "content-length" not in response.headers


# An answer that is slow to begin and slow in the middle: comments before the first event, and between events.
SLOW = "demo-n3-f250-d250"


@pytest.mark.parametrize("policy", ["stop", "grace=5"])
def test_a_keep_alive_is_a_comment_without_a_blank_line(browser: Fleet, dialect: str, provider: str, policy: str):
    with browser.client.stream(
        "POST",
        browser.url + PATH_OF[dialect],
        json=body_of(dialect, f"{provider}/{SLOW}", stream=True),
        headers=headers_of(x_disconnect=policy),
    ) as response:
        text = response.read().decode()

    lines = text.split("\n")
    comments = [i for i, line in enumerate(lines) if line.startswith(":")]
    assert comments[0] == 0
    assert comments[-1] > next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert {lines[i] for i in comments} == {": keep-alive"}
    # A blank line after a comment would be an event of its own to openai-python, once it has seen an id.
    assert not [i for i in comments if lines[i + 1] == ""]
    # Only between events: what comes before a comment is another one, or the blank line that ends an event.
    assert not [i for i in comments if i > 0 and lines[i - 1] != "" and not lines[i - 1].startswith(":")]
    assert "".join(_texts(dialect, text)) == answer(3)


def _texts(dialect: str, text: str) -> list[str]:
    events = [event.fields for event in sse_events(text) if event.data != "[DONE]"]
    if dialect == MESSAGES:
        return [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
    return [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]


@pytest.mark.parametrize("policy", ["stop", "grace=5"])
def test_openais_sdk_reads_keep_alives_and_ids(browser: Fleet, provider: str, policy: str):
    with openai.OpenAI(api_key=KEY, base_url=f"{browser.url}/v1", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=f"{provider}/{SLOW}", messages=USER, stream=True, extra_headers={"x-disconnect": policy}
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer(3)


@pytest.mark.parametrize("policy", ["stop", "grace=5"])
def test_anthropics_sdk_reads_keep_alives_and_ids(browser: Fleet, provider: str, policy: str):
    with (
        anthropic.Anthropic(api_key=KEY, base_url=browser.url, max_retries=0) as client,
        client.messages.stream(
            model=f"{provider}/{SLOW}", messages=USER, max_tokens=99, extra_headers={"x-disconnect": policy}
        ) as stream,
    ):
        assert stream.get_final_text() == answer(3)


def test_a_failure_after_the_200_is_an_error_event(browser: Fleet, dialect: str):
    response = browser.post(dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-e400-f600", stream=True))

    assert response.status_code == 200
    assert response.text.startswith(": keep-alive\n")
    (event,) = sse_events(response.text)
    assert "asked to reject" in event.fields["error"]["message"]
    if dialect == MESSAGES:
        assert (event.name, event.fields["type"]) == ("error", "error")


def test_an_upstream_that_begins_after_the_200_is_read_as_any_other(browser: Fleet, dialect: str):
    response = browser.post(dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n4-f600-d0", stream=True))

    assert "".join(_texts(dialect, response.text)) == answer(4)


def test_a_client_that_may_come_back_gets_ids_and_one_delay(shared: Fleet, dialect: str, provider: str):
    body = body_of(dialect, f"{provider}/demo-n9-d2", stream=True)

    text = shared.post(dialect, body, x_disconnect="grace=5").text
    plain = shared.post(dialect, body).text

    blocks = text.split("\n\n")[:-1]
    ids = [re.match(r"id: (\d+-\d+\.\d+)\n", block) for block in blocks]
    assert all(ids)
    assert len({match[1] for match in ids if match}) == len(blocks)
    # The delay is on the first event: a block of its own would be an event to some clients.
    assert ["\nretry: " in block for block in blocks] == [True] + [False] * (len(blocks) - 1)
    assert "\nid:" not in plain
    assert "retry:" not in plain
    assert _texts(dialect, text) == _texts(dialect, plain)


def test_every_event_is_one_that_the_vendors_clients_know(shared: Fleet, dialect: str, provider: str):
    for spec in ("n5", "think3-n3", "tool2", "refuse"):
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        tool = {"function": {"name": "x", "parameters": schema}, "type": "function"}
        tools = [tool if dialect == CHAT else {"name": "x", "input_schema": schema}]
        text = shared.post(dialect, body_of(dialect, f"{provider}/demo-d0-{spec}", stream=True, tools=tools)).text
        events = sse_events(text)
        if dialect == CHAT:
            assert events[-1].data == "[DONE]"
            for event in events[:-1]:
                assert not event.name
                ChatCompletionChunk.model_validate(event.fields, strict=False)
        else:
            assert {event.name for event in events} <= {
                *("message_start", "content_block_start", "ping", "content_block_delta"),
                *("content_block_stop", "message_delta", "message_stop"),
            }
            assert all(event.name == event.fields["type"] for event in events)


def test_langchain_reads_the_usage_from_message_delta_alone(shared: Fleet, provider: str):
    text = shared.post(MESSAGES, body_of(MESSAGES, f"{provider}/demo-n6-d0", stream=True)).text

    (usage,) = [event.fields["usage"] for event in sse_events(text) if event.name == "message_delta"]
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] == 6


def test_opencode_asks_twice_at_once(shared: Fleet, dialect: str):
    bodies = [body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n{tokens}-d2", stream=True) for tokens in (5, 30)]

    async def ask_both() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            url = shared.url + PATH_OF[dialect]
            return await asyncio.gather(*(client.post(url, json=body, headers=headers_of()) for body in bodies))

    title, text = asyncio.run(ask_both())

    assert ("".join(_texts(dialect, title.text)), "".join(_texts(dialect, text.text))) == (answer(5), answer(30))


def test_a_request_may_come_byte_by_byte(shared: Fleet, dialect: str):
    body = json.dumps(body_of(dialect, "demo-n3-d0")).encode()
    headers = headers_of(content_type="application/json", content_length=str(len(body)))
    with RawClient(shared.ports[0]) as client:
        client.send("POST", PATH_OF[dialect], headers)
        for i in range(len(body)):
            client.send_bytes(body[i : i + 1])

        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_ten_requests_take_one_connection(shared: Fleet, dialect: str):
    body = json.dumps(body_of(dialect, "demo-n3-d0", stream=True)).encode()
    headers = headers_of(content_type="application/json", content_length=str(len(body)))
    with RawClient(shared.ports[0]) as client:
        for i in range(10):
            client.send("POST", PATH_OF[dialect], headers, body)
            client.read_until(b"\r\n0\r\n\r\n", times=i + 1)

    assert client.received.count(b"HTTP/1.1 200") == 10
