"""Two calls for one request: which of them answers, and when is the second one made?

If the first call has no output after the route's ``hedge_after_ms``, the next target is called too. The first with output
answers. In the same step it takes the log for itself, charges the other one for what it has cost so far, and cancels it: so no
byte of the other can follow. An error decides nothing while the other call runs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from workers.outcome import CallResult, Total


class TwoCalls:
    """The calls of one request that run at the same time. Implements ``workers.outcome.Race``."""

    def __init__(self, total: Total) -> None:
        self._total = total
        self._tasks: dict[int, asyncio.Task[Any]] = {}  # By the identity of the call's result.
        self._winner: CallResult | None = None
        self.has_output = asyncio.Event()

    @property
    def winner(self) -> asyncio.Task[Any] | None:
        """The task of the call that has output; None: neither has any yet."""
        return self._tasks[id(self._winner)] if self._winner else None

    def enter(self, result: CallResult) -> None:
        """Register a call that the present task makes."""
        task = asyncio.current_task()
        assert task is not None
        result.race, self._tasks[id(result)] = self, task

    def is_lost(self, result: CallResult) -> bool:
        return self._winner is not None and self._winner is not result

    def claim(self, result: CallResult) -> None:
        # All of it is one step of the event loop.
        if self.is_lost(result):
            raise asyncio.CancelledError  # It is being cancelled already.
        if self._winner is result:
            return
        self._winner = result
        self._total.set_deployment(result.deployment)
        for other in [one for one in self._total.running if one is not result]:
            self._total.drop(other)
            self._tasks[id(other)].cancel()
        self.has_output.set()


async def call_twice(
    first: Awaitable[None],
    second: Callable[[], Awaitable[None] | None],
    patience: Awaitable[object],
    calls: TwoCalls,
    on_early_failure: Callable[[int, BaseException], None],
) -> tuple[int, BaseException | None]:
    """Make the first call, and the second one if the first has neither output nor an end when ``patience`` is over.

    Args:
        second: makes the second call; None: it must not be made.
        on_early_failure: called for a call that failed while the other one still runs: 0 or 1, and the failure.
    Returns:
        Which call decided, 0 or 1, and its failure: the one that has output, or else the one that ended last.
    """
    tasks: list[asyncio.Future[None]] = [asyncio.ensure_future(first)]
    waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(patience), asyncio.ensure_future(calls.has_output.wait())]
    try:
        await asyncio.wait([tasks[0], *waiting], return_when=asyncio.FIRST_COMPLETED)
        if not (tasks[0].done() or calls.has_output.is_set()) and (beside := second()) is not None:
            tasks.append(asyncio.ensure_future(beside))
        running = set(tasks)
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for number, task in enumerate(tasks):
                if task not in done:
                    continue
                done.remove(task)
                failure = asyncio.CancelledError() if task.cancelled() else task.exception()
                if task is calls.winner or failure is None or not (calls.winner or running or done):
                    return number, failure
                if not task.cancelled():
                    on_early_failure(number, failure)
    finally:
        for task in (*tasks, *waiting):
            task.cancel()
        await asyncio.gather(*tasks, *waiting, return_exceptions=True)
