import pytest

from api.server.answer_headers import security_headers


@pytest.mark.parametrize(
    ("own", "is_added"),
    [([], True), ([(b"content-type", b"application/json")], True), ([(b"cache-control", b"no-cache, no-transform")], False)],
)
def test_a_response_that_does_not_say_how_long_it_may_be_kept_must_not_be_kept(own, is_added):
    added = security_headers(own, is_https=False)

    assert ((b"cache-control", b"no-store") in added) is is_added


@pytest.mark.parametrize("is_https", [True, False])
def test_https_is_only_asked_for_over_https(is_https):
    names = {name for name, _ in security_headers([], is_https=is_https)}

    assert (b"strict-transport-security" in names) is is_https
    assert {b"x-content-type-options", b"referrer-policy", b"content-security-policy"} < names


def test_a_page_keeps_its_own_policy():
    added = security_headers([(b"content-security-policy", b"own")], is_https=False)

    assert b"content-security-policy" not in {name for name, _ in added}
