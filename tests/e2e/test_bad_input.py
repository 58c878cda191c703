"""What do clients get for requests that cannot be served, and for upstreams that fail?

Everything that is wrong with a request is said before anything is enqueued, in the dialect's own shape. Failures of the
upstream keep their meaning: those that may pass are tried three times, unseen while nothing has been sent.
"""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from common.config.settings import Settings
from demo_provider.script import answer
from tests.support.fleet import (
    CHAT,
    DIALECTS,
    FAMILY_OF,
    MESSAGES,
    PATH_OF,
    Fleet,
    RawClient,
    body_of,
    fleet,
    headers_of,
    sse_events,
    until,
)

PROVIDERS = ("openai", "anthropic")
JSON = {"content-type": "application/json"}
ANTHROPIC_TYPE_OF = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API with narrow limits and without Anthropic's key. It has no worker: whatever is accepted waits."""
    limits = {"SLUICE_BODY_BYTES_MAX": "5000", "SLUICE_WAITING_MAX": "1", "SLUICE_JSON_DEPTH_MAX": "10"}
    with fleet(tmp_path_factory.mktemp("strict"), workers=0, ANTHROPIC_API_KEY="", **limits) as found:
        yield found


@dataclass
class Untouched:
    """What must be as it was once a request has been refused."""

    fleet: Fleet
    keys: set[bytes]
    accepted: float
    pid: int

    @classmethod
    def of(cls, found: Fleet) -> "Untouched":
        return cls(found, _work_in(found), _accepted(found), found.apis[0].pid)

    def check(self) -> None:
        assert _work_in(self.fleet) <= self.keys  # Fewer: those of earlier tests expire.
        assert _accepted(self.fleet) == self.accepted
        assert self.fleet.apis[0].is_alive


def _work_in(found: Fleet) -> set[bytes]:
    """The keys of all generations and jobs."""
    return {key for key in found.redis.scan_iter(count=1000) if b"gen_" in key}


def _accepted(found: Fleet) -> float:
    return sum(n for name, n in found.metrics(found.ports[0]).items() if name.startswith("sluice_generations_accepted_total"))


def _check_error(response: httpx.Response, dialect: str, status: int, *words: str) -> dict[str, Any]:
    """Check a refusal: status, the dialect's shape, a message that has ``words``, both ids. Returns what is under ``error``."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.headers["request-id"] != ""
    body = response.json()
    error = body["error"]
    if dialect == MESSAGES:
        assert body.keys() == {"type", "error", "request_id"}
        assert (body["type"], body["request_id"]) == ("error", response.headers["request-id"])
        assert error["type"] == ANTHROPIC_TYPE_OF.get(status, "api_error" if status >= 500 else "invalid_request_error")
    else:
        assert body.keys() == {"error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"]
        assert error["code"]
    for word in words:
        assert word in error["message"]
    return error


def _check_works(found: Fleet, dialect: str) -> None:
    response = found.post(dialect, body_of(dialect, "demo-n2-d0"))
    assert response.status_code == 200


# The body's fields

USER = {"role": "user", "content": "hi"}
TOOL_CALL = {"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "x", "arguments": "{}"}}]}
BAD_FIELDS: list[tuple[str, dict[str, Any], str, str]] = [
    # The field that is named, what replaces or (None) removes fields of a good body, and what the message says of it.
    *[
        (dialect, more, path, fault)
        for dialect in DIALECTS
        for more, path, fault in [
            ({"model": None}, "model", "must be a string"),
            ({"model": ...}, "model", "is required"),
            ({"model": ""}, "model", "must not be empty"),
            ({"model": 5}, "model", "must be a string"),
            ({"model": ["demo"]}, "model", "must be a string"),
            ({"messages": ...}, "messages", "is required"),
            ({"messages": []}, "messages", "must not be empty"),
            ({"messages": "hi"}, "messages", "must be a list"),
            ({"messages": {}}, "messages", "must be a list"),
            ({"messages": ["hi"]}, "messages.0", "must be an object"),
            ({"messages": [USER, None]}, "messages.1", "must be an object"),
            ({"messages": [{"content": "hi"}]}, "messages.0.role", "is required"),
            ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role", "must be"),
            ({"messages": [{"role": "user"}]}, "messages.0.content", "must be"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "must be"),
            ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0", "must be"),
            ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "messages.0.content.0.type", "must be a string"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "is required"),
            ({"stream": "yes"}, "stream", "must be true or false"),
            ({"stream": 1}, "stream", "must be true or false"),
            ({"max_tokens": 0}, "max_tokens", "must be at least 1"),
            ({"max_tokens": -5}, "max_tokens", "must be at least 1"),
            ({"max_tokens": "many"}, "max_tokens", "must be an integer"),
            ({"max_tokens": 1.5}, "max_tokens", "must be an integer"),
            ({"max_tokens": True}, "max_tokens", "must be an integer"),
            ({"temperature": "hot"}, "temperature", "must be a number"),
            ({"top_p": []}, "top_p", "must be a number"),
            ({"tools": {}}, "tools", "must be a list"),
            ({"tools": [5]}, "tools.0", "must be an object"),
            ({"tool_choice": 5}, "tool_choice", "must be"),
        ]
    ],
    (CHAT, {"messages": [TOOL_CALL]}, "messages.0.tool_calls.0.id", "must be a string"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "is required"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]}, "image_url", "must be"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools.0.function", "is required"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name", "must not be empty"),
    (CHAT, {"stream_options": "usage"}, "stream_options", "must be an object"),
    (CHAT, {"stop": 5}, "stop", "must be"),
    (CHAT, {"stop": [5]}, "stop", "must be"),
    (CHAT, {"n": 0}, "n", "must be at least 1"),
    (CHAT, {"n": 1000}, "n", "must be at most 128"),
    (CHAT, {"response_format": "json"}, "response_format", "must be"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
    (CHAT, {"seed": "x"}, "seed", "must be an integer"),
    (CHAT, {"user": 5}, "user", "must be a string"),
    (MESSAGES, {"max_tokens": ...}, "max_tokens", "is required"),
    (MESSAGES, {"system": 5}, "system", "must be"),
    (MESSAGES, {"system": [5]}, "system.0", "must be"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.source", "must be"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id", "is required"),
    (MESSAGES, {"tools": [{"name": "x"}]}, "tools.0.input_schema", "is required"),
    (MESSAGES, {"tool_choice": {"type": "tool"}}, "tool_choice.name", "is required"),
    (MESSAGES, {"stop_sequences": "x"}, "stop_sequences", "must be a list"),
    (MESSAGES, {"stop_sequences": [5]}, "stop_sequences.0", "must be a string"),
    (MESSAGES, {"metadata": "x"}, "metadata", "must be an object"),
    (MESSAGES, {"thinking": "yes"}, "thinking", "must be an object"),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "must be at least 1"),
    (MESSAGES, {"output_config": 5}, "output_config", "must be an object"),
]


@pytest.mark.parametrize(("dialect", "more", "path", "fault"), BAD_FIELDS)
def test_a_field_of_the_wrong_kind_is_named(shared: Fleet, dialect: str, more: dict[str, Any], path: str, fault: str):
    good = body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n2-d0")
    body = {name: value for name, value in {**good, **more}.items() if value is not ...}
    before = Untouched.of(shared)

    response = shared.post(dialect, body)

    error = _check_error(response, dialect, 400, path, fault)
    if dialect == CHAT:
        assert error["param"].endswith(path)
    before.check()


# The body as a whole

BAD_BODIES = {
    "empty": b"",
    "not JSON": b"hello",
    "cut off": b'{"model": "demo", "messages": [',
    "single quotes": b"{'model': 'demo'}",
    "not a number": b'{"model": "demo", "temperature": NaN}',
    "two documents": b"{}{}",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "nested beyond any parser": b'{"a":' + b"[" * 200_000,
    "a list": b"[]",
    "a string": b'"demo"',
    "null": b"null",
    "a number": b"5",
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_body_that_is_no_json_object_is_refused(shared: Fleet, dialect: str, kind: str):
    before = Untouched.of(shared)

    response = shared.client.post(shared.url + PATH_OF[dialect], content=BAD_BODIES[kind], headers={**headers_of(), **JSON})

    _check_error(response, dialect, 400, "JSON")
    before.check()
    _check_works(shared, dialect)


def test_a_body_that_is_nested_too_deeply_is_refused(shared: Fleet, dialect: str):
    before = Untouched.of(shared)
    deep: Any = "bottom"
    for _ in range(100):
        deep = {"a": [deep]}

    response = shared.post(dialect, body_of(dialect, "demo", metadata=deep))

    _check_error(response, dialect, 400, "64 levels")
    before.check()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_of_another_type_is_refused(shared: Fleet, dialect: str, content_type: str | None):
    before = Untouched.of(shared)
    headers = {**headers_of(), **({"content-type": content_type} if content_type else {})}

    response = shared.client.post(
        shared.url + PATH_OF[dialect], content=orjson.dumps(body_of(dialect, "demo")), headers=headers
    )

    _check_error(response, dialect, 415, "Content-Type: application/json")
    before.check()


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
def test_json_by_another_name_is_json(shared: Fleet, dialect: str, content_type: str):
    body = orjson.dumps(body_of(dialect, "demo-n2-d0"))
    headers = {**headers_of(), "content-type": content_type}

    assert shared.client.post(shared.url + PATH_OF[dialect], content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused(strict: Fleet, dialect: str, is_chunked: bool):
    before = Untouched.of(strict)
    raw = orjson.dumps(body_of(dialect, "demo", text="x" * 6000))
    content = iter([raw[:3000], raw[3000:]]) if is_chunked else raw

    response = strict.client.post(strict.url + PATH_OF[dialect], content=content, headers={**headers_of(), **JSON})

    _check_error(response, dialect, 413, "5000 bytes")
    before.check()


def test_a_body_over_the_limit_is_refused_before_it_is_sent(shared: Fleet, dialect: str):
    before = Untouched.of(shared)
    with RawClient(shared.ports[0]) as client:
        client.send("POST", PATH_OF[dialect], {**headers_of(), **JSON, "content-length": "99999999999"})

        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 413")

    before.check()
    _check_works(shared, dialect)


def test_headers_over_the_limit_are_refused(shared: Fleet, dialect: str):
    before = Untouched.of(shared)

    response = shared.post(dialect, body_of(dialect, "demo"), x_padding="x" * 40_000)

    _check_error(response, dialect, 431, "32768 bytes")
    before.check()
    _check_works(shared, dialect)


# Models


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nobody-knows-it", ("'nobody-knows-it'", "openai/MODEL")),
        ("openai/", ("names a provider but no model",)),
        ("#openai", ("names a provider but no model",)),
        ("elsewhere/gpt-5", ("'elsewhere/gpt-5'", "demo/MODEL")),
        ("x" * 5000, ("x" * 100 + "…",)),
    ],
)
def test_an_unknown_model_is_not_found(shared: Fleet, dialect: str, model: str, words: tuple[str, ...]):
    before = Untouched.of(shared)

    response = shared.post(dialect, body_of(dialect, model))

    error = _check_error(response, dialect, 404, *words)
    assert len(error["message"]) < 500
    before.check()


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "anthropic/claude-sonnet-4-5", "claude-sonnet-4-5#anthropic"])
def test_a_model_without_its_providers_key_names_the_variable_to_set(strict: Fleet, dialect: str, model: str):
    before = Untouched.of(strict)

    response = strict.post(dialect, body_of(dialect, model))

    _check_error(response, dialect, 404, "set ANTHROPIC_API_KEY", "Available: openai/MODEL")
    before.check()


# Keys


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "Authorization: Bearer KEY"),
        ({"authorization": "Bearer"}, "Authorization: Bearer KEY"),
        ({"authorization": "Basic c2stdGVzdDo="}, "Authorization: Bearer KEY"),
        ({"x-api-key": ""}, "x-api-key: KEY"),
        ({"authorization": "Bearer sk-canary-wrong"}, "not valid"),
        ({"authorization": "Bearer sk-tes"}, "not valid"),
        ({"x-api-key": "sk-canary-wrong"}, "not valid"),
        ({"authorization": "Bearer sk-canary-wrong", "x-api-key": "sk-canary-wrong"}, "not valid"),
    ],
)
def test_without_a_valid_key_nothing_is_served(shared: Fleet, dialect: str, headers: dict[str, str], words: str):
    before = Untouched.of(shared)

    response = shared.client.post(shared.url + PATH_OF[dialect], json=body_of(dialect, "demo"), headers=headers)

    _check_error(response, dialect, 401, words)
    assert "canary" not in response.text
    before.check()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-test"},
        {"authorization": "bearer  sk-test"},
        {"x-api-key": "sk-test"},
        {"x-api-key": "sk-other"},
        {"authorization": "Bearer an-oauth-token-of-the-client", "x-api-key": "sk-test"},
    ],
)
def test_a_valid_key_is_taken_from_either_header(shared: Fleet, dialect: str, headers: dict[str, str]):
    response = shared.client.post(shared.url + PATH_OF[dialect], json=body_of(dialect, "demo-n2-d0"), headers=headers)

    assert response.status_code == 200


# Paths, methods, our own headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_not_allowed(shared: Fleet, dialect: str, method: str):
    response = shared.client.request(method, shared.url + PATH_OF[dialect], headers=headers_of())

    _check_error(response, dialect, 405, f"{method} {PATH_OF[dialect]} is not served here. This path takes POST.")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/chats", "/v1/messages/nothing", "/v2/chat/completions", "/%00"])
def test_an_unknown_path_is_not_found(shared: Fleet, path: str):
    response = shared.client.post(shared.url + path, json={}, headers=headers_of())

    _check_error(response, MESSAGES if path.startswith("/v1/messages") else CHAT, 404, "GET /openapi.json")


@pytest.mark.parametrize("value", ["sometimes", "grace", "grace=", "grace=-1", "grace=1.5", "grace=999999", "stop, detach", ""])
def test_an_unknown_policy_is_refused(shared: Fleet, dialect: str, value: str):
    before = Untouched.of(shared)

    response = shared.post(dialect, body_of(dialect, "demo"), x_disconnect=value)

    _check_error(response, dialect, 400, "x-disconnect", "grace=SECONDS", "detach")
    before.check()


# A full queue


def test_a_full_queue_refuses_before_it_enqueues(strict: Fleet, dialect: str):
    with RawClient(strict.ports[0]) as first:
        first.post(dialect, body_of(dialect, "demo"))
        until(lambda: strict.waiting() == 1, "the first request waits")
        jobs = strict.redis.keys("sluice:q:job:*")

        response = strict.post(dialect, body_of(dialect, "demo"))

        _check_error(response, dialect, 529 if dialect == MESSAGES else 503, "Try again in 5 seconds")
        assert response.headers["retry-after"] == "5"
        assert strict.redis.keys("sluice:q:job:*") == jobs
    until(lambda: strict.waiting() == 0, "the place is free again")


# Upstreams that answer with an error

TRIED_AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)
TOLD_STATUS = {401: 502, 403: 502, 408: 504}  # The others keep theirs.
STATUSES = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
CASES = list(itertools.product(DIALECTS, PROVIDERS, (True, False), STATUSES))


@pytest.fixture(scope="module")
def refusals(shared: Fleet) -> dict[tuple[Any, ...], tuple[httpx.Response, int]]:
    """Each case's response, and how many times its upstream was called. All at once: retries wait for seconds."""
    shared.reset_demo()

    async def ask(client: httpx.AsyncClient, case: tuple[str, str, bool, int]) -> httpx.Response:
        dialect, provider, stream, status = case
        spec = f"demo-e{status}" + ("-ra0.2" if status == 429 else "")
        body = body_of(dialect, f"{provider}/{spec}", stream=stream)
        return await client.post(shared.url + PATH_OF[dialect], json=body, headers=headers_of())

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(ask(client, case) for case in CASES))

    responses = asyncio.run(ask_all())

    def ended() -> dict[str, int]:
        lines = [line for worker in shared.workers for line in worker.events("generation_ended")]
        return {line["generation_id"]: line["tries"] for line in lines}

    ids = [response.headers["x-generation-id"] for response in responses]
    until(lambda: set(ids) <= ended().keys(), "all are logged")
    tries = [ended()[id_] for id_ in ids]
    assert shared.stats()["requests"] == sum(tries)  # What the workers say they did is what the upstream saw.
    return {case: (response, n) for case, response, n in zip(CASES, responses, tries, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-on-{case[1]}-{'stream' if case[2] else 'whole'}-{case[3]}")
def test_an_upstreams_error_keeps_its_meaning(refusals: dict[Any, Any], case: tuple[str, str, bool, int]):
    dialect, _, stream, status = case
    response, tries = refusals[case]

    error = _check_error(response, dialect, TOLD_STATUS.get(status, status))
    assert error["message"]
    if stream and tries == 2:
        return  # All at once took so long that the third attempt would have cost the status.
    assert tries == (3 if status in TRIED_AGAIN else 1)
    assert response.headers.get("retry-after") == ("1" if status == 429 else None)


def test_retry_after_is_relayed_up_to_a_cap(tmp_path: Path):
    assert Settings.model_fields["retry_after_max_s"].default == 30
    with fleet(tmp_path, SLUICE_RETRY_AFTER_MAX_S="1") as found:
        response = found.post(CHAT, body_of(CHAT, "openai/demo-e429-ra70", stream=True))

    _check_error(response, CHAT, 429)
    assert response.headers["retry-after"] == "1"


# Upstreams that break


@pytest.fixture(params=itertools.product(DIALECTS, PROVIDERS), ids="-on-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.mark.parametrize("spec", ["err5", "cut5", "end5"])
def test_an_answer_that_breaks_off_ends_with_the_dialects_error_event(shared: Fleet, pair: tuple[str, str], spec: str):
    dialect, provider = pair
    shared.reset_demo()

    # Paced: what breaks off in the read that brings the first token is tried again.
    response = shared.post(dialect, body_of(dialect, f"{provider}/demo-{spec}-d20", stream=True))

    events = sse_events(response.text)
    assert _streamed_text(dialect, events) == answer(5)
    last = events[-1]
    assert last.fields["error"]["message"]
    if dialect == MESSAGES:
        assert (last.name, last.fields["type"]) == ("error", "error")
        assert not [event for event in events if event.name in ("message_stop", "message_delta")]
    else:
        assert last.fields.keys() == {"error"}
        assert "[DONE]" not in response.text
    assert shared.stats()["requests"] == 1


def _streamed_text(dialect: str, events: list[Any]) -> str:
    if dialect == MESSAGES:
        deltas = [event.fields["delta"] for event in events if event.name == "content_block_delta"]
        return "".join(delta.get("text", "") for delta in deltas)
    chunks = [event.fields for event in events if event.data != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", []))


FIRST_TIME = ["e503x1", "dropx1", "cut0x1", "err0x1", "end0x1"]


@pytest.fixture(scope="module")
def mended(shared: Fleet) -> dict[tuple[Any, ...], httpx.Response]:
    """Answers of upstreams that fail once before they have sent output, then work. All at once: retries wait for a second."""
    # Without a stream, nothing has been sent before all has: breaks in the middle are mended too.
    specs = {True: FIRST_TIME, False: [*FIRST_TIME, "cut5x1", "end5x1", "err5x1"]}
    cases = [
        (*pair, stream, spec) for pair in itertools.product(DIALECTS, PROVIDERS) for stream in specs for spec in specs[stream]
    ]

    async def ask(client: httpx.AsyncClient, case: tuple[Any, ...]) -> httpx.Response:
        dialect, provider, stream, spec = case
        # A name of its own for each case: the demo counts turns by model.
        model = f"{provider}/demo-n9-d1-{spec}-{dialect}-{stream}"
        return await client.post(
            shared.url + PATH_OF[dialect], json=body_of(dialect, model, stream=stream), headers=headers_of()
        )

    async def ask_all() -> dict[tuple[Any, ...], httpx.Response]:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            return dict(zip(cases, await asyncio.gather(*(ask(client, case) for case in cases)), strict=True))

    return asyncio.run(ask_all())


def test_a_failure_before_the_first_output_is_mended_unseen(mended: dict[tuple[Any, ...], httpx.Response]):
    for (dialect, provider, stream, spec), response in mended.items():
        case = f"{dialect} on {provider}, {stream=}, {spec}: {response.text}"
        assert response.status_code == 200, case
        if stream:
            text = _streamed_text(dialect, sse_events(response.text))
        elif dialect == MESSAGES:
            text = response.json()["content"][0]["text"]
        else:
            text = response.json()["choices"][0]["message"]["content"]
        assert text == answer(9), case
        assert "error" not in response.text, case


def test_two_failures_in_a_row_are_mended_unseen(shared: Fleet, dialect: str):
    shared.reset_demo()

    response = shared.post(dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n9-d1-e503x2", stream=True))

    assert _streamed_text(dialect, sse_events(response.text)) == answer(9)
    assert shared.stats()["requests"] == 3


def test_a_whole_reply_that_never_comes_is_a_true_status(shared: Fleet):
    cases = list(itertools.product(DIALECTS, PROVIDERS, ("drop", "cut5", "end5", "err5")))

    async def ask(client: httpx.AsyncClient, dialect: str, provider: str, spec: str) -> httpx.Response:
        body = body_of(dialect, f"{provider}/demo-{spec}-d1")
        return await client.post(shared.url + PATH_OF[dialect], json=body, headers=headers_of())

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            return await asyncio.gather(*(ask(client, *case) for case in cases))

    for (dialect, provider, spec), response in zip(cases, asyncio.run(ask_all()), strict=True):
        _check_error(response, dialect, _status_of_break(dialect, provider, spec))


def _status_of_break(dialect: str, provider: str, spec: str) -> int:
    if spec != "err5":
        return 502
    if FAMILY_OF[dialect] == provider:
        return 500  # The upstream was not asked for a stream either, and has a status for its error.
    return 529 if provider == "anthropic" else 502  # The error's own word, overloaded_error, or none.
