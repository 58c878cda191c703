"""What does the supervisor do with its processes? Real processes, of a small program in place of ``sluice``."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.fleet import ROOT, until

# A process of a tier as the supervisor sees it. The file `mode` says how it behaves, `events` what happened to it.
CHILD = """
import asyncio, os, signal, sys
from common.process.manager import report_ready
mode = open("mode").read()
def write(event):
    with open("events", "a") as events:
        events.write(f"{event} {os.getpid()}\\n")
async def main():
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    if mode == "dies":
        sys.exit(3)
    if mode == "slow":  # It has not got as far as to its handlers.
        write("started")
        await end.wait()
    loop.add_signal_handler(signal.SIGHUP, write, "reloaded")
    loop.add_signal_handler(signal.SIGTERM, end.set if mode != "stays" else lambda: None)
    if mode == "silent":
        os.environ.pop("WATCHDOG_USEC")
    write("started")
    if mode != "unready":
        report_ready()
    await end.wait()
    write("ended")
asyncio.run(main())
"""
SUPERVISOR = """
import sys, json
from cli import supervisor
from common.process.listening import bind
from common.process.logging import configure_logging
constants = json.loads(sys.argv[1])
for name, value in constants.items():
    setattr(supervisor, name, value)
supervisor.COMMAND = [sys.executable, "child.py"]
configure_logging("test", "info")
sys.exit(supervisor.supervise([], bind("127.0.0.1", 0, port_option="--port"), 3, drain_s=0))
"""


class Supervised:
    def __init__(self, folder: Path, mode: str, **constants: float) -> None:
        self._folder = folder
        (folder / "child.py").write_text(CHILD)
        self.set_mode(mode)
        values = {"PAUSE_S": 0.01, "CHECK_INTERVAL_S": 0.05, "KILL_MARGIN_S": 60, **constants}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, json.dumps(values)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )

    def set_mode(self, mode: str) -> None:
        (self._folder / "mode").write_text(mode)

    def pids(self, event: str) -> list[int]:
        path = self._folder / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == event]

    def await_log(self, event: str, times: int = 1) -> None:
        assert self.process.stdout
        while times:
            line = self.process.stdout.readline()
            assert line, f"it ended without {event}"
            times -= json.loads(line)["event"] == event

    def log(self) -> list[str]:
        """Return the events of the supervisor's log, after its end."""
        assert self.process.stdout
        return [json.loads(line)["event"] for line in self.process.stdout.read().splitlines()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(mode: str = "works", **constants: float) -> Supervised:
        started.append(Supervised(tmp_path, mode, **constants))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        if each.process.stdout:
            each.process.stdout.close()


def started(supervised: Supervised, count: int) -> list[int]:
    until(lambda: len(supervised.pids("started")) >= count, f"{count} processes have started")
    return supervised.pids("started")


def test_all_run_and_all_end_by_one_signal(start):
    supervised = start()
    pids = started(supervised, 3)

    assert supervised.stop() == 0

    assert set(supervised.pids("ended")) == set(pids)
    assert Counter(supervised.log()) == {"process_started": 3, "processes_ready": 1, "process_ended": 3}


def test_one_that_is_killed_is_started_again_and_the_others_stay(start):
    supervised = start()
    first, *others = started(supervised, 3)
    supervised.await_log("processes_ready")

    os.kill(first, signal.SIGKILL)
    started(supervised, 4)

    assert all(psutil.pid_exists(pid) for pid in others)
    assert supervised.stop() == 0
    assert supervised.log().count("process_died") == 1


def test_processes_that_cannot_start_end_everything_with_their_status(start):
    supervised = start("dies")

    assert supervised.process.wait(60) == 3
    assert "processes_ready" not in supervised.log()


def test_one_that_keeps_dying_later_is_tried_again_and_again(start):
    supervised = start()
    first, *_ = started(supervised, 3)
    supervised.await_log("processes_ready")
    supervised.set_mode("dies")
    os.kill(first, signal.SIGKILL)
    supervised.await_log("process_died", times=4)

    supervised.set_mode("works")

    started(supervised, 4)
    assert supervised.stop() == 0


def test_a_hang_up_reaches_every_process(start):
    supervised = start()
    pids = started(supervised, 3)
    supervised.await_log("processes_ready")

    supervised.process.send_signal(signal.SIGHUP)

    until(lambda: sorted(supervised.pids("reloaded")) == sorted(pids), "all have reloaded")
    assert supervised.stop() == 0


def test_all_are_replaced_one_after_another_and_each_only_when_its_successor_is_ready(start, tmp_path):
    supervised = start()
    before = started(supervised, 3)
    supervised.await_log("processes_ready")

    supervised.process.send_signal(signal.SIGUSR2)
    until(lambda: sorted(supervised.pids("ended")) == sorted(before), "all old ones have ended")

    order = [line.split()[0] for line in (tmp_path / "events").read_text().splitlines()][3:]
    assert order == ["started", "ended"] * 3
    assert supervised.stop() == 0


def test_told_to_stop_while_they_start_they_end_and_that_is_no_failure(start):
    supervised = start("slow")
    started(supervised, 3)

    assert supervised.stop() == 0


@pytest.mark.parametrize("mode", ["dies", "unready", "slow"])
def test_if_a_new_one_does_not_become_ready_the_old_ones_stay(start, mode):
    supervised = start(READY_WITHIN_S=1)
    before = started(supervised, 3)
    supervised.await_log("processes_ready")

    supervised.set_mode(mode)
    supervised.process.send_signal(signal.SIGUSR2)
    supervised.await_log("restart_given_up")

    assert all(psutil.pid_exists(pid) for pid in before)
    assert set(supervised.pids("ended")).isdisjoint(before)
    assert supervised.stop() == 0
    assert set(before) <= set(supervised.pids("ended"))


def test_a_silent_one_is_killed_and_started_again(start):
    supervised = start("silent", SILENT_S=1)
    started(supervised, 3)
    supervised.set_mode("works")

    started(supervised, 6)

    assert supervised.stop() == 0
    assert supervised.log().count("process_killed") >= 3


def test_one_that_does_not_end_is_killed(start):
    supervised = start("stays", KILL_MARGIN_S=0.1)
    started(supervised, 3)

    assert supervised.stop() == 1

    assert supervised.log().count("process_killed") == 3


def test_if_the_supervisor_is_killed_its_processes_end(start):
    supervised = start()
    pids = started(supervised, 3)

    supervised.process.kill()

    until(lambda: sorted(supervised.pids("ended")) == sorted(pids), "all have ended")
