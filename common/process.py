"""What does a process of ours do to itself?"""

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1  # Source: prctl(2).


def raise_file_limit() -> int:
    """Raise the number of files that this process may open to its hard limit, and return it: a stream is a file or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def open_files() -> int:
    """Return how many files, sockets included, this process has open; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 0


def die_with_parent() -> None:
    """Have Linux end this process when its parent is gone, even by SIGKILL; elsewhere the orderly ways must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def in_background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start what runs for as long as the process does. Should it ever break, the process drains and ends, to be started anew:
    one whose publisher or patrol is dead looks alive and serves nobody.
    """

    def check(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("background_task_broke", task=name, exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(check)
    return task


def switch_soon() -> None:
    """Have a thread that computes, such as one that imports, hold up the loop by half a millisecond each time, not by five."""
    sys.setswitchinterval(0.0005)


def collect_seldom() -> None:
    """Have Python look for cycles less often: a token makes many objects, hardly a cycle, and looking took 4 % of a worker."""
    gc.set_threshold(20_000, 20, 50)
    gc.freeze()  # What start-up made stays; it need not be looked at again.
