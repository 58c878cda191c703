"""How soon must a request be answered: does somebody wait for it (interactive), or is it work for later (background)?

The class decides how long a job may wait for a worker, which job comes first, and whether it may wait for the upstream's quota.
"""

from starlette.datastructures import Headers

from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.queue.jobs import JobClass

HEADER = "x-sluice-class"


def class_of(headers: Headers, principal: Principal, default: JobClass) -> JobClass:
    """Return the class that a request names, otherwise ``default``, but never above the highest class of its principal.

    Raises:
        GatewayError: INVALID_REQUEST, there is no such class; PERMISSION_DENIED, the request names a class above the highest.
    """
    highest = JobClass(principal.highest_class)
    if HEADER not in headers:
        return JobClass.BACKGROUND if highest is JobClass.BACKGROUND else default
    try:
        job_class = JobClass(headers[HEADER].strip().lower())
    except ValueError as error:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"{HEADER} must be {' or '.join(repr(choice.value) for choice in JobClass)}.",
            param=HEADER,
            code="invalid_header",
        ) from error
    if job_class is JobClass.INTERACTIVE and highest is JobClass.BACKGROUND:
        raise GatewayError(
            ErrorKind.PERMISSION_DENIED,
            f"This key may only be used for background work. Send {HEADER}: background, or leave the header out.",
            param=HEADER,
            code="class_not_allowed",
        )
    return job_class
