"""What does our nginx do for the public: certificates, HTTP/2, limits for strangers, clients' addresses, reloads?"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from cli.dev.embedded_redis import free_port
from demo_provider.script import answer
from tests.support.fleet import KEY, Fleet, fleet, sse_events, until
from tests.support.servers import nginx
from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]

AUTH = {"authorization": f"Bearer {KEY}"}
STREAMS = 100


def make_certificate(folder: Path) -> ssl.SSLContext:
    """Write a certificate where nginx looks for it. Return a context that trusts it alone."""
    folder.mkdir(exist_ok=True)
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, certificate = folder / "tls.key", folder / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("gateway"), apis=2, workers=1) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def trust(folder: Path) -> ssl.SSLContext:
    return make_certificate(folder / "tls")


@pytest.fixture(scope="module")
def front(gateway: Fleet, folder: Path, trust: ssl.SSLContext) -> Iterator[str]:
    with nginx.running(folder, gateway.ports) as address:
        yield address


def ask(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}


async def stream(session: aiohttp.ClientSession, front: str, model: str, begun: asyncio.Event | None = None) -> str:
    """Return the whole text of an answer, and its end."""
    async with session.post(f"{front}/v1/chat/completions", json=ask(model), headers=AUTH) as response:
        assert response.status == 200
        text = b""
        async for piece in response.content.iter_any():
            text += piece
            if begun and b'"content":' in text:
                begun.set()
    events = [event.data for event in sse_events(text.decode()) if event.data]
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]) + events[-1]


async def test_a_hundred_streams_come_through_tls(front: str, trust: ssl.SSLContext):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=trust)) as session:
        texts = await asyncio.gather(*(stream(session, front, "demo-n20-d20") for _ in range(STREAMS)))

    assert set(texts) == {answer(20) + "[DONE]"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_client_of_http_2_gets_a_hundred_streams_in_one_connection(front: str, folder: Path, tmp_path: Path):
    url = f"{front}/v1/chat/completions"
    blocks = []
    for number in range(STREAMS):
        blocks += [
            f'url = "{url}"',
            f'output = "{tmp_path / str(number)}"',
            f'header = "authorization: Bearer {KEY}"',
            'header = "content-type: application/json"',
            f"data = {json.dumps(json.dumps(ask('demo-n10-d20')))}",
            f'cacert = "{folder / "tls" / "tls.crt"}"',
            "http2",
            'write-out = "%{http_version} %{num_connects}\\n"',
            "next",
        ]
    (tmp_path / "config").write_text("\n".join(blocks[:-1]))

    done = subprocess.run(
        ["curl", "-sS", "--parallel", "--parallel-max", str(STREAMS), "-K", str(tmp_path / "config")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [version for version, _ in lines] == ["2"] * STREAMS
    assert (
        sum(int(connects) for _, connects in lines) <= 2
    )  # curl may open a second one before it knows that the first is HTTP/2.
    assert all((tmp_path / str(number)).read_text().rstrip().endswith("data: [DONE]") for number in range(STREAMS))


def test_browsers_are_told_to_use_https_alone_and_plain_http_leads_there(front: str, folder: Path, trust: ssl.SSLContext):
    plain = (folder / "ours" / "redirect.conf").read_text().split("listen ")[1].split(";")[0]
    with httpx.Client(verify=trust) as client:
        answers = [client.get(f"{front}/readyz"), client.get(f"{front}/v1/models"), client.get(f"{front}/admin/keys")]
        large = client.post(f"{front}/v1/chat/completions", content=b"x" * (34 << 20))
        redirected = client.post(f"http://{plain}/v1/models?x=1", json={})

    assert [response.headers["strict-transport-security"] for response in [*answers, large]] == ["max-age=31536000"] * 4
    assert large.status_code == 413
    assert redirected.status_code == 308  # A POST stays a POST.
    assert redirected.headers["location"].endswith("/v1/models?x=1")
    assert redirected.headers["location"].startswith("https://")
    assert "strict-transport-security" not in redirected.headers


async def test_a_reload_cuts_no_stream_and_brings_a_new_certificate(gateway: Fleet, tmp_path: Path):
    old = make_certificate(tmp_path / "tls")
    with nginx.running(tmp_path, gateway.ports) as front:
        master = int((tmp_path / "nginx.pid").read_text())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=old)) as session:
            begun = [asyncio.Event() for _ in range(STREAMS)]
            streams = [asyncio.ensure_future(stream(session, front, "demo-n60-d50", event)) for event in begun]
            await asyncio.gather(*(event.wait() for event in begun))
            new = await asyncio.to_thread(make_certificate, tmp_path / "tls")
            os.kill(master, signal.SIGHUP)

            await asyncio.to_thread(until, lambda: serves(front, new), "the new certificate is served")
            assert set(await asyncio.gather(*streams)) == {answer(60) + "[DONE]"}


def serves(front: str, trust: ssl.SSLContext) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{front}/readyz", verify=trust).status_code == 200
    return False


def test_without_a_readable_key_nginx_says_so_instead_of_serving_plain_http(tmp_path: Path):
    nginx.write_config(tmp_path, [9])
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "tls.crt").write_text("")

    tried = subprocess.run(
        nginx.command(tmp_path, "-t"), env=nginx.environment(tmp_path), capture_output=True, text=True, check=False
    )

    assert tried.returncode == 1
    assert "tls.key is missing, or user" in tried.stderr


def statuses(address: str, request: bytes, count: int) -> list[int]:
    """Send a request so many times in one piece; return the answers' statuses."""
    host, port = address.removeprefix("http://").split(":")
    found = []
    with socket.create_connection((host, int(port)), timeout=60) as connection, connection.makefile("rb") as reader:
        connection.sendall(request * count)
        for _ in range(count):
            found.append(int(reader.readline().split()[1]))
            length = 0
            for line in iter(reader.readline, b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            reader.read(length)
    return found


@pytest.mark.parametrize(
    ("path", "headers", "is_limited"),
    [
        ("/v1/models", "", True),
        ("/v1/models", "authorization: Bearer k\r\n", False),
        ("/v1/models", "x-api-key: k\r\n", False),
        ("/v1/generations/gen_x?token=t", "", False),
    ],
)
def test_who_sends_no_credential_is_limited_by_address(tmp_path: Path, path: str, headers: str, *, is_limited: bool):
    with nginx.running(tmp_path, [free_port()]) as front:  # No API: nginx' own answers are quick enough on every machine.
        found = statuses(front, f"GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode(), 400)

    assert (429 in found) is is_limited
    assert set(found) <= {429, 503}


class Echo(AnsweringServer):
    """Answers with what nginx says of the client's address."""

    def reply(self, request: ReceivedRequest) -> Reply:
        return Reply(request.headers["x-forwarded-for"].encode())


@pytest.mark.parametrize(
    ("trusted", "sent", "told"),
    [
        ("", "198.51.100.7", "127.0.0.1"),
        ("10.0.0.0/8", "198.51.100.7", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1,10.0.0.0/8", "6.6.6.6, 198.51.100.7, 10.1.2.3", "198.51.100.7"),
    ],
)
def test_only_a_named_proxy_is_believed_about_the_address(tmp_path: Path, trusted: str, sent: str, told: str):
    with Echo() as server, nginx.running(tmp_path, [server.port], SLUICE_TRUSTED_PROXIES=trusted) as front:
        answered = httpx.get(front, headers={"x-forwarded-for": sent})

    assert answered.text == told
