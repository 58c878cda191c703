"""One process of Sluice: ``Process`` is any ``sluice`` command; its subclasses are the three kinds of a fleet."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from cli.dev.embedded_redis import free_port
from tests.support.fleet.starting import Start, fork
from tests.support.fleet.waiting import is_ok


class Process:
    """One process of Sluice, with its output in a file."""

    def __init__(self, args: list[str], env: dict[str, str], log: Path, start: Start = fork) -> None:
        self.log = log
        self._process = start(args, {**os.environ, **env}, log)

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

    def lines(self) -> list[dict[str, Any]]:
        """Return the log lines that are JSON."""
        complete_lines, _, _ = self.log.read_text().rpartition("\n")  # The last line may be half written.
        return [json.loads(line) for line in complete_lines.splitlines() if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == name]


class Listening(Process):
    """A process with its own port, where it answers when it is ready."""

    ready_path = "/readyz"

    def __init__(self, args: list[str], env: dict[str, str], log: Path, port: int, start: Start = fork) -> None:
        super().__init__(args, env, log, start)
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        return is_ok(self.url + self.ready_path)


class DemoProvider(Listening):
    """The upstream on every wire. The model's name determines its answer: ``demo-n5-d0`` means five words at once."""

    ready_path = "/stats"

    def __init__(self, folder: Path, env: dict[str, str], port: int, start: Start = fork) -> None:
        super().__init__(["demo-provider", "--port", str(port)], env, folder / "demo.log", port, start)


class Api(Listening):
    def __init__(self, name: str, folder: Path, env: dict[str, str], port: int = 0, *, start: Start = fork) -> None:
        port = port or free_port()
        super().__init__(["api"], {**env, "SLUICE_PORT": str(port)}, folder / f"{name}.log", port, start)


class Worker(Listening):
    """A worker. Its port is only for metrics and health."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], port: int = 0, *, start: Start = fork) -> None:
        port = port or free_port()
        super().__init__(["worker"], {**env, "SLUICE_WORKER_PORT": str(port)}, folder / f"{name}.log", port, start)
