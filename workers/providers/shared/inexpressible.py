"""How does a wire refuse what it cannot express?

Both errors name the client's field, and say what the client can do.
"""

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import OpaquePart


def refused(param: str, fault: str) -> GatewayError:
    """Return the error for the field ``param``; ``fault`` goes on from its name: "must be 1"."""
    return GatewayError(ErrorKind.INVALID_REQUEST, f"{param} {fault}.", param=param)


def inexpressible(part: OpaquePart) -> GatewayError:
    message = f"{part.path}: the provider of this model has nothing like {part.type!r}; leave it out or choose another model."
    return GatewayError(ErrorKind.INVALID_REQUEST, message, param=part.path)
