"""Is every cause between a worker and a provider told apart, to client and log, and nothing told that must not be?"""

import asyncio
import ssl

import pytest

from common.canonical.errors import ErrorKind
from tests.support.upstreams.raw_upstream import CLOSE, RESET, Request, ok, raw_upstream, serving, tls_of, upstream_caller
from workers.providers.shared.errors import UNREADABLE
from workers.upstream.errors import UpstreamFailure, redirected

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
SECRET = "sk-secret-of-the-request"

# What comes, and what its cause is called, and words of the client's message.
UNREADABLE_ANSWERS = {
    "a header of 70 KB": (HEAD + b"X-Trace: " + b"z" * 70_000 + b"\r\n\r\n", "headers", "headers that are too large"),
    "300 headers": (HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(300)) + b"\r\n", "headers", "headers that are too large"),
    "zstd without a library": (HEAD + b"Content-Encoding: zstd\r\n\r\n", "encoding", "content encoding"),
    "an unknown encoding": (ok(headers="Content-Encoding: rot13\r\n"), "encoding", "content encoding"),
    "two encodings": (ok(headers="Content-Encoding: gzip, br\r\n"), "encoding", "content encoding"),
    "gzip that is none": (ok(headers="Content-Encoding: gzip\r\n"), "encoding", "content encoding"),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n", "http", "HTTP that cannot"),
    "length and chunks": (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "http", "HTTP that cannot"),
    "a length that is no number": (HEAD + b"Content-Length: abc\r\n\r\n", "http", "HTTP that cannot"),
    "a chunk size that is no number": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "http", "HTTP that cannot"),
    "a header that is none": (HEAD + b"Bad Header: x\r\n\r\n", "http", "HTTP that cannot"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "not_http", "not HTTP"),
    "an echo": (f"{SECRET}\r\n\r\n".encode(), "not_http", "not HTTP"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", "not_http", "https://"),
}
BROKEN_OFF = {
    "nothing": (CLOSE, "closed", "before it answered"),
    "a reset": (RESET, "closed", "before it answered"),
    "half a head": (b"HTTP/1.1 200 OK\r\nSet-Cookie: session=secret", "closed", "before it answered"),
    "half a body": (HEAD + b"Content-Length: 10\r\n\r\nhalf", "cut", "before its answer was complete"),
    "half the chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "cut", "before its answer was complete"),
}


async def failure_of(sent: bytes) -> UpstreamFailure:
    async def answer(request: Request) -> list[bytes]:
        return [sent, CLOSE] if sent is not RESET else [RESET]

    async with raw_upstream(answer) as found, upstream_caller() as worker:
        with pytest.raises(UpstreamFailure) as raised:
            await worker.post(found.url, headers={"authorization": f"Bearer {SECRET}"})
        assert len(found.requests) == 1
    return raised.value


@pytest.mark.parametrize(("sent", "cause", "words"), UNREADABLE_ANSWERS.values(), ids=UNREADABLE_ANSWERS)
async def test_an_answer_that_cannot_be_read_says_why_and_is_not_asked_for_again(sent, cause, words):
    failure = await failure_of(sent)

    assert (failure.failed.kind, failure.failed.code, failure.cause) == (ErrorKind.UPSTREAM_PROTOCOL, UNREADABLE, cause)
    assert words in failure.failed.message
    assert failure.detail and is_fit_for_a_log(failure.detail)


@pytest.mark.parametrize(("sent", "cause", "words"), BROKEN_OFF.values(), ids=BROKEN_OFF)
async def test_a_connection_that_breaks_says_how_far_it_came(sent, cause, words):
    failure = await failure_of(sent)

    assert (failure.failed.kind, failure.cause) == (ErrorKind.UPSTREAM_UNAVAILABLE, cause)
    assert words in failure.failed.message
    assert failure.detail and is_fit_for_a_log(failure.detail)


def is_fit_for_a_log(detail: str) -> bool:
    return detail.isprintable() and len(detail) <= 300 and "http://" not in detail and "secret" not in detail


async def test_headers_of_60_kb_are_taken():
    async def answer(request: Request) -> list[bytes]:
        return [ok(headers=f"X-Policy: {'z' * 60_000}\r\n")]

    async with raw_upstream(answer) as found, upstream_caller() as worker:
        assert await worker.post(found.url) == b"ok"


NOT_CONNECTED = {
    "http://127.0.0.1:9/": ("refused", "it refused the connection"),
    "http://no-such-name.invalid/": ("name_not_found", "its name was not found"),
    f"http://{'x' * 64}.example/": ("base_url", "its base URL is not valid"),
    "http://127.0.0.1:70000/": ("base_url", "its base URL is not valid"),
    "ftp://127.0.0.1/": ("base_url", "its base URL is not valid"),
    "http://[/v1": ("base_url", "its base URL is not valid"),
    "v1": ("base_url", "its base URL is not valid"),
    "http:///v1": ("base_url", "its base URL is not valid"),
}


@pytest.mark.parametrize(("url", "told"), NOT_CONNECTED.items(), ids=[url[:40] for url in NOT_CONNECTED])
async def test_what_cannot_be_reached_says_why(url, told):
    async with upstream_caller() as worker:
        with pytest.raises(UpstreamFailure) as raised:
            await worker.post(url)

    failure = raised.value
    assert (failure.failed.kind, failure.cause) == (ErrorKind.UPSTREAM_UNAVAILABLE, told[0])
    assert failure.failed.message == f"The provider p could not be reached: {told[1]}."
    assert failure.detail


async def test_a_certificate_that_is_not_trusted_says_what_is_wrong_with_it(certificate):
    async def answer(request: Request) -> list[bytes]:
        return [ok()]

    async with raw_upstream(answer, tls_of(certificate)) as found, upstream_caller() as worker:
        with pytest.raises(UpstreamFailure, match=r"its certificate is not trusted \(it is self-signed\)") as raised:
            await worker.post(f"https://localhost:{found.port}/")

        assert raised.value.cause == "certificate"
        assert "self-signed certificate" in raised.value.detail


async def test_a_certificate_of_another_name_says_so_without_naming_it(certificate):
    async def answer(request: Request) -> list[bytes]:
        return [ok()]

    async with raw_upstream(answer, tls_of(certificate)) as found, upstream_caller() as worker:
        worker.upstream._connections._connector._ssl = ssl.create_default_context(cafile=certificate / "cert.pem")
        with pytest.raises(UpstreamFailure) as raised:
            await worker.post(f"https://127.0.0.1:{found.port}/")

    assert "issued for another address" in raised.value.failed.message
    assert "127.0.0.1" not in raised.value.failed.message


async def test_tls_to_a_port_that_speaks_none_says_so():
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with serving(refuse) as port, upstream_caller() as worker:
        with pytest.raises(UpstreamFailure, match="does not speak TLS") as raised:
            await worker.post(f"https://127.0.0.1:{port}/")

    assert raised.value.cause == "tls"


async def test_silences_are_told_apart():
    is_over = asyncio.Event()

    async def say_nothing(request: Request) -> list[bytes]:
        await is_over.wait()
        return []

    async with raw_upstream(say_nothing) as found, upstream_caller(first_token_timeout_s=0.05) as worker:
        with pytest.raises(UpstreamFailure, match="did not begin to answer in time") as raised:
            await worker.post(found.url)
        is_over.set()

    assert (raised.value.failed.kind, raised.value.cause) == (ErrorKind.UPSTREAM_TIMEOUT, "first_token_timeout")


async def test_a_port_that_accepts_nobody_is_told_as_a_connection_that_took_too_long():
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(say_nothing) as port, upstream_caller(connect_timeout_s=0.05) as worker:
        with pytest.raises(UpstreamFailure, match=r"did not accept a connection within 0.05 s") as raised:
            await worker.post(f"https://127.0.0.1:{port}/")

    assert (raised.value.failed.kind, raised.value.cause) == (ErrorKind.UPSTREAM_TIMEOUT, "connect_timeout")


# Where a redirect leads, what a client is told of it, and what the log is.
REDIRECTS = {
    "https://new.example/v1/chat": ("to https://new.example/v1/chat ", "https://new.example/v1/chat"),
    "https://user:word@new.example:8443/v1?key=secret#part": ("to https://new.example:8443/v1 ", "https://new.example:8443/v1"),
    "https://new.example/" + "x" * 5000: ("to https://new.example/xxx", "https://new.example/xxx"),
    "https://new.example/\u2028\r\nx": ("to https://new.example/x ", "https://new.example/x"),
    "http://10.1.2.3:8000/v1": ("", "http://10.1.2.3:8000/v1"),
    "http://[fd00::1]/v1": ("", "http://[fd00::1]/v1"),
    "http://llm/v1": ("", "http://llm/v1"),
    "http://llm.lab.svc/v1": ("", "http://llm.lab.svc/v1"),
    "/v2/chat": ("", "/v2/chat"),
    "": ("", ""),
    "https://[": ("", ""),
}


@pytest.mark.parametrize(("location", "told"), REDIRECTS.items(), ids=[location[:30] for location in REDIRECTS])
def test_a_redirect_says_where_to_without_secrets_and_names_clients_no_internal_address(location, told):
    failure = redirected("p", 308, location)

    assert (failure.failed.kind, failure.failed.code, failure.cause) == (ErrorKind.UPSTREAM_PROTOCOL, UNREADABLE, "redirect")
    assert failure.failed.message.startswith(f"The provider p redirects {told[0]}" + ("" if told[0] else "(status 308)"))
    assert failure.detail.startswith(f"status 308 to {told[1]}")
    for text in (failure.failed.message, failure.detail):
        assert len(text) < 400 and text.isprintable()
        assert "secret" not in text and "word" not in text
