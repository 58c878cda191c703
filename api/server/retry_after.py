"""When should clients come back that were sent away at the same moment?

Each at its own random moment. If all came back at once, the next refusal would have to turn away just as many.
"""

import random

RETRY_S = (1, 5)  # The shortest and the longest time.
_LEAST_S = 0.1


def retry_ms() -> int:
    """Return the value of a stream's ``retry:`` line: how long this client's EventSource waits before it reconnects."""
    return round(random.uniform(*RETRY_S) * 1000)  # noqa: S311 - Nobody gains by guessing it.


def retry_after_s(within_s: float = RETRY_S[1]) -> float:
    """Return after how many seconds, up to ``within_s``, a refused client should come back. Callers round it up for clients,
    because not every client reads fractions. It is never 0: who comes back at once meets the same overload.
    """
    return max(_LEAST_S, random.uniform(0, within_s))  # noqa: S311 - As above.
