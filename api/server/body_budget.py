"""How many bytes of request bodies does a process hold at a time?

A body is held from its first byte until the request is in Redis. The sum of large ones is bounded: what does not fit is refused
before it is read on, so that many clients with large pictures cost no more memory than a few. A body whose length is declared
takes its place at once, another as it grows. Small bodies always fit: connections bound their number. The largest body that is
allowed fits into an empty budget, whatever the settings say.

Of the larger ones only a few are worked on at a time, from parsing to enqueueing, since each is there more than once meanwhile.
That is done in a thread: orjson holds the interpreter for as long as it parses, but what looks through the result does not.
"""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from starlette.types import Scope

from api.server.retry_after import retry_after_s
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.server import ServerSettings
from common.config.settings import KIB, MIB

SMALL_BYTES = 64 * KIB  # Of each body; only what is more counts, with all of the body.
LARGE_BYTES = MIB  # From here on a body is worked on in a thread, and waits for its turn.
AT_ONCE_MAX = 2  # Large ones that are worked on: while one is on its way to Redis, another is parsed.
# One, not some: each call of orjson holds the interpreter for a tenth of a second, and the loop would wait for each in turn.
_thread = ThreadPoolExecutor(1, thread_name_prefix="large-body")
_HOLD = "body_hold"  # In a request's state.

P = ParamSpec("P")
T = TypeVar("T")


class BodyBudget:
    """The bytes of one process. ``bytes_held`` are those of large bodies now."""

    def __init__(self, settings: ServerSettings) -> None:
        self.bytes_max = max(settings.bodies_bytes_max, settings.body_bytes_max)
        self.bytes_held = 0
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)

    def hold(self, scope: Scope, size: int) -> None:
        """Hold ``size`` bytes for a request, in place of what it held before, until ``release``.

        Raises:
            GatewayError: OVERLOADED, there is no room; it holds what it held.
        """
        if size <= SMALL_BYTES:
            return
        hold: _Hold = scope["state"].setdefault(_HOLD, _Hold())
        if self.bytes_held - hold.size + size > self.bytes_max:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                "The gateway is reading as many large requests as it can hold. Send the request again.",
                code="bodies_full",
                retry_after_s=retry_after_s(),
            )
        self.bytes_held += size - hold.size
        hold.size = size

    async def turn(self, scope: Scope, size: int) -> None:
        """Wait until this request may be worked on, if it is large; its turn lasts until ``release``."""
        if size >= LARGE_BYTES:
            hold: _Hold = scope["state"].setdefault(_HOLD, _Hold())
            await self._turns.acquire()
            hold.has_turn = True

    def release(self, scope: Scope, *, has_failed: bool) -> None:
        """Give back what a request held, if anything: its body is in Redis, or is not wanted."""
        hold: _Hold | None = scope["state"].pop(_HOLD, None)
        if hold is None:
            return
        self.bytes_held -= hold.size
        if hold.has_turn:
            self._turns.release()
        if has_failed and hold.size >= LARGE_BYTES:
            # An error and the frames that it came through hold each other, and these the body; the collector comes seldom.
            asyncio.get_running_loop().call_soon(gc.collect, 1)


class _Hold:
    __slots__ = ("has_turn", "size")

    def __init__(self) -> None:
        self.size = 0
        self.has_turn = False


async def in_thread_if_large(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``work`` does with a body of ``size`` bytes; in a thread if it is large."""
    if size < LARGE_BYTES:
        return work(*args, **kwargs)
    run = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_thread, run)
