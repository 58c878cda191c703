"""When do the loops that run all the time do their next turn? All of a process together.

Each wake-up of an idle process costs about 0.1 ms of CPU, and its commands wake Redis. Loops that pause for a time each wake it
at another moment. Here the moments are multiples of the period, so loops of 0.5, 1 and 2 seconds share theirs. Each process has
its own phase: a hundred processes do not ask Redis in the same millisecond.
"""

import asyncio
import random

_phase_s = random.random()  # noqa: S311 - It spreads load, and protects nothing.


def until_turn_s(period_s: float, now_s: float | None = None) -> float:
    """Return how long it is until the next turn: at most a period and a tenth, and at least a tenth.

    The tenth is the pause after a turn that took nearly as long as the period. A timer that fires early needs it too.
    """
    now_s = asyncio.get_running_loop().time() if now_s is None else now_s
    left_s = period_s - (now_s - _phase_s) % period_s
    return left_s if left_s >= period_s / 10 else left_s + period_s


async def next_turn(period_s: float) -> None:
    """Sleep until the next turn."""
    await asyncio.sleep(until_turn_s(period_s))
