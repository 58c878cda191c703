"""How long may a generation wait for its next attempt, and does it hold a slot during the wait?

A streaming client that has no HTTP status yet should get one instead of a long wait: it retries by itself. A client that does
not stream waits up to the cap. Background work waits as long as its deadline allows. It goes back into the queue for that time,
so it holds no slot.
"""

import random
import time
from collections.abc import Callable

from common.config.settings import Settings
from common.queue.worker import Postponed
from workers.outcome import ActiveJob, Total

STATUS_MARGIN_S = 0.25  # A status that is sent this long before the API's hold ends surely arrives in time.
# The longer a job has waited, the longer it waits again: a job that is refused all day is claimed only some dozens of times.
POSTPONED_S_MIN, POSTPONED_SHARE = 5.0, 0.25
POSTPONED_JITTER = 0.1  # It only adds: jobs that wait for the same quota must not come at the same moment.


def wait_limits(active_job: ActiveJob, total: Total, settings: Settings) -> tuple[float, float | None]:
    """Return the longest wait between two attempts in seconds, and the status deadline.

    The status deadline is a monotonic time: until then the client should get a status instead of a longer wait. None: no status
    can be sent any more, or nobody waits for one.
    """
    if total.continuations:
        return settings.retry_after_max_s, None  # The client has had its status for a long time.
    elapsed_s = active_job.elapsed_ms() / 1000
    if active_job.is_background:
        return max(0.0, settings.queue_wait_background_s - elapsed_s), None
    status_deadline = time.monotonic() - elapsed_s + settings.status_hold_s - STATUS_MARGIN_S
    return settings.retry_after_max_s, status_deadline if active_job.job.stream else None


def postpone(
    wait_s: float,
    available_s: float,
    active_job: ActiveJob,
    total: Total,
    settings: Settings,
    random_unit: Callable[[], float] = random.random,
) -> None:
    """Put background work back into the queue if it would wait in its slot for longer than a client waits for a status.

    ``wait_s``: the wait in the slot. ``available_s``: the seconds after which the upstream can surely be called.

    Raises:
        Postponed: the job must be claimed again later.
    """
    is_long = time.monotonic() + wait_s > active_job.began_at + settings.status_hold_s
    if not active_job.is_background or total.continuations or not wait_s or not is_long:
        return
    elapsed_s = active_job.elapsed_ms() / 1000
    delay_s = max(wait_s, available_s, POSTPONED_S_MIN, POSTPONED_SHARE * elapsed_s) * (1 + POSTPONED_JITTER * random_unit())
    raise Postponed(min(delay_s, max(wait_s, settings.queue_wait_background_s - elapsed_s)), total.attempt_count)
