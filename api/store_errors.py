"""What is a client told while Redis does not serve us? No internal detail: those are in /health and in the log."""

from common.errors import ErrorKind, Failed, GatewayError
from common.redis_client import Pulse
from common.redis_errors import is_refusal

RETRY_AFTER_AWAY_S = 2
_LATER = f"Try again in {RETRY_AFTER_AWAY_S} seconds."
_SILENT = f"The gateway cannot take requests just now: its store does not answer. {_LATER}"
_REFUSES = f"The gateway cannot take requests just now: its store answers, but refuses to do what they need. {_LATER}"


def redis_away(reason: BaseException | Pulse) -> GatewayError:
    """Return the error for a request that Redis failed, or that was not even tried as the pulse is down."""
    is_refused = reason.is_refused if isinstance(reason, Pulse) else is_refusal(reason)
    return GatewayError(
        ErrorKind.OVERLOADED,
        _REFUSES if is_refused else _SILENT,
        code="store_unavailable",
        retry_after_s=RETRY_AFTER_AWAY_S,
    )


def answer_lost(reason: BaseException) -> Failed:
    """Return how an answer ends for whoever listens, where Redis has told nothing of it for too long."""
    why = "refused to pass it on" if is_refusal(reason) else "did not answer"
    return Failed(
        ErrorKind.OVERLOADED,
        f"The answer could not be followed any longer: the gateway's store {why}. Send the request again later.",
        code="store_unavailable",
    )
