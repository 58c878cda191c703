"""What no route expects."""

import asyncio
import gc
import weakref

import httpx
import pytest

from api.main import ApiProcess, create_app
from api.server.draining import WAVE_MIN
from api.server.middleware import Front
from common.config.settings import Settings


@pytest.fixture
def app():
    found = create_app(ApiProcess(Settings(cors_origins=("https://site.example",))))

    @found.get("/v1/messages/broken")
    async def broken() -> None:
        raise RuntimeError("with a secret in it")

    @found.get("/v1/messages/hanging")
    async def hanging() -> None:
        found.state.hangs.set()
        await asyncio.Event().wait()

    found.state.hangs = asyncio.Event()
    return found


async def call(app, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, headers={"origin": "https://site.example"})


async def test_an_unexpected_failure_is_a_500_like_any_other_answer(app):
    response = await call(app, "GET", "/v1/messages/broken")

    assert response.status_code == 500
    assert response.json()["type"] == "error"
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert response.headers["access-control-allow-origin"] == "https://site.example"
    assert "secret" not in response.text


async def test_a_trailing_slash_is_not_redirected(app):
    assert (await call(app, "POST", "/v1/messages/")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "meant", "base_url"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions", "address and /v1"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions", "address and /v1"),
        ("POST", "/api/v1/chat/completions", "/v1/chat/completions", "address and /v1"),
        ("POST", "/openai/v1/chat/completions", "/v1/chat/completions", "address and /v1"),
        ("POST", "/v1//chat/completions/", "/v1/chat/completions", "address and /v1"),
        ("POST", "/messages", "/v1/messages", "without /v1"),
        ("POST", "/v1/v1/messages", "/v1/messages", "without /v1"),
        ("POST", "/anthropic/v1/messages/count_tokens", "/v1/messages/count_tokens", "without /v1"),
        ("POST", "/responses", "/v1/responses", "address and /v1"),
        ("GET", "/responses/resp_1", "/v1/responses/resp_1", "address and /v1"),
        ("POST", "/v1/v1/responses/resp_1/cancel", "/v1/responses/resp_1/cancel", "address and /v1"),
        ("GET", "/models", "/v1/models", "address and /v1"),
        ("GET", "/v1/v1/models", "/v1/models", "address and /v1"),
        ("GET", "/v1/models/", "/v1/models", "address and /v1"),
        ("GET", "/models/openai/gpt-5", "/v1/models/openai/gpt-5", "address and /v1"),
    ],
)
async def test_a_wrong_base_url_is_told_the_right_one(app, method, path, meant, base_url):
    response = await call(app, method, path)

    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert f" It is at {meant}. " in message
    assert base_url in message
    assert ("type" in response.json()) is meant.startswith("/v1/messages")  # In the shape that the client reads.


@pytest.mark.parametrize("path", ["/v1/nothing", "/admin/usage", "/v2/chat/completions", "/", "/v1", "/api/v1/nothing"])
async def test_a_path_that_means_none_of_ours_is_told_where_they_are_listed(app, path):
    response = await call(app, "PUT" if path == "/" else "GET", path)

    assert response.status_code == (405 if path == "/" else 404)
    assert "GET /openapi.json" in response.text


async def test_a_process_that_is_deaf_to_a_redis_that_answers_is_unready():
    process = ApiProcess(Settings())
    app, pulse, feed = create_app(process), process.services.pulse, process.services.feed

    said = []
    for pulse.is_up, feed.is_connected in [(True, True), (True, False), (False, False)]:
        response = await call(app, "GET", "/readyz")
        said.append((response.status_code, response.json()["status"]))

    assert said == [(200, "ok"), (503, "deaf"), (200, "ok")]  # Where Redis is away, no other replica is any better.


def test_no_middleware_stands_between_a_response_and_its_client(app):
    assert isinstance(app.middleware_stack, Front)
    assert not app.user_middleware


async def test_what_the_server_cancels_at_the_end_of_its_time_is_told_to_come_again(app):
    hanging = asyncio.create_task(call(app, "GET", "/v1/messages/hanging"))
    await app.state.hangs.wait()

    hanging.cancel()

    response = await hanging
    assert (response.status_code, response.headers["retry-after"]) == (529, response.headers["retry-after"])
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert response.json()["error"]["type"] == "overloaded_error"


async def test_a_process_that_stops_leaves_no_connection_open():
    process = ApiProcess(Settings())
    app = create_app(process)

    before = await call(app, "GET", "/livez")
    process.services.is_draining = True
    after = [await call(app, "GET", path) for path in ("/livez", "/readyz", "/nothing", "/v1/models")]

    assert "connection" not in before.headers
    assert [response.headers["connection"] for response in after] == ["close"] * 4


@pytest.mark.parametrize("is_over", [False, True])
def test_a_relay_that_comes_after_the_drain_is_drained_too(is_over: bool):
    class Relay:
        drained: bool | None = None
        is_resumable = True

        def drain(self, *, is_over: bool) -> None:
            self.drained = is_over

    services = ApiProcess(Settings()).services
    early, late = Relay(), Relay()
    services.add_relay(early)
    assert early.drained is None

    services.drain(is_over=is_over)
    services.add_relay(late)

    assert early.drained is late.drained is is_over


async def test_those_who_read_leave_in_waves_and_the_others_when_the_grace_is_over():
    class Relay:
        is_drained = False

        def __init__(self, *, is_resumable: bool) -> None:
            self.is_resumable = is_resumable

        def drain(self, *, is_over: bool) -> None:
            self.is_drained = self.is_drained or is_over or self.is_resumable

    services = ApiProcess(Settings()).services
    readers = [Relay(is_resumable=True) for _ in range(2 * WAVE_MIN)]
    other = Relay(is_resumable=False)
    for each in [*readers, other]:
        services.add_relay(each)

    services.drain(is_over=False, within_s=60)

    assert sum(reader.is_drained for reader in readers) == WAVE_MIN
    async with asyncio.timeout(120):
        while not all(reader.is_drained for reader in readers):
            await asyncio.sleep(0.01)
    assert not other.is_drained
    services.drain(is_over=True)
    assert other.is_drained


async def test_head_is_no_part_of_the_schema(app):
    paths = (await call(app, "GET", "/openapi.json")).json()["paths"]

    assert [path for path, methods in paths.items() if "head" in methods] == []


class Cycle:
    """What a server holds for each request: it knows the scope, and the application knows its ``send``."""

    def __init__(self, method: str, path: str) -> None:
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"test"), (b"origin", b"https://site.example")],
            "state": {},
        }
        self.statuses: list[int] = []

    async def send(self, message) -> None:
        self.statuses.append(message.get("status", 0))

    async def receive(self):
        return {"type": "http.request", "body": b"{}", "more_body": False}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/livez"),
        ("GET", "/nothing"),
        ("OPTIONS", "/v1/chat"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/generations"),
        ("GET", "/v1/generations/gen_" + "0" * 32),
    ],
)
async def test_a_request_that_is_over_is_freed_at_once(app, method, path):
    """A cycle per request waits for the garbage collector, which then stops the loop for tenths of a second."""
    first = Cycle(method, path)
    await app(first.scope, first.receive, first.send)  # What only a first request makes stays.
    assert first.statuses
    gc.disable()
    try:
        cycle = Cycle(method, path)
        kept = weakref.ref(cycle)
        await app(cycle.scope, cycle.receive, cycle.send)
        del cycle
        await asyncio.sleep(0)

        assert kept() is None
    finally:
        gc.enable()
