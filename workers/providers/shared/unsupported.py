"""How does a wire refuse what it cannot express?

Each error names the client's field and says what the client can do.
"""

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import OpaquePart


def invalid_field_error(param: str, fault: str) -> GatewayError:
    """Return the error for the field ``param``. ``fault`` continues the sentence after its name: "must be 1"."""
    return GatewayError(ErrorKind.INVALID_REQUEST, f"{param} {fault}.", param=param)


def unsupported_part_error(part: OpaquePart) -> GatewayError:
    message = (
        f"{part.path}: the provider of this model has no equivalent of {part.type!r}; leave it out or choose another model."
    )
    return GatewayError(ErrorKind.INVALID_REQUEST, message, param=part.path)
