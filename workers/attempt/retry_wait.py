"""For how long may a generation wait for its next attempt, and does it hold a slot meanwhile?

A client whose status is still open is worth a status: it tries again by itself. One that is not streamed waits within the cap.
Background work waits for as long as its deadline allows, and is put back into the queue for that, so that it holds no slot.
"""

import random
import time
from collections.abc import Callable

from common.config.settings import Settings
from common.queue.worker import Postponed
from workers.outcome import Ask, Total

STATUS_MARGIN_S = 0.25  # So long before the API's hold is over a status surely reaches it.
# The longer it waits already, the longer it waits anew: whoever is refused all day long is claimed some dozens of times.
POSTPONED_S_MIN, POSTPONED_SHARE = 5.0, 0.25
POSTPONED_JITTER = 0.1  # Later only: what waits for the same quota is not to come as one.


def patience(ask: Ask, total: Total, settings: Settings) -> tuple[float, float | None]:
    """Return the longest wait between two attempts in seconds, and until which monotonic moment a status is worth more.

    None: no status can be given, or nobody waits for one.
    """
    if total.continuations:
        return settings.retry_after_max_s, None  # The status was told long ago.
    elapsed_s = ask.elapsed_ms() / 1000
    if ask.is_background:
        return max(0.0, settings.queue_wait_background_s - elapsed_s), None
    status_by = time.monotonic() - elapsed_s + settings.status_hold_s - STATUS_MARGIN_S
    return settings.retry_after_max_s, status_by if ask.job.stream else None


def postpone(
    wait_s: float, surely_s: float, ask: Ask, total: Total, settings: Settings, chance: Callable[[], float] = random.random
) -> None:
    """Have background work put back that would wait in its slot for longer than a client does for a status.

    ``wait_s`` is the wait in a slot, ``surely_s`` the time after which the upstream surely may be called.

    Raises:
        Postponed: it is to be called again later.
    """
    is_long = time.monotonic() + wait_s > ask.began_at + settings.status_hold_s
    if not ask.is_background or total.continuations or not wait_s or not is_long:
        return
    elapsed_s = ask.elapsed_ms() / 1000
    delay_s = max(wait_s, surely_s, POSTPONED_S_MIN, POSTPONED_SHARE * elapsed_s) * (1 + POSTPONED_JITTER * chance())
    raise Postponed(min(delay_s, max(wait_s, settings.queue_wait_background_s - elapsed_s)), total.tries)
