import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.access.key_records import KeyRecord
from common.access.key_text import is_id, mint, new_id, parse_key
from common.access.principal import Access

SECRET = SecretStr("a long random text that all processes share")
NOW_MS = 1_000_000


def test_a_key_reads_back_as_the_id_and_the_hash_that_it_was_made_with():
    id_ = new_id()

    text, secret_hash = mint(id_, SECRET)

    assert parse_key(text, SECRET) == (id_, secret_hash)
    assert is_id(id_)


def test_a_key_is_one_word_to_whoever_double_clicks_or_quotes_it():
    assert re.fullmatch(r"\w+", mint(new_id(), SECRET)[0], re.ASCII)


def test_no_two_keys_are_the_same_and_the_hash_does_not_hold_the_secret():
    minted = [mint(new_id(), SECRET) for _ in range(100)]

    assert len({text for text, _ in minted}) == len({hashed for _, hashed in minted}) == 100
    assert not any(hashed in text for text, hashed in minted)


@pytest.mark.parametrize("secret", [SecretStr("another"), None])
def test_a_key_that_was_made_with_another_secret_is_none(secret):
    assert parse_key(mint(new_id(), SECRET)[0], secret) is None


@given(place=st.integers(0, 60), char=st.sampled_from(string.ascii_letters + string.digits + "_-"))
def test_a_key_with_any_character_changed_is_none(place: int, char: str):
    text, _ = mint("0123456789ab", SECRET)
    changed = text[:place] + char + text[place + 1 :]

    assert (parse_key(changed, SECRET) is None) is (changed != text)


@given(st.text())
def test_no_text_that_was_not_made_here_is_a_key(text: str):
    assert parse_key(text, SECRET) is None
    assert parse_key("sk_sluice_" + text, SECRET) is None


def record(**fields: object) -> KeyRecord:
    return KeyRecord(id="i", name="", tenant="t", secret_hash="now", created_ms=1, updated_ms=1, access=Access(), **fields)


@pytest.mark.parametrize(
    ("secret_hash", "until_ms", "is_good"),
    [
        ("now", None, True),
        ("before", NOW_MS + 1, True),
        ("before", NOW_MS, False),
        ("before", None, False),
        ("other", NOW_MS + 1, False),
        ("", NOW_MS + 1, False),
    ],
)
def test_while_a_rotation_s_overlap_lasts_the_key_before_is_good_too(secret_hash, until_ms, is_good):
    presented = parse_key(mint(new_id(), SECRET)[0], SECRET)._replace(secret_hash=secret_hash)

    assert record(previous_hash="before", previous_until_ms=until_ms).accepts(presented, NOW_MS) is is_good


def test_a_key_that_was_never_rotated_has_no_key_before():
    presented = parse_key(mint(new_id(), SECRET)[0], SECRET)._replace(secret_hash="")

    assert not record(previous_until_ms=NOW_MS + 1).accepts(presented, NOW_MS)


def test_a_key_expires_at_its_moment():
    assert [record(expires_ms=NOW_MS).is_expired(now) for now in (NOW_MS - 1, NOW_MS)] == [False, True]
    assert not record().is_expired(NOW_MS)
