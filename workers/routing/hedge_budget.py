"""How many calls of a route may be made twice?

A vendor that is slow for everybody must not double all calls. So each worker makes at most a tenth of a route's calls twice.
"""

HEDGE_SHARE = 0.1  # Of a route's calls on this worker.
SAVED_MAX = 10.0  # So many hedges at most follow on each other, after a hundred calls without one.


class HedgeBudget:
    """How many calls of each route may be made twice. Routes are few: the settings name them."""

    def __init__(self) -> None:
        self._saved: dict[str, float] = {}

    def record_call(self, route: str) -> None:
        self._saved[route] = min(self._saved.get(route, 1.0) + HEDGE_SHARE, SAVED_MAX)

    def take(self, route: str) -> bool:
        """Whether one more call may be made twice. It counts as made."""
        saved = self._saved.get(route, 1.0)
        if saved < 1:
            return False
        self._saved[route] = saved - 1
        return True
