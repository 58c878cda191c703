"""When does a stopping process end the responses that clients can resume elsewhere?"""

from collections.abc import Sequence
from typing import TypeVar

WAVE_S = 0.25
WAVE_MIN = 150  # Responses in one wave. So 600 a second, which another replica can take over beside its own work.
SHARE_OF_GRACE = 0.5  # The last responses must also be gone before the grace period is over.

T = TypeVar("T")


def waves(responses: Sequence[T], within_s: float) -> list[Sequence[T]]:
    """Return which responses to end together: the first wave now, each next one ``WAVE_S`` later. Little time: larger waves."""
    count_max = max(1, int(within_s * SHARE_OF_GRACE / WAVE_S))
    size = max(WAVE_MIN, -(-len(responses) // count_max))
    return [responses[at : at + size] for at in range(0, max(1, len(responses)), size)]
