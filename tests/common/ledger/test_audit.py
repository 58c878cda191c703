"""What the audit log keeps, nobody reads without the secret, and what is personal in it not even then."""

from typing import Any

import orjson
import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.access.principal import Access, Principal
from common.canonical.errors import GatewayError
from common.config.settings import Settings
from common.ledger.audit import (
    DEPTH_MAX,
    ENTRY_BYTES_MAX,
    TEXT_CHARS_MAX,
    bounded_json,
    check_audit_is_possible,
    redacted_json,
    seal,
    unseal,
)

SECRET = SecretStr("a long random text of 32 bytes or more")
OTHER = SecretStr("another long random text, of 32 bytes too")
ENTRY = {"owner": "key_a", "request": {"messages": [{"role": "user", "content": "Hello"}]}, "answer": [[{"text": "Hi"}]]}


def test_an_entry_comes_back_as_it_was_sealed():
    assert unseal(seal(ENTRY, "gen_1", SECRET), "gen_1", SECRET) == ENTRY


@pytest.mark.parametrize(("generation_id", "secret"), [("gen_2", SECRET), ("gen_1", OTHER)])
def test_it_opens_with_its_own_id_and_secret_alone(generation_id: str, secret: SecretStr):
    with pytest.raises(ValueError, match="another SLUICE_SECRET"):
        unseal(seal(ENTRY, "gen_1", SECRET), generation_id, secret)


def test_an_entry_of_before_a_rotation_opens_with_the_secret_before():
    assert unseal(seal(ENTRY, "gen_1", OTHER), "gen_1", SECRET, OTHER) == ENTRY


def test_what_is_no_entry_is_said_so():
    with pytest.raises(ValueError):
        unseal(Fernet.generate_key(), "gen_1", SECRET)


def test_personal_data_and_keys_are_gone_wherever_they_stand():
    found = redacted_json(
        {
            "request": {"messages": [{"content": [{"type": "text", "text": "bob@example.com"}]}], "user": "eve@example.com"},
            "answer": [[{"text": "4111 1111 1111 1111"}, {"tool": "t", "arguments": '{"key": "sk-' + "a1" * 20 + '"}'}]],
        }
    )

    assert found["request"] == {"messages": [{"content": [{"type": "text", "text": "[EMAIL]"}]}], "user": "[EMAIL]"}
    assert found["answer"] == [[{"text": "[CARD]"}, {"tool": "t", "arguments": '{"key":"[KEY]"}'}]]


def test_numbers_names_and_json_in_a_string_are_read_too():
    found = redacted_json(
        {"input": {"card": 4111111111111111, "bob@example.com": 1}, "output": '{"m":"bob\\u0040example.com"}'}
    )

    assert found == {"input": {"card": "[CARD]", "[EMAIL]": 1}, "output": '{"m":"[EMAIL]"}'}


def test_long_text_is_cut_and_says_so():
    assert bounded_json("x" * (TEXT_CHARS_MAX + 5)) == "x" * TEXT_CHARS_MAX + " [5 characters left out]"


def test_a_request_that_is_too_large_is_left_out_and_the_rest_is_kept():
    pieces = ["word " * (TEXT_CHARS_MAX // 5)] * (ENTRY_BYTES_MAX // TEXT_CHARS_MAX + 2)

    found = unseal(seal({**ENTRY, "request": pieces}, "gen_1", SECRET), "gen_1", SECRET)

    assert len(orjson.dumps(pieces)) > ENTRY_BYTES_MAX
    assert found == {**ENTRY, "request": "left out: more than 1 MiB"}


def test_deep_nesting_is_bounded():
    deep: Any = "x"
    for _ in range(5_000):
        deep = [deep]

    found = bounded_json(deep)

    depth = 0
    while isinstance(found, list):
        (found,), depth = found, depth + 1
    assert (found, depth) == ("[nested too deeply]", DEPTH_MAX)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),  # A longer one may be a card's number.
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_the_shape_of_what_was_asked_stays(value: Any):
    def shape(of: Any) -> Any:
        if isinstance(of, dict):
            return {name: shape(each) for name, each in of.items()}
        return [shape(each) for each in of] if isinstance(of, list) else type(of)

    assert shape(redacted_json(bounded_json(value))) == shape(value)


AUDITED = Access(audit=True)


@pytest.mark.parametrize("principal", [Principal("p", access=AUDITED), Principal("p", tenant_access=AUDITED)])
def test_what_must_be_kept_and_cannot_is_refused(principal: Principal):
    with pytest.raises(GatewayError) as refused:
        check_audit_is_possible(principal, Settings(secret=None))

    assert (refused.value.failed.http_status, refused.value.failed.code) == (503, "audit_unavailable")
    check_audit_is_possible(principal, Settings(secret=SECRET))


def test_nobody_else_is():
    check_audit_is_possible(Principal("p"), Settings(secret=None))
