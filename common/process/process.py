"""How does a process set itself up: limits, background tasks, garbage collection, memory?"""

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
LOG_AGAIN_S = 60.0  # A loop that fails in every turn with the same error is logged this often.
PR_SET_PDEATHSIG = 1  # Source: prctl(2).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # Source: mallopt(3), malloc.h.
OWN_BLOCK_BYTES = 2**20  # Larger than a read or a frame, because a separate block costs a system call each time.
HEAP_TOP_BYTES = 2**23  # Free memory that may stay at the heap's end. By default glibc calls the system at each 128 KiB.


def raise_file_limit() -> int:
    """Raise the number of files that this process may open to its hard limit, and return it. A stream needs one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def open_files() -> int:
    """Return how many files and sockets this process has open. 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 0


# How this process starts others of its kind. -P: a folder `common` or `api` of the user, in which it starts, is none of ours.
COMMAND = (sys.executable, "-P", "-m", "cli.main")


def die_with_parent(sig: signal.Signals = signal.SIGKILL) -> None:
    """Make Linux send ``sig`` to this process when its parent ends, even by SIGKILL. On other systems this does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sig)


def start_background_task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that runs as long as the process. If it fails, the process drains and ends, so that it is restarted: a
    process without its publisher, for example, looks alive and serves nobody.
    """

    def check(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("background_task_broke", task=name, exc_info=error)
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(check)
    return task


def has_terminal() -> bool:
    """Whether this process runs in a terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def supervised(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """Start a loop that runs as long as the process. If it fails, it starts again after a pause: one unexpected answer or
    record must not end the streams of this process, and then of the next one that reads it.
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
    """Make a thread that computes (or imports) block the event loop for half a millisecond at a time, not for five."""
    sys.setswitchinterval(0.0005)


def collect_garbage_less_often() -> None:
    """Make Python search for cycles less often. Tokens create many objects and few cycles; searching took 4 % of a worker."""
    gc.set_threshold(20_000, 5, 50)
    gc.freeze()  # Objects from the start-up stay for ever, so they need not be searched again.


def return_freed_memory() -> None:
    """Make glibc return each large block to the system when it is freed. With other C libraries this does nothing.

    By default glibc does so at first, but after each freed large block it expects more of that size: then it cuts blocks up to
    that size (at most 32 MiB) from the heap, which shrinks only where its end is free. So the memory of a burst of large bodies
    would stay in the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, OWN_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, HEAP_TOP_BYTES)
