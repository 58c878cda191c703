"""What is a client told while Redis does not serve us, or while we read its answers too late? No internal details:
/health and the log have those.
"""

import math

from api.server.retry_after import retry_after_s
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.wording import try_again
from common.process.loop_lag import loop_lag
from common.redis.errors import NoConnectionFree, is_refusal
from common.redis.pulse import Pulse

LATE_S = 0.5  # If the loop was later than this, and Redis answers, then this process is to blame.

_SILENT = "The gateway cannot accept requests now: its store does not answer."
_REFUSES = "The gateway cannot accept requests now: its store answers, but refuses the commands that requests need."
_BUSY = "The gateway has more to do now than it can."


def redis_away(reason: BaseException | Pulse) -> GatewayError:
    """Return the error for a request that Redis failed, or that was not tried because the pulse is down."""
    is_refused = reason.is_refused if isinstance(reason, Pulse) else is_refusal(reason)
    return _later(_REFUSES if is_refused else _SILENT, "store_unavailable")


def redis_failed(error: BaseException, pulse: Pulse) -> GatewayError:
    """Return the error for a request whose Redis command failed. If Redis is well, this process was too late for its answer."""
    if isinstance(error, NoConnectionFree):
        return _later(_BUSY, "overloaded")
    is_ours = pulse.is_up and not is_refusal(error) and loop_lag().worst_s > LATE_S
    return _later(_BUSY, "overloaded") if is_ours else redis_away(error)


def _later(reason: str, code: str) -> GatewayError:
    wait_s = math.ceil(retry_after_s())
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"{reason} {try_again(wait_s)}",
        code=code,
        retry_after_s=wait_s,
    )


def answer_lost(reason: BaseException) -> Failed:
    """Return the failure that ends an answer for its viewers, if Redis has reported nothing about it for too long."""
    why = "refused to pass it on" if is_refusal(reason) else "did not answer"
    return Failed(
        ErrorKind.OVERLOADED,
        f"The answer could not be followed any longer: the gateway's store {why}. Send the request again later.",
        code="store_unavailable",
    )
