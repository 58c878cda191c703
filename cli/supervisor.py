"""How do several processes of a tier run as one, on one port?

``sluice api --processes 4`` starts this supervisor. It binds the port and lends the socket to its processes. So the kernel
gives a new connection to one that is free, and none is lost when a process ends. It speaks to them as systemd speaks to it:
they report when they are ready, and that they are alive (``common/process/manager.py``).

- A process that dies is started again, after a pause that grows while it keeps dying. A process that is silent is killed first.
- SIGTERM and SIGINT: the port closes, every process drains, and the supervisor ends last.
- SIGHUP (read the settings again) is passed on.
- SIGUSR2 replaces the processes one after another, with the code and the settings that are there now: the next one is ready
  before the last one is told to stop. If it does not become ready, the old ones stay.

If the supervisor is killed, its processes drain and end: otherwise they would keep a port that nobody manages.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from common.process.manager import report_ready
from common.process.metrics_page import SUFFIX
from common.process.process import COMMAND, die_with_parent, has_terminal

log = structlog.get_logger()

SILENT_S = 60.0  # A process whose event loop has not turned for so long serves nobody, and is killed.
CHECK_INTERVAL_S = 1.0  # How often the supervisor looks for silent processes.
READY_WITHIN_S = 120.0  # A new process must be ready by then, or it does not replace an old one.
PAUSE_S, DOUBLED_MAX = 0.5, 6  # Before a process that died is started again; doubled each time, up to half a minute.
SETTLED_S = 60.0  # A process that lived this long died of something new: the pause begins at its least again.
KILL_MARGIN_S = 15.0  # Beyond its own time for draining.
OWN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")  # systemd means the supervisor by these.


@dataclass(eq=False)
class Child:
    """One process. ``deaths`` counts how often it, or those before it in its place, died soon after the start."""

    number: int
    process: subprocess.Popen[bytes]
    inbox: socket.socket
    deaths: int
    heard_at: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.monotonic)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_expected_to_end: bool = False
    _is_told: bool = False

    def receive(self) -> None:
        """Read what the process has reported."""
        while True:
            try:
                states = self.inbox.recv(4096).split(b"\n")
            except BlockingIOError:
                return
            self.heard_at = time.monotonic()
            if b"READY=1" in states:
                self.ready.set()

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Tell it to stop. SIGTERM is sent once: at its very end a process has no handler for it any more."""
        self.is_expected_to_end = True
        if sig is signal.SIGINT or not self._is_told:
            self._is_told = True
            self.send(sig)

    def send(self, sig: signal.Signals) -> None:
        if not self.ended.is_set():
            self.process.send_signal(sig)


class Supervisor:
    """Runs ``count`` processes of the command ``args`` on a bound socket. ``drain_s`` is how long one may need to end."""

    def __init__(self, args: list[str], sock: socket.socket, count: int, drain_s: float) -> None:
        self._args, self._sock, self._count = args, sock, count
        self._end_within_s = drain_s + KILL_MARGIN_S
        self._children: list[Child] = []
        self._folder = Path(tempfile.mkdtemp(prefix="sluice-"))  # Only this user can read it.
        self._has_started = self._is_stopping = False
        self._failed: int | None = None  # The exit status of a process that could not start.
        self._stop_wanted, self._restart_wanted = asyncio.Event(), asyncio.Event()
        self._follows_terminal = has_terminal()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Return the exit status, when all processes have ended."""
        self._listen_for_signals()
        try:
            for _ in range(self._count):
                self._start()
            for work in (self._report_start(), self._restart_for_ever(), self._watch_for_ever()):
                self._spawn(work)
            await self._stop_wanted.wait()
            return await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop, sig)
        loop.add_signal_handler(signal.SIGHUP, self._reload_or_stop)
        loop.add_signal_handler(signal.SIGUSR2, self._restart_wanted.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def _stop(self, sig: signal.Signals) -> None:
        """Pass the signal on. A second SIGINT makes the processes stop at once, as it does without a supervisor."""
        self._is_stopping = True
        self._sock.close()  # When the processes have closed theirs too, nobody can connect any more.
        for child in self._children:
            child.stop(sig)
        self._stop_wanted.set()

    def _reload_or_stop(self) -> None:
        if self._follows_terminal and not has_terminal():
            self._stop(signal.SIGTERM)
        for child in self._children:
            if child.ready.is_set():  # Before it listens for the signal, it would die of it. It reads the settings anyway.
                child.send(signal.SIGHUP)

    # One process

    def _start(self, deaths: int = 0, *, is_on_trial: bool = False) -> Child:
        number = min(set(range(1, len(self._children) + 2)) - {child.number for child in self._children})
        address = self._folder / f"{number}.notify"
        metrics = self._folder / f"{number}{SUFFIX}"
        for path in (address, metrics):
            path.unlink(missing_ok=True)
        inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        inbox.bind(str(address))
        environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        process = subprocess.Popen(  # noqa: S603 - Our own command.
            [*COMMAND, *self._args, "--fd", str(self._sock.fileno()), "--metrics-socket", str(metrics)],
            env={**environment, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(int(SILENT_S * 1e6))},
            stdin=subprocess.DEVNULL,
            pass_fds=(self._sock.fileno(),),
            start_new_session=True,  # Ctrl-C reaches only the supervisor.
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
        child = Child(number, process, inbox, deaths, is_expected_to_end=is_on_trial)
        self._children.append(child)
        asyncio.get_running_loop().add_reader(inbox, child.receive)
        log.info("process_started", process=number, pid=process.pid)
        return child

    def _reap(self) -> None:
        for child in list(self._children):
            if child.process.poll() is not None:
                self._remove(child)

    def _remove(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(child.inbox)
        child.inbox.close()
        self._children.remove(child)
        child.ended.set()
        status = child.process.returncode
        if child.is_expected_to_end:
            log.info("process_ended", process=child.number, pid=child.process.pid, status=status)
            return
        log.error("process_died", process=child.number, pid=child.process.pid, status=status)
        if self._has_started:
            self._spawn(self._start_again(child))
        else:  # Wrong settings, or a library that is missing: it would do so for ever.
            self._failed = status if status > 0 else 1
            self._stop(signal.SIGTERM)

    async def _start_again(self, dead: Child) -> None:
        deaths = 0 if time.monotonic() - dead.started_at > SETTLED_S else dead.deaths + 1
        await asyncio.sleep(PAUSE_S * 2 ** min(deaths, DOUBLED_MAX))
        if not self._is_stopping and len(self._serving()) < self._count:
            self._start(deaths)

    async def _end(self, child: Child) -> None:
        child.stop()
        if not await _happens(child.ended, self._end_within_s):
            log.error("process_killed", process=child.number, pid=child.process.pid, reason="it did not end in time")
            child.send(signal.SIGKILL)
            await child.ended.wait()

    # All processes

    async def _report_start(self) -> None:
        await asyncio.gather(*(child.ready.wait() for child in self._children))
        self._has_started = True
        log.info("processes_ready", processes=self._count)
        report_ready()

    async def _restart_for_ever(self) -> None:
        while True:
            await self._restart_wanted.wait()
            self._restart_wanted.clear()
            if self._has_started:
                await self._replace_all()

    async def _replace_all(self) -> None:
        for old in self._serving():
            if old.ended.is_set():
                continue  # What was started in its place is new already.
            if self._is_stopping:
                return
            new = self._start(is_on_trial=True)
            if not await _happens(new.ready, READY_WITHIN_S, unless=new.ended):
                log.error("restart_given_up", problem="the new process did not become ready; the old ones stay")
                await self._end(new)
                return
            new.is_expected_to_end = self._is_stopping
            while len(self._serving()) > self._count:
                await self._end(self._serving()[0])
        log.info("processes_replaced", processes=self._count)

    def _serving(self) -> list[Child]:
        """Return the processes that are to go on, the oldest first."""
        return [child for child in self._children if not child.is_expected_to_end]

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for child in list(self._children):
                child.receive()  # What they sent while the supervisor itself was frozen.
                if child.ready.is_set() and time.monotonic() - child.heard_at > SILENT_S:
                    log.error(
                        "process_killed", process=child.number, pid=child.process.pid, reason="it was silent for too long"
                    )
                    child.send(signal.SIGKILL)

    async def _drain(self) -> int:
        children = list(self._children)
        await asyncio.gather(*map(self._end, children))
        if self._failed is not None:
            return self._failed
        # One that died of SIGTERM had not set its handler yet: it had nothing to finish.
        return int(any(child.process.returncode not in (0, -signal.SIGTERM) for child in children))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("supervisor_broke", exc_info=error)
            self._failed = 1
            self._stop(signal.SIGTERM)


async def _happens(event: asyncio.Event, within_s: float, unless: asyncio.Event | None = None) -> bool:
    """Return whether the event happens in time, and before the other one."""
    waits = [asyncio.create_task(each.wait()) for each in (event, unless) if each]
    await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return event.is_set()


def supervise(args: list[str], sock: socket.socket, count: int, drain_s: float) -> int:
    """Run until a signal stops all processes, and return the exit status."""

    async def run() -> int:
        return await Supervisor(args, sock, count, drain_s).run()

    return asyncio.run(run())
