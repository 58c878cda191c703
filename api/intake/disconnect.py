"""What becomes of a generation whose client leaves?"""

from starlette.datastructures import Headers

from api.intake.idempotency import IMPLIED_GRACE_S
from api.server.numbers import whole_number
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Policy

GRACE_MAX_S = 3600


def disconnect_policy(headers: Headers, unsaid: Policy, *, has_key: bool, usual: str | None = None) -> tuple[Policy, float]:
    """Return the policy and the grace in seconds that ``x-disconnect`` asks for, that an idempotency-key implies, or that is
    ``usual`` with whoever asks.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    if "x-disconnect" not in headers:
        if unsaid is Policy.STOP and usual and usual != Policy.STOP:
            name, _, seconds = usual.partition("=")
            return Policy(name), min(float(seconds or 0), GRACE_MAX_S)
        return (Policy.GRACE, IMPLIED_GRACE_S) if has_key and unsaid is Policy.STOP else (unsaid, 0.0)
    asked = headers["x-disconnect"].strip().lower()
    name, _, text = asked.partition("=")
    if name == Policy.GRACE and (grace_s := whole_number(text, 0, GRACE_MAX_S)) is not None:
        return Policy.GRACE, float(grace_s)
    if asked not in (Policy.STOP, Policy.DETACH):
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"x-disconnect must be 'stop', 'grace=SECONDS' (at most {GRACE_MAX_S}) or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    return Policy(asked), 0.0
