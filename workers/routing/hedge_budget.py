"""How many calls of a route may be made twice?

A vendor that is slow for everybody must not double all calls. So each worker makes at most a tenth of a route's calls twice.
"""

CALLS_PER_HEDGE = 10
HEDGES_SAVED_MAX = 10  # So many follow on each other at most, after a hundred calls without one.


class HedgeBudget:
    """Routes are few: the settings name them."""

    def __init__(self) -> None:
        self._saved: dict[str, int] = {}  # In calls. The first hedge is free.

    def record_call(self, route: str) -> None:
        self._saved[route] = min(self._saved.get(route, CALLS_PER_HEDGE) + 1, HEDGES_SAVED_MAX * CALLS_PER_HEDGE)

    def try_acquire(self, route: str) -> bool:
        """Return whether one more call may be made twice. If so, it counts as made."""
        saved = self._saved.get(route, CALLS_PER_HEDGE)
        if saved < CALLS_PER_HEDGE:
            return False
        self._saved[route] = saved - CALLS_PER_HEDGE
        return True
