"""What do bytes do that no client would send?

They are refused, or harmless, and nothing of them gets where it does not belong.
"""

import gzip
import zlib
from typing import Any

import httpx
import orjson
import pytest

from tests.support.fleet import CHAT, KEY, MESSAGES, PATH_OF, Fleet, RawClient, body_of, headers_of, until

HOST = "host: x\r\n"
AUTH = f"authorization: Bearer {KEY}\r\n"
JSON_TYPE = "content-type: application/json\r\n"
START = f"POST {PATH_OF[CHAT]} HTTP/1.1\r\n{HOST}{AUTH}{JSON_TYPE}".encode()
BODY = orjson.dumps(body_of(CHAT, "demo-n1-d0"))


def statuses(received: bytes) -> list[int]:
    """Of every response that came on a connection."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def told(found: Fleet, raw: bytes, *, leaves: bool = False) -> bytes:
    """Return all that the server says to these bytes until it closes the connection; ``leaves``: the client does."""
    with RawClient(found.ports[0]) as client:
        client.send_bytes(raw)
        if leaves:
            client.shut_sending()
        try:
            while piece := client.socket.recv(65536):
                client.received += piece
        except ConnectionResetError:
            pass
        return client.received


def post(found: Fleet, content: bytes, path: str = PATH_OF[CHAT], **headers: str) -> httpx.Response:
    sent = headers_of(**{"content_type": "application/json", **headers})
    return found.client.post(found.url + path, content=content, headers=sent)


def check_works(found: Fleet) -> None:
    assert post(found, BODY).status_code == 200
    assert found.apis[0].is_alive
    assert found.workers[0].is_alive


# Bodies


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-gzip", "GZIP"])
def test_a_compressed_body_is_refused_unread(shared: Fleet, coding: str):
    """A few kilobytes may stand for gigabytes."""
    bomb = gzip.compress(b" " * (64 << 20)) if "gzip" in coding.lower() else zlib.compress(b" " * (64 << 20))

    response = post(shared, bomb, content_encoding=coding)

    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_content_encoding"
    assert post(shared, BODY, content_encoding="identity").status_code == 200


DEEP = 5_000
BAD_BODIES: dict[str, bytes] = {
    "nested lists": b'{"model":"demo-n1-d0","messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "unclosed": b"[" * (1 << 20),
    "invalid UTF-8": b'{"model":"demo-n1-d0","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "overlong UTF-8": b'{"model":"demo-n1-d0","messages":[{"role":"user","content":"\xc0\xaf"}]}',
    "UTF-16": orjson.loads(BODY) and BODY.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "NaN": b'{"model":"demo-n1-d0","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
    "Infinity": b'{"model":"demo-n1-d0","temperature":-Infinity,"messages":[{"role":"user","content":"x"}]}',
    "too large a float": b'{"model":"demo-n1-d0","temperature":1e999,"messages":[{"role":"user","content":"x"}]}',
    "too large an integer": b'{"model":"demo-n1-d0","max_tokens":'
    + b"9" * 400
    + b',"messages":[{"role":"user","content":"x"}]}',
    "no JSON": b"<x/>",
    "two values": BODY + BODY,
    "comment": b"/* */" + BODY,
    "nothing": b"",
    "NUL": b"\x00" + BODY,
    "form": b"model=demo&messages=x",
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("path", [PATH_OF[CHAT], PATH_OF[MESSAGES], "/v1/responses", "/v1/chat", "/api/demo"])
def test_a_body_that_cannot_be_read_is_refused(shared: Fleet, path: str, name: str):
    response = post(shared, BAD_BODIES[name], path)

    assert response.status_code == 400, response.text
    assert len(response.text) < 10_000
    assert response.json()["error"]


def test_of_a_key_that_comes_twice_the_last_counts_for_us_and_for_the_upstream(shared: Fleet):
    """Two readers that choose differently could be told two requests at once."""
    shared.reset_demo()
    raw = b'{"model":"demo-n9-d0","model":"openai/demo-n1-d0","messages":[{"role":"user","content":"x"}],"n":5,"n":1}'

    response = post(shared, raw)

    assert response.status_code == 200
    (sent,) = shared.upstream_requests()
    assert sent["body"]["model"] == "demo-n1-d0"
    assert sent["body"]["n"] == 1


@pytest.mark.parametrize("number", ["18446744073709551616", "1e308", "-0", "1.0", "0.1e1", "1" * 40])
def test_numbers_at_the_edge_break_nothing(shared: Fleet, number: str):
    raw = f'{{"model":"demo-n1-d0","seed":{number},"temperature":{number},"messages":[{{"role":"user","content":"x"}}]}}'

    assert post(shared, raw.encode()).status_code in (200, 400)

    check_works(shared)


# Lengths, and where one request ends and the next begins


def test_a_body_longer_than_it_says_is_not_read_beyond(shared: Fleet):
    """The rest would be another request; here it is none."""
    got = told(shared, START + f"content-length: {len(BODY)}\r\nconnection: close\r\n\r\n".encode() + BODY + b"AAAA")

    assert statuses(got) == [200]


def test_a_body_shorter_than_it_says_is_no_request(shared: Fleet):
    accepted = [name for name in shared.metrics(shared.ports[0]) if name.startswith("sluice_generations_accepted_total")]
    before = [shared.metrics(shared.ports[0])[name] for name in accepted]

    got = told(shared, START + f"content-length: {len(BODY) + 5}\r\n\r\n".encode() + BODY, leaves=True)

    assert statuses(got) == []
    assert [shared.metrics(shared.ports[0])[name] for name in accepted] == before


CHUNKED = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
SMUGGLED = f"GET /v1/models HTTP/1.1\r\n{HOST}{AUTH}\r\n".encode()
AMBIGUOUS: dict[str, bytes] = {
    "length and chunked": f"content-length: {len(BODY)}\r\ntransfer-encoding: chunked\r\n\r\n".encode() + CHUNKED + SMUGGLED,
    "chunked and length": b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n" + CHUNKED + SMUGGLED,
    "two lengths": f"content-length: {len(BODY)}\r\ncontent-length: 6\r\n\r\n".encode() + BODY + SMUGGLED,
    "a list of lengths": f"content-length: {len(BODY)}, 6\r\n\r\n".encode() + BODY + SMUGGLED,
    "negative length": b"content-length: -1\r\n\r\n" + BODY + SMUGGLED,
    "length with a sign": f"content-length: +{len(BODY)}\r\n\r\n".encode() + BODY + SMUGGLED,
    "hexadecimal length": f"content-length: 0x{len(BODY):x}\r\n\r\n".encode() + BODY + SMUGGLED,
    "length past 64 bits": b"content-length: 99999999999999999999999\r\n\r\n" + BODY + SMUGGLED,
    "unknown coding": b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED + SMUGGLED,
    "chunked not last": b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKED + SMUGGLED,
    "space before the colon": f"content-length : {len(BODY)}\r\n\r\n".encode() + BODY + SMUGGLED,
    "folded header": f"content-length: {len(BODY)}\r\nx-a: b\r\n c\r\n\r\n".encode() + BODY,
    "bare line feed in a chunk": b"transfer-encoding: chunked\r\n\r\n" + CHUNKED.replace(b"\r\n", b"\n") + SMUGGLED,
    "chunk size past 64 bits": b"transfer-encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n" + BODY + SMUGGLED,
    "chunk longer than it says": b"transfer-encoding: chunked\r\n\r\n1\r\n" + BODY + b"\r\n0\r\n\r\n" + SMUGGLED,
    "NUL in a header": b"x-a: b\x00c\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
    "bare carriage return in a header": b"x-a: b\rx-b: c\r\ncontent-length: 0\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_where_a_request_ends_is_never_a_matter_of_opinion(shared: Fleet, name: str):
    """What two servers in a row could cut differently is refused, and the connection with it."""
    got = told(shared, START + AMBIGUOUS[name])

    assert statuses(got) == [400], got
    check_works(shared)


def test_requests_in_a_row_are_answered_in_order(shared: Fleet):
    one = START + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY
    get = f"GET /livez HTTP/1.1\r\n{HOST}".encode()

    got = told(shared, one + get + b"\r\n" + one + get + b"connection: close\r\n\r\n")

    assert statuses(got) == [200] * 4
    assert [b"chat.completion" in part for part in got.split(b"HTTP/1.1 ")[1:]] == [True, False, True, False]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
        b"GET\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "HTTP/9.9", "NUL", "no path"],
)
def test_what_is_no_http_is_refused(shared: Fleet, raw: bytes):
    assert statuses(told(shared, raw)) in ([400], [404])  # The last two digits of a version are not looked at by all.

    check_works(shared)


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT", "DEBUG", "OPTIONS", "PROPFIND"])
def test_a_method_that_nobody_needs_does_nothing(shared: Fleet, method: str):
    got = told(shared, f"{method} /v1/models HTTP/1.1\r\n{HOST}{AUTH}x-canary: echoed\r\nconnection: close\r\n\r\n".encode())

    assert statuses(got)[0] in (400, 404, 405)
    assert b"echoed" not in got


def test_many_small_headers_are_too_many(shared: Fleet):
    headers = "".join(f"x-{n}: {n}\r\n" for n in range(10_000))

    assert statuses(told(shared, f"GET /livez HTTP/1.1\r\n{HOST}connection: close\r\n{headers}\r\n".encode())) == [431]


# Headers that are said again, or passed on

ECHOED = ("x-request-id", "idempotency-key", "x-disconnect", "last-event-id", "origin")
PASSED = ("anthropic-version", "anthropic-beta", "openai-beta", "cf-aig-metadata")


@pytest.mark.parametrize("name", ECHOED + PASSED)
@pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r", "\r\n ", "\x00", "%0d%0a", "\u560d\u560a", "\\r\\n"])
def test_no_header_can_be_forged_through_another(shared: Fleet, name: str, line_end: str):
    """What is a line end to us begins a header of the client's own; what is none stays text."""
    shared.reset_demo()
    value = f"a{line_end}x-forged: yes".encode()
    framing = f"content-length: {len(BODY)}\r\nconnection: close\r\n\r\n".encode()

    got = told(shared, START + name.encode() + b": " + value + b"\r\n" + framing + BODY)

    head = got.partition(b"\r\n\r\n")[0].lower()
    assert statuses(got)[0] in (200, 400)
    assert b"\nx-forged" not in head.replace(b"\r", b"\n")
    for request in shared.upstream_requests():
        assert "x-forged" not in {each.lower() for each in request.get("headers", {})}
    check_works(shared)


ODD_VALUES = [b"\xff\xfe", b"\x7f", b"a\tb", b"\xc3\xa9", b"x" * 20_000, b"", b" ", b"${jndi:ldap://x}", b"%s%n"]


@pytest.mark.parametrize("name", ECHOED + PASSED)
@pytest.mark.parametrize("value", ODD_VALUES)
def test_no_value_of_a_header_breaks_a_request(shared: Fleet, name: str, value: bytes):
    framing = f"content-length: {len(BODY)}\r\nconnection: close\r\n\r\n".encode()

    got = told(shared, START + name.encode() + b": " + value + b"\r\n" + framing + BODY)

    assert statuses(got)[0] in (200, 400)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "<script>", 'a"b', "a;b", "../x", "a\tb", "a,b", "{}"])
def test_a_request_id_that_is_none_is_replaced(shared: Fleet, given: str):
    response = shared.client.get(f"{shared.url}/livez", headers={"x-request-id": given.encode()})

    assert response.headers["x-request-id"].startswith("req_")
    assert (
        shared.client.get(f"{shared.url}/livez", headers={"x-request-id": "mine-1:2.3"}).headers["x-request-id"] == "mine-1:2.3"
    )


# Text that is logged, or counted


FORGED = 'x\n{"event": "forged", "level": "info"}\r\n\x1b[31m\u2028\x00\x85'


@pytest.mark.parametrize("field", ["model", "user", "content", "name"])
def test_no_line_of_the_log_can_be_forged(shared: Fleet, field: str):
    body: dict[str, Any] = body_of(CHAT, "demo-n1-d0")
    if field == "content":
        body["messages"][0]["content"] = FORGED
    elif field == "name":
        body["messages"][0]["name"] = FORGED
    else:
        body[field] = FORGED if field == "user" else f"demo/demo-n1-d0-{FORGED}"

    response = post(shared, orjson.dumps(body))

    assert response.status_code in (200, 400, 404)
    generation_id = response.headers.get("x-generation-id")
    processes = [*shared.apis, *shared.workers]
    if generation_id:
        until(lambda: any(generation_id in str(line) for line in shared.workers[0].events("generation_ended")), "it is logged")
    for process in processes:
        assert not process.events("forged")
        raw = process.log.read_bytes()
        assert b"\x1b" not in raw
        assert b"\x00" not in raw


def test_no_text_of_a_client_is_a_label_of_a_metric(shared: Fleet):
    for model in ("labelcanary/x", "demo/demo-n1-d0-labelcanary", "labelcanary"):
        post(shared, orjson.dumps(body_of(CHAT, model)))
    shared.client.get(f"{shared.url}/labelcanary", headers=headers_of())
    shared.client.request("LABELCANARY", f"{shared.url}/livez", headers=headers_of())
    post(shared, BODY, f"{PATH_OF[CHAT]}?labelcanary=1")
    shared.client.post(f"{shared.url}/api/labelcanary", json=body_of(CHAT, "x"), headers=headers_of())

    for port in (*shared.ports, *shared.worker_ports):
        assert "labelcanary" not in shared.client.get(f"http://127.0.0.1:{port}/metrics").text.lower()
