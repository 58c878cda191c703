"""Which texts are numbers?"""

import pytest
from starlette.datastructures import QueryParams

from api.server.numbers import parse_integer, query_number
from common.canonical.errors import ErrorKind, GatewayError

NO_NUMBERS = [
    *("", " ", "x", "+5", "-5", "5 ", " 5", "5.0", "5e0", "0x5", "1_0", "5\n", "5\0", "NaN", "null"),
    *("\u0665", "\uff15", "\u00b2", "9" * 5000),  # Digits of other scripts, and more than Python reads.
]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "0", "11", "0" * 5000 + "5"])
def test_what_is_no_number_within_bounds_is_none(text: str):
    assert parse_integer(text, 1, 10) is None


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("10", 10), ("007", 7)])
def test_ascii_digits_are_a_number(text: str, number: int):
    assert parse_integer(text, 1, 10) == number


@pytest.mark.parametrize("query", [{"limit": text} for text in NO_NUMBERS] + [[("limit", "5"), ("limit", "5")]])
def test_a_query_that_names_no_number_is_refused_by_name_and_range(query):
    with pytest.raises(GatewayError, match="limit must be one integer from 1 to 100") as refused:
        query_number(QueryParams(query), "limit", 1, 100, 20)

    assert refused.value.failed.kind is ErrorKind.INVALID_REQUEST
    assert refused.value.failed.param == "limit"


def test_a_number_that_is_not_there_is_what_is_usual():
    assert query_number(QueryParams("other=5"), "limit", 1, 100, 20) == 20
    assert query_number(QueryParams("limit=5"), "limit", 1, 100, 20) == 5
    assert query_number({"after": "0"}, "after", 0, 9, None) == 0
