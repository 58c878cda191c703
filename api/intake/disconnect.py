"""What happens to a generation when its client leaves?"""

from starlette.datastructures import Headers

from api.intake.idempotency import IMPLIED_GRACE_S
from api.server.numbers import parse_integer
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Policy

GRACE_MAX_S = 3600


def disconnect_policy(
    headers: Headers, default: Policy, *, has_key: bool, principal_default: str | None = None
) -> tuple[Policy, float]:
    """Return the policy, and the grace period in seconds.

    ``x-disconnect`` wins. Without it, a ``default`` other than STOP counts. Otherwise the principal's own default counts, then
    the grace that an idempotency-key implies, then STOP.

    Raises:
        GatewayError: INVALID_REQUEST.
    """
    if "x-disconnect" not in headers:
        if default is Policy.STOP and principal_default and principal_default != Policy.STOP:
            name, _, seconds = principal_default.partition("=")
            return Policy(name), min(float(seconds or 0), GRACE_MAX_S)
        return (Policy.GRACE, IMPLIED_GRACE_S) if has_key and default is Policy.STOP else (default, 0.0)
    value = headers["x-disconnect"].strip().lower()
    name, _, text = value.partition("=")
    if name == Policy.GRACE and (grace_s := parse_integer(text, 0, GRACE_MAX_S)) is not None:
        return Policy.GRACE, float(grace_s)
    if value not in (Policy.STOP, Policy.DETACH):
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"x-disconnect must be 'stop', 'grace=SECONDS' (at most {GRACE_MAX_S}) or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    return Policy(value), 0.0
