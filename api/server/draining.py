"""At which moments does a stopping process end the responses that go on elsewhere?"""

from collections.abc import Sequence
from typing import TypeVar

WAVE_S = 0.25
WAVE_MIN = 150  # Of one wave: 600 in a second, which a replica takes on beside what it does.
SHARE_OF_GRACE = 0.5  # Whoever is ended last must also be gone before it is over.

T = TypeVar("T")


def waves(responses: Sequence[T], within_s: float) -> list[Sequence[T]]:
    """Return which to end together, the first now, the others ``WAVE_S`` apart: few, or many where the time is short."""
    count_max = max(1, int(within_s * SHARE_OF_GRACE / WAVE_S))
    size = max(WAVE_MIN, -(-len(responses) // count_max))
    return [responses[at : at + size] for at in range(0, max(1, len(responses)), size)]
