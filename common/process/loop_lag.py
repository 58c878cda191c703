"""How late is the event loop, and for how long was it able to read?

A busy process reads late. The answer that it waits for may have been in its socket for seconds, so its own lag must not count
as the other side's silence. One timer per loop measures how late it fires (the lag). It also keeps a clock that stops while the
loop is blocked (``unblocked_s``). Code that waits for another process measures the wait by that clock: the other side counts
as silent only after the loop had time to read. All figures are seconds.
"""

import asyncio
import time
import weakref
from collections.abc import Callable
from types import TracebackType

TICK_S = 0.05
WORST_OF_S = 10.0  # The worst lag is remembered for this long, and at most for twice as long.
LAG_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
CREDIT_S = 2 * TICK_S  # The clock advances by at most this much between two ticks, however long they are apart.


class LoopLag:
    """The lag of one event loop; see ``loop_lag``. Use it only from code that runs in that loop."""

    def __init__(self) -> None:
        # Not the loop's own clock: uvloop's clock stops while a callback runs.
        self._began_at = self._ticked_at = time.monotonic()
        self._observers: list[Callable[[float], object]] = []
        self._worst_since, self._worst_s, self._worst_before_s = self._ticked_at, 0.0, 0.0
        self.last_s = 0.0  # How late the last tick was.
        self.ticked_s = 0.0  # The clock at the last tick, at most ``CREDIT_S`` late: cheap, for hot paths.
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    @property
    def now_s(self) -> float:
        """How late the loop is: the lateness of the last tick, or of the next one if that is already later."""
        return max(self.last_s, time.monotonic() - self._ticked_at - TICK_S)

    @property
    def unblocked_s(self) -> float:
        """The clock: the time since this object was created, without the time in which the loop was blocked."""
        return self.ticked_s + min(time.monotonic() - self._ticked_at, CREDIT_S)

    @property
    def blocked_s(self) -> float:
        """For how long the loop was blocked, in total."""
        return time.monotonic() - self._began_at - self.unblocked_s

    @property
    def worst_s(self) -> float:
        """The worst lateness of the last seconds; see ``WORST_OF_S``."""
        return max(self.now_s, self._worst_s, self._worst_before_s)

    def observe(self, on_tick: Callable[[float], object]) -> None:
        """Call ``on_tick`` with each tick's lateness from now on. It must not wait."""
        self._observers.append(on_tick)

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed_s = now - self._ticked_at
        self.last_s = max(0.0, elapsed_s - TICK_S)
        self.ticked_s += min(elapsed_s, CREDIT_S)
        self._ticked_at = now
        if now - self._worst_since > WORST_OF_S:
            self._worst_since, self._worst_before_s, self._worst_s = now, self._worst_s, 0.0
        self._worst_s = max(self._worst_s, self.last_s)
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        for on_tick in self._observers:
            on_tick(self.last_s)


_lags: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLag]" = weakref.WeakKeyDictionary()


def loop_lag() -> LoopLag:
    """Return the lag of the running loop. It is measured from the first call on."""
    loop = asyncio.get_running_loop()
    lag = _lags.get(loop)
    if lag is None:
        lag = _lags[loop] = LoopLag()
    return lag


class lag_aware_timeout:
    """Like ``asyncio.timeout``, but time in which the loop was blocked does not count. For answers of other processes.

    Raises:
        TimeoutError: at the exit of the block, which was cancelled.
    """

    __slots__ = ("_due_s", "_lag", "_limit", "_loop", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._loop, self._lag = asyncio.get_running_loop(), loop_lag()
        self._due_s = self._lag.unblocked_s + self._seconds
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(self._seconds, self._check)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _check(self) -> None:
        left_s = self._due_s - self._lag.unblocked_s
        if left_s > 0:
            self._timer = self._loop.call_later(max(left_s, TICK_S / 2), self._check)
        else:
            self._limit.reschedule(self._loop.time())


def lag_figures() -> dict[str, int]:
    """Return how late the running loop is, in milliseconds, for health pages."""
    lag = loop_lag()
    return {"last": round(lag.last_s * 1000), "worst": round(lag.worst_s * 1000)}
