"""What does a process of ours do to itself?"""

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

RESTART_PAUSE_S = 0.5
LOG_AGAIN_S = 60.0  # A loop that breaks at every turn is told of so often.
PR_SET_PDEATHSIG = 1  # Source: prctl(2).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # Source: mallopt(3), malloc.h.
OWN_BLOCK_BYTES = 2**20  # Above what a read or a frame has: a block of its own costs a call of the system each time.
HEAP_TOP_BYTES = 2**23  # What may stay free at the heap's end; without a word the system would be asked at each 128 KiB.


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


def start_background_task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
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


def supervised(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """Start a loop that runs for as long as the process does. Where one of its turns breaks, it begins again after a pause:
    one answer or record that nobody foresaw must not end the streams of a process, nor those of the next that meets it.
    """
    return start_background_task(_for_ever(work, name), name)


async def _for_ever(work: Callable[[], Awaitable[None]], name: str) -> None:
    logged, logged_at = "", 0.0
    while True:
        try:
            return await work()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != logged or time.monotonic() - logged_at > LOG_AGAIN_S:
                logged, logged_at = problem, time.monotonic()
                log.critical("background_turn_broke", task=name, exc_info=error)
        await asyncio.sleep(RESTART_PAUSE_S)


def shorten_thread_switches() -> None:
    """Have a thread that computes, such as one that imports, hold up the loop by half a millisecond each time, not by five."""
    sys.setswitchinterval(0.0005)


def collect_garbage_less_often() -> None:
    """Have Python look for cycles less often: a token makes many objects, hardly a cycle, and looking took 4 % of a worker."""
    gc.set_threshold(10_000, 2, 250)
    gc.freeze()  # What start-up made stays; it need not be looked at again.


def return_freed_memory() -> None:
    """Have glibc give each large block back to the system when it is freed; elsewhere the system's own ways must do.

    By itself it does so at first, but takes every large block that is freed for a sign that more will come: from then on blocks
    of that size, up to 32 MiB, are cut from the heap, which shrinks only as far as its end is free. A burst of large bodies
    would stay in the process for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, OWN_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, HEAP_TOP_BYTES)
