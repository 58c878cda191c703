"""How late is the event loop, and for how long was it able to read?

A process that is busy reads late. What it waits for may have lain in its sockets for seconds, so its own lag must not count as
the other side's silence. One timer per loop measures how late it rings (the lag), and keeps a clock that stands still while the
loop is held up (``able_s``): whoever waits for an answer measures the wait by that clock, and speaks of the other side's
absence only after the loop has had the time to read. All figures are seconds.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICK_S = 0.05
CREDIT_S = 2 * TICK_S  # The most that the clock goes on by from one tick to the next, however long that took.


class LoopLag:
    """Of one event loop; see ``loop_lag``. To be asked from within that loop."""

    def __init__(self) -> None:
        # Not the loop's own clock: uvloop's stands still while a callback runs.
        self._ticked_at = time.monotonic()
        self._able_s = 0.0
        self._observers: list[Callable[[float], object]] = []
        self.last_s = 0.0  # How late the last tick was.
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    @property
    def now_s(self) -> float:
        """How late the loop is: the last tick's lateness, or the next one's, if it is overdue by more."""
        return max(self.last_s, time.monotonic() - self._ticked_at - TICK_S)

    @property
    def able_s(self) -> float:
        """The clock: of the time since the loop was first asked about, what it was able to read in."""
        return self._able_s + min(time.monotonic() - self._ticked_at, CREDIT_S)

    def observe(self, take: Callable[[float], object]) -> None:
        """Call ``take`` with each tick's lateness from now on; it must not wait."""
        self._observers.append(take)

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed_s = now - self._ticked_at
        self.last_s = max(0.0, elapsed_s - TICK_S)
        self._able_s += min(elapsed_s, CREDIT_S)
        self._ticked_at = now
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        for take in self._observers:
            take(self.last_s)


_of_loops: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLag]" = weakref.WeakKeyDictionary()


def loop_lag() -> LoopLag:
    """Return the running loop's; it is measured from the first call on."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = LoopLag()
    return found


@asynccontextmanager
async def able_timeout(seconds: float) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, in time that the loop was able to read in.

    Raises:
        TimeoutError: at the exit of the block, which was cancelled.
    """
    lag, loop = loop_lag(), asyncio.get_running_loop()
    due_s = lag.able_s + seconds
    async with asyncio.timeout(None) as limit:

        def check() -> None:
            left_s = due_s - lag.able_s
            if left_s > 0:
                timers[0] = loop.call_later(max(left_s, TICK_S / 2), check)
            else:
                limit.reschedule(loop.time())

        timers = [loop.call_later(seconds, check)]
        try:
            yield
        finally:
            timers[0].cancel()
