"""Is each request answered that a connection brings, in its turn, and as the protocol of its client has it?"""

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.server.connection import DIRECT_WRITE, chunk_of
from tests.support.servers.echoing_api import Server, serving

OFFERS = ["h2c", "websocket", "TLS/1.2", "h2c, foo/2", "nonsense"]
BODY = b'{"model": "x"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % (len(BODY) - 5) + BODY[5:] + b"\r\n0\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
HEADERS = ("x-request-id", "request-id", "x-content-type-options", "content-security-policy", "date")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as found:
        yield found


def post(offer: str, framing: bytes, path: bytes = b"/one") -> bytes:
    upgrade = f"connection: Upgrade, HTTP2-Settings\r\nupgrade: {offer}\r\nhttp2-settings: AAEA\r\n".encode()
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%s%s\r\n" % (path, framing, upgrade)


def bodies(received: bytes) -> list[bytes]:
    return re.findall(rb"[A-Z]+ /[^|]*\|", received)


def statuses(received: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


# Upgrades


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", OFFERS)
async def test_the_request_that_offers_an_upgrade_goes_on_wherever_its_packets_are_cut(
    server: Server, caplog: pytest.LogCaptureFixture, offer: str, framing: bytes
) -> None:
    body = BODY if framing == LENGTH else CHUNKS
    raw = post(offer, framing) + body + LAST
    head = len(raw) - len(LAST) - len(body)
    cuts = [(), (head,), (head - 2,), (head + 3,), (head, head + 4, head + 9), (20, head + len(body)), (len(raw) - 1,)]

    for cut in cuts:
        received = await server.exchange(*(raw[start:end] for start, end in itertools.pairwise((0, *cut, len(raw)))))

        assert bodies(received) == [b"POST /one %s|" % BODY, b"GET /last |"], cut
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_offers_in_a_row_are_ignored_each(server: Server) -> None:
    many = 300  # In one packet: as many as any read brings.
    raw = b"".join(post("h2c", LENGTH, b"/%d" % n) + BODY for n in range(many)) + LAST

    assert bodies(await server.exchange(raw)) == [*(b"POST /%d %s|" % (n, BODY) for n in range(many)), b"GET /last |"]


@pytest.mark.parametrize("framing", [b"", b"content-length: 0\r\n"])
async def test_an_offer_without_a_body_is_answered_too(server: Server, framing: bytes) -> None:
    assert bodies(await server.exchange(post("h2c", framing) + LAST)) == [b"POST /one |", b"GET /last |"]


@pytest.mark.parametrize(
    "framing",
    [b"transfer-encoding: gzip\r\n", CHUNKED],
    ids=["coding that is none", "chunk that is none"],
)
async def test_an_offer_does_not_hide_what_is_wrong_with_a_body(server: Server, framing: bytes) -> None:
    assert statuses(await server.exchange(post("h2c", framing) + b"zz\r\n")) == [400]


# What cannot be read

MALFORMED: dict[str, bytes] = {
    "no method": b"\x00\x01\x02\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "unknown method": b"FOO / HTTP/1.1\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "target is no path": b"GET http://[/ HTTP/1.1\r\n\r\n",
    "version": b"GET / HTTP/3.7\r\n\r\n",
    "header": b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    "length and chunks": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "length": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "coding": b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
    "chunk": b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "later chunk": b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n",
}


def check_refused(answer: bytes, status: int, code: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    for name in HEADERS:
        assert b"\r\n%s: " % name.encode() in head, name
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    assert b"content-length: %d\r\n" % len(body) in head
    assert b'"code":"%s"' % code in body


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_request_gets_the_answer_of_any_other(
    server: Server, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    check_refused(await server.exchange(MALFORMED[name]), 400, b"malformed_request")

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_request_waits_for_the_answers_before_it(server: Server, name: str) -> None:
    first = b"GET /stream/50 HTTP/1.1\r\nhost: x\r\n\r\n"

    received = await server.exchange(first + MALFORMED[name])

    whole, end, rest = received.partition(b"0\r\n\r\n")
    assert whole.count(b"GET /stream/50 |") == 50
    assert end
    check_refused(rest, 400, b"malformed_request")


async def test_of_what_follows_a_refusal_nothing_is_read(server: Server) -> None:
    for name, status in (("header", 400), ("chunk", 400), ("many headers", 431)):
        received = await server.exchange(MALFORMED.get(name, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000), b"\r\n" + LAST)

        assert statuses(received) == [status], name
    served_labels = {"method": "GET", "route": "unknown", "status": "200"}
    assert server.registry.get_sample_value("sluice_requests_total", served_labels) is None


async def test_a_refusal_takes_nothing_from_the_request_before_it(server: Server) -> None:
    received = await server.exchange(b"HEAD /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n" + MALFORMED["no method"])

    check_refused(received[received.rindex(b"HTTP/1.1 ") :], 400, b"malformed_request")
    labels = {"method": "other", "route": "unknown", "status": "400"}
    assert server.registry.get_sample_value("sluice_requests_total", labels) == 1


async def test_a_refusal_of_head_has_no_body(server: Server) -> None:
    received = await server.exchange(b"HEAD /x HTTP/1.1\r\nno colon\r\n\r\n")

    assert statuses(received) == [400]
    assert received.endswith(b"\r\n\r\n")


async def test_a_client_that_is_still_sending_reads_why_it_was_refused(server: Server) -> None:
    """A connection that is closed with bytes unread is reset, and the answer with it."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(MALFORMED["chunk"])
    for _ in range(20):
        writer.write(b"x" * 10_000)
        await writer.drain()
        await asyncio.sleep(0.005)

    check_refused(await reader.read(), 400, b"malformed_request")
    writer.close()


# HTTP/1.0


@pytest.mark.parametrize("more", [b"", b"connection: keep-alive\r\n", b"host: x\r\n", b"expect: 100-continue\r\n"])
@pytest.mark.parametrize("version", [b"1.0", b"0.9"])
async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(server: Server, version: bytes, more: bytes) -> None:
    async def ask(path: bytes) -> tuple[bytes, bytes]:
        received = await server.exchange(b"POST %s HTTP/%s\r\n%s%s\r\n%s" % (path, version, more, LENGTH, BODY))
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        return head, body

    head, body = await ask(b"/stream/3")
    assert b"content-length" not in head
    assert body == b"POST /stream/3 %s|" % BODY * 3
    head, body = await ask(b"/whole")
    assert b"content-length: %d\r\n" % len(body) in head
    assert body == b"POST /whole %s|" % BODY


async def test_http_1_0_is_refused_as_any_other(server: Server) -> None:
    check_refused(await server.exchange(b"GET / HTTP/1.0\r\nno colon\r\n\r\n"), 400, b"malformed_request")


# Bodies that are sent once they are asked for


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


EXPECTING = b"POST /one HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_a_body_that_nobody_asked_for_is_not_mixed_up_with_the_next_request(framing: bytes) -> None:
    async with serving(answer_at_once) as server:
        for follows in (LAST, BODY if framing == LENGTH else CHUNKS, b""):
            received = await server.exchange(EXPECTING + framing + b"\r\n", follows)

            assert statuses(received) == [401]
            assert b"connection: close\r\n" in received  # Whoever did not send it must not go on here.


async def test_a_body_that_is_asked_for_leaves_the_connection_as_it_is(server: Server) -> None:
    received = await server.exchange(EXPECTING + LENGTH + b"\r\n", BODY + LAST)

    assert statuses(received) == [100, 200, 200]
    assert bodies(received) == [b"POST /one %s|" % BODY, b"GET /last |"]


# Chunks that are written without waiting


async def write_directly(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the results of writing directly, before and after the answer begins."""
    while (await receive())["more_body"]:
        pass
    write = scope["state"].get(DIRECT_WRITE, lambda chunk: None)
    results = [write(chunk_of(b"too early"))]
    length = [(b"content-length", b"20")] if scope["path"] == "/whole" else []
    await send({"type": "http.response.start", "status": 200, "headers": length})
    results.append(write(chunk_of(b"direct ")))
    await send({"type": "http.response.body", "body": str(results).encode().ljust(20)})


@pytest.mark.parametrize(
    ("request_line", "expects", "body"),
    [
        (b"POST /stream HTTP/1.1", b"", b"7\r\ndirect \r\n14\r\n[False, True]       \r\n0\r\n\r\n"),
        (b"POST /whole HTTP/1.1", b"", b"[False, False]      "),
        (b"HEAD /stream HTTP/1.1", b"", b""),
        (b"POST /stream HTTP/1.0", b"", b"[None, None]        "),
        (b"POST /stream HTTP/1.1", b"expect: 100-continue\r\n", b"14\r\n[None, None]        \r\n0\r\n\r\n"),
    ],
)
async def test_a_chunk_is_written_where_the_answer_consists_of_chunks(request_line: bytes, expects: bytes, body: bytes) -> None:
    async with serving(write_directly) as server:
        request = request_line + b"\r\nhost: x\r\nconnection: close\r\n" + expects + LENGTH + b"\r\n"
        received = await server.exchange(request, BODY)

    assert received.rpartition(b"\r\n\r\n" if not body.endswith(b"\r\n") else b"nosniff")[2].endswith(body)


# The end of the process


async def test_a_request_that_is_arriving_may_be_complete_when_the_process_stops(server: Server) -> None:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"POST /one HTTP/1.1\r\n%s\r\n" % LENGTH)
    await until(lambda: any(connection.cycle for connection in server.state.connections))

    server.shut_down()
    writer.write(BODY)

    assert b"POST /one %s|" % BODY in await reader.readuntil(b"|")
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"P",
        b"POST /one HTTP/1.1\r\nhos",
        b"POST /one HTTP/1.1\r\ncontent-length: 10\r\n\r\n",
        b"POST /one HTTP/1.1\r\ncontent-length: 10\r\n\r\n{",
        b"POST /one HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
        post("h2c", LENGTH),
        b"GET /first HTTP/1.1\r\nhost: x\r\n\r\nPOST /one HTTP/1.1\r\ncont",
    ],
    ids=["a letter", "half a head", "no body", "half a body", "a chunk", "an offer", "a second one"],
)
async def test_what_is_still_arriving_when_the_process_stops_is_refused(sent: bytes) -> None:
    async with serving(api_drain_s=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(sent)
        await until(lambda: any(connection._started_at for connection in server.state.connections))

        server.shut_down()

        answers = await reader.read()
        answer = answers[answers.rindex(b"HTTP/1.1 ") :]
        check_refused(answer, 503, b"gateway_restarting")
        assert re.search(rb"\r\nretry-after: [1-5]\r\n", answer)
        writer.close()


async def test_an_idle_connection_is_closed_without_a_word_when_the_process_stops(server: Server) -> None:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"GET /one HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"|")

    server.shut_down()

    assert await reader.read() == b""
    writer.close()


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.005)
