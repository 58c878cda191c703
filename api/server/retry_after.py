"""When are many who are sent away at one moment to come back?

Each at a moment of its own: who all come back at once are a herd, and the next refusal has as many.
"""

import random

RETRY_S = (1, 5)  # The least and the most.


def retry_ms() -> int:
    """Return what a stream's ``retry:`` says: how long this client's EventSource waits before it connects again."""
    return round(random.uniform(*RETRY_S) * 1000)  # noqa: S311 - Nobody gains by guessing it.


def retry_after_s(within_s: float = RETRY_S[1]) -> float:
    """Return when one that is refused is to come back, within so many seconds. Rounded up where a client reads it: not every
    one reads fractions.
    """
    return random.uniform(0, within_s)  # noqa: S311 - As above.
