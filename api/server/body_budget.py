"""How many bytes of request bodies does a process hold at a time?

A body is held from its first byte until the request is in Redis. The sum of the large bodies is bounded. A body that does not
fit is refused before more of it is read, so many clients with large pictures need no more memory than a few. A body with a
declared length reserves its room at once. Other bodies reserve it as they grow. Small bodies always fit: the number of
connections bounds them. The largest allowed body fits into an empty budget, whatever the settings say.

Only a few large bodies are processed at a time, from parsing to enqueueing, since each exists in several copies meanwhile.
A thread does that work: orjson holds the interpreter lock while it parses, but the code that searches the result does not.
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

SMALL_BYTES = 64 * KIB  # A body up to this size is not counted. A larger one is counted in full.
LARGE_BYTES = MIB  # From this size on, a body is processed in a thread, and waits for its turn.
AT_ONCE_MAX = 2  # Large bodies in process: while one is on its way to Redis, another is parsed.
# One thread only: each call of orjson holds the interpreter lock for a tenth of a second, and the loop would wait for all of
# them.
_thread = ThreadPoolExecutor(1, thread_name_prefix="large-body")
_HOLD = "body_hold"  # A key in a request's state.

P = ParamSpec("P")
T = TypeVar("T")


class BodyBudget:
    """The bytes that one process holds. ``bytes_held`` are those of large bodies now."""

    def __init__(self, settings: ServerSettings) -> None:
        self.bytes_max = max(settings.bodies_bytes_max, settings.body_bytes_max)
        self.bytes_held = 0
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)

    def hold(self, scope: Scope, size: int) -> None:
        """Hold ``size`` bytes for a request until ``release``. This replaces what the request held before.

        Raises:
            GatewayError: OVERLOADED, there is no room. The request still holds what it held before.
        """
        if size <= SMALL_BYTES:
            return
        hold: _Hold = scope["state"].setdefault(_HOLD, _Hold())
        if self.bytes_held - hold.size + size > self.bytes_max:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                "The gateway is already reading as many large requests as it can hold. Send the request again.",
                code="bodies_full",
                retry_after_s=retry_after_s(),
            )
        self.bytes_held += size - hold.size
        hold.size = size

    async def wait_for_turn(self, scope: Scope, size: int) -> None:
        """Wait until this request may be processed, if it is large. Its turn lasts until ``release``."""
        if size >= LARGE_BYTES:
            hold: _Hold = scope["state"].setdefault(_HOLD, _Hold())
            await self._turns.acquire()
            hold.has_turn = True

    def release(self, scope: Scope, *, has_failed: bool) -> None:
        """Give back what a request held, if anything: its body is in Redis, or no longer needed."""
        hold: _Hold | None = scope["state"].pop(_HOLD, None)
        if hold is None:
            return
        self.bytes_held -= hold.size
        if hold.has_turn:
            self._turns.release()
        if has_failed and hold.size >= LARGE_BYTES:
            # An error and its traceback frames refer to each other, and hold the body. The garbage collector seldom runs.
            asyncio.get_running_loop().call_soon(gc.collect, 1)


class _Hold:
    __slots__ = ("has_turn", "size")

    def __init__(self) -> None:
        self.size = 0
        self.has_turn = False


async def in_thread_if_large(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``work`` returns for a body of ``size`` bytes. For a large body it runs in a thread."""
    if size < LARGE_BYTES:
        return work(*args, **kwargs)
    run = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_thread, run)
