import pytest

from api.routes.paging import after_in, limit_in, page_of
from common.canonical.errors import GatewayError

FOUND = [{"id": "a"}, {"id": "b"}, {"id": "c"}]


def test_a_page_names_its_ends_and_says_whether_there_is_more():
    first = {"object": "list", "data": FOUND[:2], "first_id": "a", "last_id": "b", "has_more": True}
    last = {"object": "list", "data": FOUND, "first_id": "a", "last_id": "c", "has_more": False}
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

    assert (page_of(FOUND, 2), page_of(FOUND, 3), page_of([], 3)) == (first, last, empty)


def test_a_limit_is_one_number_within_bounds():
    assert (limit_in({}), limit_in({"limit": "100"}), limit_in({}, 1_000, 7)) == (20, 100, 7)
    for text in ("0", "101", "9" * 5_000):
        with pytest.raises(GatewayError, match="limit must be one integer from 1 to 100"):
            limit_in({"limit": text})


def test_a_list_goes_on_only_after_what_may_be_an_id():
    assert after_in({}, str.isalpha, "a key") is None
    assert after_in({"after": "a"}, str.isalpha, "a key") == "a"
    with pytest.raises(GatewayError, match="after must be the id of a key"):
        after_in({"after": ""}, str.isalpha, "a key")
