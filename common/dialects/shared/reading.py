"""How is a client's body checked, and how are errors in it reported?

A ``Shape`` declares the fields that a dialect needs. Other fields are ignored, because real clients send many.
Errors become ``GatewayError``s that name the field as a path into the body: ``messages.0.content``.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import OpaquePart


class Shape(BaseModel):
    """Strict: a string in place of a number is an error here, not a surprise at the upstream."""

    model_config = ConfigDict(extra="ignore", strict=True)


AnyShape = TypeVar("AnyShape", bound=Shape)

# Pydantic's error types as readable text for a 400. Other types keep pydantic's own message.
_FAULT_TEXTS = {
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
    """Return ``value`` as a ``shape``; ``path`` is its place in the body.

    Raises:
        GatewayError: INVALID_REQUEST that names the first invalid field.
    """
    try:
        return shape.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        field_path = join_path(path, *error["loc"]) or "body"
        template = _FAULT_TEXTS.get(error["type"])
        fault = template.format(**error.get("ctx", {})) if template else f"is not valid: {error['msg']}"
        raise invalid(field_path, fault) from None


def join_path(*steps: str | int) -> str:
    """
    >>> join_path("messages", 0, "content")
    'messages.0.content'
    """
    return ".".join(str(step) for step in steps if step != "")


def invalid(path: str, fault: str) -> GatewayError:
    """Return the error for the field at ``path``. ``fault`` is the rest of the sentence after the path: "must be a string"."""
    return GatewayError(ErrorKind.INVALID_REQUEST, f"{path} {fault}.", param=path)


def as_list(value: object, path: str, expected: str) -> list[Any]:
    """Return ``value`` if it is a list. The error message says what was ``expected``."""
    if not isinstance(value, list):
        raise invalid(path, f"must be {expected}")
    return value


def opaque_part(type_: object, path: str) -> OpaquePart:
    return OpaquePart(type_ if isinstance(type_, str) else "unknown", path)
