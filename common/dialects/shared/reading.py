"""How is a client's body checked, and how are its faults named?

What a dialect needs of a body is a ``Shape``; fields that it does not name are ignored, because real clients send many.
Faults become ``GatewayError``s that name the field as a path into the body: ``messages.0.content``.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import OpaquePart


class Shape(BaseModel):
    """Strict, so that a string where a number belongs is a fault here and not a surprise upstream."""

    model_config = ConfigDict(extra="ignore", strict=True)


AnyShape = TypeVar("AnyShape", bound=Shape)

# What pydantic's kinds of error mean to someone who reads them in a 400. The rest keeps pydantic's own words.
_MUST = {
    "missing": "is required",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def read(shape: type[AnyShape], value: object, path: str = "") -> AnyShape:
    """Return ``value`` as a ``shape``; ``path`` is where it stands in the body.

    Raises:
        GatewayError: INVALID_REQUEST that names the first field at fault.
    """
    try:
        return shape.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        where = at(path, *error["loc"]) or "body"
        template = _MUST.get(error["type"])
        raise invalid(where, template.format(**error.get("ctx", {})) if template else f"is not valid: {error['msg']}") from None


def at(*steps: str | int) -> str:
    """
    >>> at("messages", 0, "content")
    'messages.0.content'
    """
    return ".".join(str(step) for step in steps if step != "")


def invalid(path: str, fault: str) -> GatewayError:
    """Return the error for the field at ``path``; ``fault`` goes on from its name: "must be a string"."""
    return GatewayError(ErrorKind.INVALID_REQUEST, f"{path} {fault}.", param=path)


def as_list(value: object, path: str, of: str) -> list[Any]:
    """Return ``value`` if it is a list; ``of`` says in the error what it may be."""
    if not isinstance(value, list):
        raise invalid(path, f"must be {of}")
    return value


def opaque(type_: object, path: str) -> OpaquePart:
    return OpaquePart(type_ if isinstance(type_, str) else "unknown", path)
