"""How is a number read that a client sends as text?

Python's ``int`` accepts signs, spaces, underscores and the digits of every script, and fails on more than 4,300 digits.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from starlette.datastructures import QueryParams

from common.canonical.errors import ErrorKind, GatewayError

_DIGITS = re.compile(r"[0-9]{1,18}")
_Absent = TypeVar("_Absent", int, None)


def parse_integer(text: str, least: int, most: int) -> int | None:
    """Return the number that ASCII digits stand for; None if the text is not a number, or is out of bounds."""
    if not _DIGITS.fullmatch(text):
        return None
    number = int(text)
    return number if least <= number <= most else None


def query_number(
    query: Mapping[str, str], name: str, least: int, most: int, absent: _Absent, code: str | None = None
) -> int | _Absent:
    """Return the number in a query parameter, or ``absent`` if there is none.

    Raises:
        GatewayError: INVALID_REQUEST, it is not a number, is out of bounds, or is there twice.
    """
    texts = QueryParams(query).getlist(name)
    if not texts:
        return absent
    number = parse_integer(texts[0], least, most) if len(texts) == 1 else None
    if number is None:
        message = f"{name} must be one integer from {least} to {most}."
        raise GatewayError(ErrorKind.INVALID_REQUEST, message, param=name, code=code)
    return number
