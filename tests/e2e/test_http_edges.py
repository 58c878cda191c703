"""Does every byte that reaches the API get the answer of HTTP, in the shape of its dialect? Raw sockets, real processes."""

import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support.fleet import KEY, Fleet, RawClient, fleet, headers_of, until

SECRET = "a-secret-of-these-tests-0123456789"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "demo-n3-d0", "messages": MESSAGES},
    "/v1/messages": {"model": "demo-n3-d0", "max_tokens": 9, "messages": MESSAGES},
    "/v1/messages/count_tokens": {"model": "demo-n3-d0", "messages": MESSAGES},
    "/v1/responses": {"model": "demo-n3-d0", "input": "hi"},
    "/v1/chat": {"provider": "demo", "model": "demo-n3-d0", "messages": MESSAGES},
    "/api/demo": {"model": "demo-n3-d0", "messages": MESSAGES},
    "/v1/generations": {"model": "demo-n3-d0", "messages": MESSAGES},
}
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """It has no log line at level warning or above when all is over."""
    settings = {"SLUICE_SECRET": SECRET, "SLUICE_ADMIN_KEYS": KEY + "-admin", "SLUICE_REFUSED_CREDENTIALS_MAX": "1000"}
    with fleet(tmp_path_factory.mktemp("edges"), **settings) as found:
        yield found
        check_log(found)


def check_log(found: Fleet) -> None:
    loud = [line for line in found.apis[0].lines() if line["level"] not in ("info", "debug")]
    assert loud == []


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return orjson.loads(self.body)


def told(found: Fleet, *raw: bytes) -> list[Answer]:
    """Return the answers to these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", found.ports[0]), timeout=20) as client:
        for piece in raw:
            client.sendall(piece)
        received = b""
        while piece := client.recv(65536):
            received += piece
    return [answer_of(part) for part in re.split(rb"(?=HTTP/1\.1 \d{3} )", received)[1:]]


def answer_of(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs), head  # None is there twice.
    return Answer(int(first.split()[1]), dict(pairs), body)  # type: ignore[arg-type]


def head_of(path: str, *more: str, method: str = "POST", version: str = "1.1") -> bytes:
    lines = [
        f"{method} {path} HTTP/{version}",
        "host: x",
        f"authorization: Bearer {KEY}",
        "content-type: application/json",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def check_error(answer: Answer, path: str, code: str) -> None:
    """Check that an error is an answer as any other, in the shape of the dialect of its path."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert "date" in answer.headers
    assert {name: answer.headers.get(name) for name in ALWAYS} == ALWAYS
    error = answer.error
    if path.startswith("/v1/messages"):
        assert error.keys() == {"type", "error", "request_id"}
        assert error["request_id"] == answer.headers["x-request-id"]
    elif path.startswith("/api/"):
        assert error["code"] == code
        assert error["message"]
    elif path.rstrip("/") == "/v1/chat":
        assert error.get("code") == code or error["error"] == "Invalid request"
    else:
        assert error["error"].keys() == {"message", "type", "param", "code"}
        assert error["error"]["code"] == code


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.2"])
@pytest.mark.parametrize("path", BODIES)
def test_a_request_that_offers_an_upgrade_is_served(api: Fleet, path: str, offer: str):
    body = orjson.dumps(BODIES[path])
    upgrade = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {offer}", "http2-settings: AAEA")
    whole = head_of(path, f"content-length: {len(body)}", *upgrade) + body
    chunked = head_of(path, "transfer-encoding: chunked", *upgrade) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)

    answers = told(api, whole + chunked + head_of("/livez", "connection: close", method="GET"))

    assert [answer.status for answer in answers] == ([202, 202, 200] if path == "/v1/generations" else [200] * 3)


# What is wrong with a request, its head up to there, and what it is told.
FAULTS: dict[str, tuple[bytes, int, str]] = {
    "header": (b"no colon\r\n\r\n", 400, "malformed_request"),
    "two lengths": (b"content-length: 5\r\ncontent-length: 6\r\n\r\n12345", 400, "malformed_request"),
    "length": (b"content-length: five\r\n\r\n", 400, "malformed_request"),
    "coding": (b"transfer-encoding: gzip\r\n\r\n", 400, "malformed_request"),
    "chunk": (b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400, "malformed_request"),
    "many headers": (b"x-a: b\r\n" * 10_000, 431, "headers_too_large"),
    "large headers": (b"connection: close\r\nx-a: %s\r\n\r\n" % (b"b" * 40_000), 431, "headers_too_large"),
    "large body": (b"connection: close\r\ncontent-length: 99999999999\r\n\r\n", 413, "request_too_large"),
    "no JSON": (b"connection: close\r\ncontent-length: 2\r\n\r\n{]", 400, "invalid_json"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", BODIES)
def test_whatever_is_wrong_with_a_request_is_told_in_the_shape_of_its_path(api: Fleet, path: str, name: str):
    rest, status, code = FAULTS[name]

    (answer,) = told(api, head_of(path)[:-2] + rest)

    assert answer.status == status
    assert answer.headers["connection"] == "close"
    check_error(answer, path, code)


@pytest.mark.parametrize("path", BODIES)
def test_a_method_that_a_path_does_not_have_is_told_those_that_it_has(api: Fleet, path: str):
    for method in ("PUT", "TRACE", "OPTIONS"):
        (answer,) = told(api, head_of(path, "connection: close", method=method))

        assert answer.status == 405
        assert "POST" in answer.headers["allow"].split(", ")
        assert f"This path takes {answer.headers['allow']}." in answer.body.decode()
        check_error(answer, path, "unknown_path")


@pytest.mark.parametrize("sent", ["x-request-id: mine-1", "x-request-id: a b"])
def test_a_refusal_has_the_clients_id_where_it_is_one(api: Fleet, sent: str):
    (answer,) = told(api, head_of("/v1/models", sent, "x: y")[:-2] + b"no colon\r\n\r\n")

    given = answer.headers["x-request-id"]
    assert given == "mine-1" if sent.endswith("mine-1") else given.startswith("req_")


# Paths

ODD = [
    *("%0a", "%0d", "%0d%0a", "%00", "%09", "%7f", "%1b[31m", "%ff", "%c0%af", "%e2%80%a8", "%c2%85", "%c3%28", "%ef%bc%8f"),
    *("/", "//", "/..", "/%2e%2e", "/.", "/../v1/models"),
]


@pytest.mark.parametrize("end", ODD)
@pytest.mark.parametrize(
    "path", ["/livez", "/v1/models", *BODIES, "/v1/generations/x", "/v1/responses/x", "/admin/keys", "/admin/cache"]
)
def test_a_path_with_anything_odd_in_it_is_unknown(api: Fleet, path: str, end: str):
    body = orjson.dumps(BODIES.get(path, {}))

    for method in ("GET", "POST", "DELETE"):
        (answer,) = told(api, head_of(path + end, f"content-length: {len(body)}", "connection: close", method=method) + body)

        assert answer.status == 404, answer.body
        check_error(answer, path + end, "unknown_path")


# Bodies that nobody reads


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/livez", "/nothing"])
@pytest.mark.parametrize("refused", ["its key", "gzip", "zstd"])
def test_the_body_of_a_refused_request_is_no_request(api: Fleet, refused: str, path: str, is_chunked: bool):
    smuggled = head_of("/v1/nothing", method="GET") * 500
    framing = "transfer-encoding: chunked" if is_chunked else f"content-length: {len(smuggled)}"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled), smuggled) if is_chunked else smuggled
    head = head_of(path, framing, *([] if refused == "its key" else [f"content-encoding: {refused}"]))
    if refused == "its key":
        head = head.replace(KEY.encode(), b"wrong")
    status = {"/livez": 405, "/nothing": 404}.get(path, 401 if refused == "its key" else 415)

    answers = told(api, head + body, head_of("/livez", "connection: close", method="GET"))

    assert [answer.status for answer in answers] == [status, 200]


# HEAD


def get_paths(found: Fleet) -> list[str]:
    started = found.client.post(f"{found.url}/v1/generations", json=BODIES["/v1/generations"], headers=headers_of()).json()
    until(lambda: record_of(found, started["id"])["status"] == "completed", "it has ended")
    stored = found.client.post(f"{found.url}/v1/responses", json=BODIES["/v1/responses"], headers=headers_of()).json()
    ids = {"generation_id": started["id"], "id_": stored["id"], "key_id": "aaaaaaaaaaaa", "name": "demo"}
    described = found.client.get(f"{found.url}/openapi.json").json()["paths"]
    paths = [path.format(**ids) for path, methods in described.items() if "get" in methods]
    return [*paths, "/openapi.json", "/nothing", "/v1/generations/gen_" + "0" * 32, "/v1/models?limit=x", "/v1/usage?limit=x"]


def record_of(found: Fleet, generation_id: str) -> dict[str, Any]:
    headers = headers_of(accept="application/json")
    return found.client.get(f"{found.url}/v1/generations/{generation_id}", headers=headers).json()


def test_head_is_answered_as_get_is_without_the_body(api: Fleet):
    paths = get_paths(api)
    assert len(paths) > 15
    for path in paths:
        for headers in ({}, headers_of(), headers_of(KEY + "-admin"), headers_of(accept="text/html")):
            get, head = (api.client.request(method, api.url + path, headers=headers) for method in ("GET", "HEAD"))

            assert head.content == b""
            assert head.status_code == get.status_code, path
            assert known_headers(head) == known_headers(get), path


def known_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers but for those that are another's with each answer, and the framing of a body that is not there."""
    variable = {"date", "x-request-id", "request-id", "transfer-encoding"}
    if "metrics" in response.url.path or "health" in response.url.path or response.status_code >= 400:
        variable.add("content-length")  # Their text has numbers, ids and the method in it.
    return {name: value for name, value in response.headers.items() if name not in variable}


@pytest.mark.parametrize("path", BODIES)
def test_head_of_what_only_generates_is_refused_and_starts_nothing(api: Fleet, path: str):
    before = api.metrics(api.ports[0])

    response = api.client.head(api.url + path, headers=headers_of())

    assert response.status_code == (200 if path == "/v1/generations" else 405)
    assert accepted(api.metrics(api.ports[0])) == accepted(before)


def accepted(metrics: dict[str, float]) -> float:
    return sum(n for name, n in metrics.items() if name.startswith("sluice_generations_accepted_total"))


def test_head_of_what_runs_does_not_watch_it(api: Fleet):
    """With the policy ``grace`` a viewer that came and went would move the moment at which the generation is stopped."""
    body = {**BODIES["/v1/generations"], "model": "demo-n400-d20"}
    started = api.client.post(f"{api.url}/v1/generations", json=body, headers=headers_of(x_disconnect="grace=60")).json()
    background = {"model": "demo-n400-d20", "input": "hi", "background": True}
    response_id = api.client.post(f"{api.url}/v1/responses", json=background, headers=headers_of()).json()["id"]
    paths = (f"/v1/generations/{started['id']}", f"/v1/responses/{response_id}?stream=true")
    stop_at = api.redis.hget(f"{{{started['id']}}}:state", "stop")
    assert stop_at.startswith(b"left:")

    for path in paths:
        response = api.client.head(api.url + path, headers=headers_of())

        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-generation-id"].startswith("gen_")

    assert api.redis.hget(f"{{{started['id']}}}:state", "stop") == stop_at
    assert api.metrics(api.ports[0])["sluice_open_viewers"] == 0
    for path in paths:
        api.client.delete(api.url + path.partition("?")[0], headers=headers_of())


def test_head_knows_a_cursor_that_is_none(api: Fleet):
    started = api.client.post(f"{api.url}/v1/generations", json=BODIES["/v1/generations"], headers=headers_of()).json()
    until(lambda: record_of(api, started["id"])["status"] == "completed", "it has ended")

    for cursor in ("x", "1-9999.1", "9" * 5000):
        response = api.client.head(f"{api.url}/v1/generations/{started['id']}", headers=headers_of(last_event_id=cursor))
        assert response.status_code == 400, cursor


# HTTP/1.0


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_for_http_1_0_ends_with_its_connection(api: Fleet, path: str):
    body = orjson.dumps({**BODIES[path], "stream": True})

    for more in ((), ("connection: keep-alive",), ("expect: 100-continue",)):
        (answer,) = told(api, head_of(path, f"content-length: {len(body)}", *more, version="1.0") + body)

        assert answer.status in (200, 202)
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        if "content-length" in answer.headers:
            assert answer.headers["content-length"] == str(len(answer.body))
        else:
            assert answer.body.endswith(b"\n\n")


# Numbers

NO_NUMBERS = [
    *("", "0", "-1", "%2B5", "%205", "5%20", "5.0", "5e0", "0x5", "1_0", "101x", "5%00", "NaN"),
    *("%D9%A5", "%EF%BC%95", "%C2%B2", "9" * 5000),  # Digits of other scripts, and more than Python reads.
]


def test_what_is_no_number_in_a_query_is_told_by_name_and_range(api: Fleet):
    stored = api.client.post(f"{api.url}/v1/responses", json=BODIES["/v1/responses"], headers=headers_of()).json()["id"]
    background = api.client.post(
        f"{api.url}/v1/responses", json={**BODIES["/v1/responses"], "background": True}, headers=headers_of()
    ).json()["id"]
    asked = [
        ("/v1/generations?limit=", KEY, "limit", ["1001"]),
        ("/v1/usage?limit=", KEY, "limit", ["1001"]),
        (f"/v1/responses/{stored}/input_items?limit=", KEY, "limit", ["101"]),
        (f"/v1/responses/{background}?stream=true&starting_after=", KEY, "starting_after", ["9999999999"]),
        ("/admin/keys?limit=", KEY + "-admin", "limit", ["101"]),
    ]

    for path, key, name, too_many in asked:
        texts = [text for text in NO_NUMBERS if (name, text) != ("starting_after", "0")]
        for text in [*texts, *too_many, f"5&{name}=5"]:
            response = api.client.get(api.url + path + text, headers=headers_of(key))

            assert response.status_code == 400, (path, text[:50])
            error = response.json()["error"]
            assert error["param"] == name
            assert "integer from" in error["message"]


# The end of the process


def test_what_is_arriving_when_the_process_stops_is_told_to_come_again(tmp_path: Path):
    settings = {"SLUICE_API_DRAIN_S": "4", "SLUICE_API_UNREADY_S": "1", "SLUICE_SECRET": SECRET}
    with fleet(tmp_path, workers=0, **settings) as found, RawClient(found.ports[0]) as idle:
        halves = [(path, opened(found, raw)) for path in BODIES for raw in halves_of(path)]
        idle.send("GET", "/livez", {})
        idle.read_until(b'"ok"}')

        found.apis[0].send(signal.SIGTERM)
        # What comes on a connection that is open is served, and told to come by another the next time.
        until(lambda: found.client.get(f"{found.url}/readyz").status_code == 503, "it is unready")
        assert received(opened(found, head_of("/v1/models", method="GET"))).headers["connection"] == "close"

        for path, half in halves:
            answer = received(half)
            assert answer.status == (529 if path.startswith("/v1/messages") else 503)
            assert 1 <= int(answer.headers["retry-after"]) <= 5
            assert answer.headers["connection"] == "close"
            check_error(answer, path, "gateway_restarting")
        with pytest.raises(AssertionError, match="the connection was closed"):
            idle.read_until(b"more")
        assert found.apis[0].wait(15) == 0
        check_log(found)


def halves_of(path: str) -> list[bytes]:
    head, chunked = head_of(path, "content-length: 5000"), head_of(path, "transfer-encoding: chunked")
    return [head[: len(f"POST {path} HTTP/1.1") + 5], head, head + b'{"model": "', chunked + b"1\r\n{\r\n"]


def opened(found: Fleet, raw: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", found.ports[0]), timeout=20)
    client.sendall(raw)
    return client


def received(client: socket.socket) -> Answer:
    with client:
        raw = b""
        while piece := client.recv(65536):
            raw += piece
    return answer_of(raw)
