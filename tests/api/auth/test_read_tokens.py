import pytest

from api.auth.read_tokens import looks_like_a_read_token, read_token_owner, sign_read_token
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import Settings

G, OTHER = "gen_" + "0" * 32, "gen_" + "1" * 32
OWNER = Principal("key_0123456789abcdef")
SECRET, ANOTHER = "a long random text of 32 bytes or more", "another long random text, of 32 bytes too"
SETTINGS = Settings(secret=SECRET)
TOKEN = sign_read_token(OWNER, G, SETTINGS)


def refused(token: str, generation_id: str = G, settings: Settings = SETTINGS) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        read_token_owner(token, generation_id, settings)
    return caught.value


def test_a_token_names_who_gave_it_away():
    assert read_token_owner(TOKEN, G, SETTINGS) == OWNER
    assert read_token_owner(TOKEN, G, Settings(secret=SECRET)) == OWNER  # Of another process.


def test_a_token_can_stand_in_an_address_and_tells_neither_key_nor_secret():
    assert all(char.isalnum() or char in "-_." for char in TOKEN)
    assert SECRET not in TOKEN


def test_a_token_is_for_one_generation_and_one_secret():
    assert refused(TOKEN, OTHER).failed.kind is ErrorKind.UNAUTHENTICATED
    assert refused(TOKEN, settings=Settings(secret=ANOTHER)).failed.code == "invalid_read_token"
    assert refused(TOKEN, settings=Settings(secret=None)).failed.code == "invalid_read_token"


def test_a_token_of_before_a_rotation_is_good_as_long_as_the_secret_before_is_known():
    assert read_token_owner(TOKEN, G, Settings(secret=ANOTHER, secret_previous=SECRET)) == OWNER
    assert sign_read_token(OWNER, G, Settings(secret=SECRET, secret_previous=ANOTHER)) == TOKEN


@pytest.mark.parametrize("owner", ["key_0123456789abcdef", "key_0123456789ab", "jwt_" + "0a" * 16, "anonymous"])
def test_the_form_of_a_token_is_known_whatever_it_was_signed_with(owner):
    for secret in (SECRET, ANOTHER):
        assert looks_like_a_read_token(sign_read_token(Principal(owner), G, Settings(secret=secret)))


@pytest.mark.parametrize(
    "text", ["", ".", "sk-abc", "a.b", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "x" * 43 + "." + "A" * 43]
)
def test_no_other_text_looks_like_one(text):
    assert not looks_like_a_read_token(text)


def test_a_token_of_which_any_one_character_is_changed_is_refused():
    # Not the last: four of its bits are beyond the signature's bytes.
    for place in range(len(TOKEN) - 1):
        for char in "A_.ü":
            if TOKEN[place] != char:
                refused(TOKEN[:place] + char + TOKEN[place + 1 :])


@pytest.mark.parametrize("token", ["", ".", "x", "a.b.c", TOKEN.partition(".")[0], "=", "é.é", "%00", TOKEN + "A", "." + TOKEN])
def test_what_is_no_token_is_refused(token):
    assert refused(token).failed.http_status == 401


def test_without_a_secret_nothing_is_signed():
    with pytest.raises(GatewayError, match="SLUICE_SECRET"):
        sign_read_token(OWNER, G, Settings(secret=None))


def test_a_token_of_an_earlier_version_is_still_good():
    earlier = "a2V5XzA.FEF8VdfgulMOd-lUkZzB8w7bKFg_CyXQiBCgev66f8Q"

    assert read_token_owner(earlier, "gen_1", SETTINGS) == Principal("key_0")
