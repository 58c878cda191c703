"""How soon is a request to be answered: is somebody waiting for it (interactive), or is it work for later (background)?

The class decides how long it may wait for a worker, whose turn comes first, and whether it may wait for its upstream's quota.
"""

from starlette.datastructures import Headers

from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.queue.jobs import JobClass

HEADER = "x-sluice-class"


def class_of(headers: Headers, principal: Principal, unsaid: JobClass) -> JobClass:
    """Return the class that a request names, else ``unsaid``, lowered to the highest that its principal may use.

    Raises:
        GatewayError: INVALID_REQUEST, there is no such class; PERMISSION_DENIED, it is above the principal's highest.
    """
    highest = JobClass(principal.highest_class)
    if HEADER not in headers:
        return JobClass.BACKGROUND if highest is JobClass.BACKGROUND else unsaid
    try:
        asked = JobClass(headers[HEADER].strip().lower())
    except ValueError as error:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"{HEADER} must be {' or '.join(repr(each.value) for each in JobClass)}.",
            param=HEADER,
            code="invalid_header",
        ) from error
    if asked is JobClass.INTERACTIVE and highest is JobClass.BACKGROUND:
        raise GatewayError(
            ErrorKind.PERMISSION_DENIED,
            f"This key may only be used for background work. Send {HEADER}: background, or leave the header out.",
            param=HEADER,
            code="class_not_allowed",
        )
    return asked
