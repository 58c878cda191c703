"""What does our nginx.conf do to streams? The real nginx, before two API processes."""

import contextlib
import json
import re
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from cli.dev.embedded_redis import free_port
from demo_provider.script import answer
from tests.support.fleet import KEY, ROOT, Fleet, fleet, until
from tests.support.servers import dns, nginx

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

AUTH = {"authorization": f"Bearer {KEY}"}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two APIs; one worker, which both share."""
    with fleet(tmp_path_factory.mktemp("pair"), apis=2, workers=1) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def front(pair: Fleet, folder: Path) -> Iterator[str]:
    with nginx.running(folder, pair.ports) as address:
        yield address


@pytest.fixture
def client(front: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=front, headers=AUTH, timeout=120) as opened:
        yield opened


def ask(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}], **more}


def test_nginx_accepts_the_configuration(tmp_path: Path):
    nginx.write_config(tmp_path, [9])

    tested = subprocess.run(
        nginx.command(tmp_path, "-t"), env=nginx.environment(tmp_path), capture_output=True, text=True, check=False
    )

    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr


def test_the_first_token_comes_while_the_provider_still_speaks(pair: Fleet, client: httpx.Client):
    pair.reset_demo()

    with client.stream("POST", "/v1/chat/completions", json=ask("demo-n30-d50")) as response:
        lines = response.iter_lines()
        first = next(line for line in lines if '"content":"A"' in line)
        stats = pair.stats()
        rest = list(lines)

    assert first
    assert (stats["open"], stats["completed"]) == (1, 0)
    assert text_of([first, *rest]) == answer(30)
    assert "data: [DONE]" in rest


def test_headers_survive_both_ways(pair: Fleet, client: httpx.Client, folder: Path):
    sent = {"x-request-id": "req_of-mine.1", "x-padding": "p" * 20_000}  # More than nginx takes unless it is told to.
    with client.stream("POST", "/v1/chat/completions?key=sk-leak", json=ask("demo-n2-d0"), headers=sent) as response:
        response.read()

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert response.headers["x-generation-id"].startswith("gen_")
    assert response.headers["x-request-id"] == response.headers["request-id"] == "req_of-mine.1"
    log = until(lambda: logged(folder / "nginx.log", "req_of-mine.1"), "nginx has logged the request")
    entry = next(json.loads(line) for line in log.splitlines() if '"req_of-mine.1"' in line)
    assert entry["path"] == "/v1/chat/completions"
    assert entry["status"] == "200"
    assert "sk-leak" not in log
    assert KEY not in log


def test_a_request_without_an_id_has_one_for_both_logs(pair: Fleet, client: httpx.Client, folder: Path):
    said = client.get("/v1/models").headers["x-request-id"]

    until(lambda: logged(folder / "nginx.log", said), "nginx has logged the request")
    until(lambda: any(logged(api.log, said) for api in pair.apis), "an API has logged the request")


@pytest.mark.parametrize("model", ["demo-n5000-d20", "demo-stall3"], ids=["busy", "quiet"])
def test_a_client_that_leaves_closes_the_upstream(pair: Fleet, client: httpx.Client, model: str):
    pair.reset_demo()
    large = ask(model, messages=[{"role": "user", "content": "x" * 200_000}])

    with client.stream("POST", "/v1/chat/completions", json=large) as response:
        next(line for line in response.iter_lines() if '"content":' in line)

    until(lambda: pair.stats()["aborted"] == 1, "the upstream is closed")
    assert pair.stats()["open"] == 0


def test_both_replicas_get_requests(pair: Fleet, client: httpx.Client):
    before = [len(api.events("request")) for api in pair.apis]

    for _ in range(10):
        client.get("/v1/models").raise_for_status()

    until(
        lambda: all(len(api.events("request")) > count for api, count in zip(pair.apis, before, strict=True)),
        "both have logged a request",
    )


def test_an_answer_is_resumed_through_any_replica(pair: Fleet, client: httpx.Client):
    begun = ask("demo-n60-d20")
    with client.stream("POST", "/v1/chat/completions", json=begun, headers={"x-disconnect": "grace=30"}) as response:
        generation, seen = response.headers["x-generation-id"], []
        for line in response.iter_lines():
            seen.append(line)
            if text_of(seen) == answer(5):
                break
    cursor = next(line for line in reversed(seen) if line.startswith("id: ")).removeprefix("id: ")

    resumed = [  # Round and round: each replica is asked at least once.
        client.get(f"/v1/generations/{generation}", headers={"last-event-id": cursor}) for _ in range(4)
    ]

    for response in resumed:
        assert response.status_code == 200
        assert text_of([*seen, *response.text.split("\n")]) == answer(60)


def test_what_operators_read_is_not_served_outside(front: str):
    for target in (
        "/metrics",
        "/metrics?x=1",
        "//metrics",
        "/%6detrics",
        "/v1/../metrics",
        "/metrics/",
        "/stats",
        "/admin",
        "/admin/keys",
    ):
        status, body = exchange(front, f"GET {target} HTTP/1.1\r\nhost: sluice\r\n\r\n".encode())
        assert (status, json.loads(body)["error"]["message"]) == (404, "Not served here."), target
    assert httpx.get(f"{front}/readyz").status_code == 200
    assert httpx.get(f"{front}/health").status_code == 200


def test_a_body_at_the_limit_passes(pair: Fleet, client: httpx.Client):
    pair.reset_demo()
    empty = len(json.dumps(ask("demo-n2-d0", messages=[{"role": "user", "content": ""}])))
    content = "x" * (32 * MIB - empty)
    body = json.dumps(ask("demo-n2-d0", messages=[{"role": "user", "content": content}])).encode()
    assert len(body) == 32 * MIB

    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})

    assert response.status_code == 200
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("size", [32 * MIB + 1, 34 * MIB], ids=["the API says so", "nginx says so"])
def test_a_larger_body_is_refused(front: str, size: int):
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: sluice\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    )

    status, body = exchange(front, head.encode() + b"{")  # A refusal does not wait for the rest.

    assert status == 413
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_requests_go_on_when_a_replica_is_killed(tmp_path: Path):
    with (
        fleet(tmp_path, apis=2, workers=1) as pair,
        nginx.running(tmp_path, pair.ports) as front,
        httpx.Client(base_url=front, headers=AUTH, timeout=120) as client,
    ):
        for _ in range(4):  # So that nginx has connections to both to be surprised by.
            client.get("/v1/models").raise_for_status()
        pair.apis[0].kill()

        answers = [client.post("/v1/chat/completions", json=ask("demo-n3-d0")) for _ in range(8)]

        assert [response.status_code for response in answers] == [200] * 8
        assert all(response.text.endswith("data: [DONE]\n\n") for response in answers)
        assert pair.stats()["requests"] == 8  # None was sent twice.


def test_the_codes_of_nginx_s_own_errors_are_documented():
    codes = set(re.findall(r'"code":"(\w+)"', (nginx.OURS / "nginx.conf").read_text()))
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "errors.md").read_text()))

    assert codes
    assert codes <= documented


def test_a_request_to_an_address_that_has_just_gone_gets_the_next_one_also_when_the_list_changes_meanwhile(tmp_path: Path):
    """A container has gone: its address no longer answers, and DNS forgets it while requests still wait for it."""
    gone, alive = "127.0.0.2", "127.0.0.3"
    with (
        socket.socket() as silent,
        dns.running([gone, alive]) as names,
        ThreadPoolExecutor(9) as pool,
    ):
        silent.bind((gone, 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        with (
            socket.create_connection((gone, port)),  # Its queue is full: the system drops what asks for a connection.
            answering(alive, port),
            nginx.running(tmp_path, [port], dns=names.port) as front,
        ):
            waiting = [pool.submit(httpx.post, front, content=b"hi", headers=AUTH, timeout=30) for _ in range(8)]
            until(lambda: names.answered or None, "nginx has asked for the addresses")
            names.addresses = [alive]
            until(lambda: httpx.get(front).is_success and [alive] in names.answered, "nginx has the new list")
            answers = [request.result() for request in waiting]
        log = (tmp_path / "nginx.log").read_text()

    assert [response.status_code for response in answers] == [200] * 8
    assert f"{gone}:{port}" in log  # Else nothing was tried.


@contextlib.contextmanager
def answering(host: str, port: int) -> Iterator[None]:
    """An API that answers everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET

    server = ThreadingHTTPServer((host, port), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_replica_that_alone_is_cut_off_from_redis_does_not_get_all_requests(tmp_path: Path):
    """It refuses at once, so it never has a connection open; the other has streams."""
    with fleet(tmp_path, apis=1, workers=1) as pair:
        pair.settings["SLUICE_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
        pair.start_api()
        pair.ready()
        with (
            nginx.running(tmp_path, pair.ports) as front,
            httpx.Client(base_url=front, headers=AUTH, timeout=120) as client,
            contextlib.ExitStack() as streams,
        ):

            def opened() -> bool:
                long = client.stream("POST", "/v1/chat/completions", json=ask("demo-n1000-d50"))
                return streams.enter_context(long).status_code == 200

            until(opened, "the whole replica has a stream")
            answers = [client.post("/v1/chat/completions", json=ask("demo-n3-d0")).status_code for _ in range(8)]

    assert answers.count(200) == answers.count(503) == 4


def test_a_post_is_never_sent_to_a_second_replica(tmp_path: Path):
    """A replica dies after it has read a request: nobody knows how far it came."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        replicas = [first, second]
        dying = threading.Thread(target=read_one_request_and_close, args=(replicas,))
        dying.start()
        with nginx.running(tmp_path, [replica.getsockname()[1] for replica in replicas]) as front:
            response = httpx.post(f"{front}/v1/chat/completions", json=ask("demo"), headers=AUTH, timeout=10)
        dying.join()
        tried_again, _, _ = select.select(replicas, [], [], 0)

    assert not tried_again
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.headers["x-request-id"]
    assert response.json()["error"]["code"] == "gateway_unavailable"


def read_one_request_and_close(servers: list[socket.socket]) -> None:
    ready, _, _ = select.select(servers, [], [], 10)
    for server in ready:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)


def logged(log: Path, request_id: str) -> str | None:
    """Return the log once the request is in it: it is written after the answer."""
    text = log.read_text()
    return text if f'"{request_id}"' in text else None


def exchange(front: str, request: bytes) -> tuple[int, bytes]:
    """Send exactly these bytes; return the answer's status and body."""
    host, port = front.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as reader:
            status, length = int(reader.readline().split()[1]), 0
            for line in iter(reader.readline, b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return status, reader.read(length)


def text_of(lines: list[str]) -> str:
    """Return what the chat chunks among these lines say."""
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
