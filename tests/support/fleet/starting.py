"""How does a test start a ``sluice`` command? Either as an operator does, or by forking a process that has imported it.

Importing a tier takes most of a second of CPU, and the tests start hundreds of processes. A forked one is a process of its own
as well: with its own memory, files, environment and signals. Only its command line in ``/proc`` is another's.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[3]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.support.fleet",
        "api.main",
        "workers.main",
        "demo_provider.server",
        "cli.settings",
        # What they import when they need it.
        "alembic.command",
        "common.access.key_ring",
        "common.ledger.reports",
        "common.live.catalog",
        "genai_prices",
        "pydantic.v1",
        "sqlalchemy.dialects.sqlite",
        "uvicorn.lifespan.on",
    ]
)


class Running(Protocol):
    """What tests use of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class Start(Protocol):
    def __call__(self, args: list[str], env: dict[str, str], log: Path) -> Running:
        """Start a command with these arguments and exactly this environment. All its output is appended to ``log``."""
        ...


def execute(args: list[str], env: dict[str, str], log: Path) -> Running:
    with log.open("ab") as out:
        command = [sys.executable, "-m", "cli.main", *args]
        return subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def fork(args: list[str], env: dict[str, str], log: Path) -> Running:
    log.touch()  # A test may read it at once.
    return _Forked(args, env, log)


class _Forked:
    def __init__(self, args: list[str], env: dict[str, str], log: Path) -> None:
        self._args = args
        self._process: ForkServerProcess = _context.Process(target=_run, args=(args, env, log), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:  # Another process may have its number by now.
            os.kill(self.pid, sig)


def _run(args: list[str], env: dict[str, str], log: Path) -> None:
    """Be the command, in the new process."""
    from cli.main import main

    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))  # Python reads it only when it starts.
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = ["sluice", *args]
    main()
