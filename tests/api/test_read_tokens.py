import pytest

from api.read_tokens import read_token_owner, sign_read_token
from common.access import Principal
from common.errors import ErrorKind, GatewayError
from common.settings import Settings

G, OTHER = "gen_" + "0" * 32, "gen_" + "1" * 32
OWNER = Principal("key_0123456789abcdef")
SETTINGS = Settings(secret="s3cret")
TOKEN = sign_read_token(OWNER, G, SETTINGS)


def refused(token: str, generation_id: str = G, settings: Settings = SETTINGS) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        read_token_owner(token, generation_id, settings)
    return caught.value


def test_a_token_names_who_gave_it_away():
    assert read_token_owner(TOKEN, G, SETTINGS) == OWNER
    assert read_token_owner(TOKEN, G, Settings(secret="s3cret")) == OWNER  # Of another process.


def test_a_token_can_stand_in_an_address_and_tells_neither_key_nor_secret():
    assert all(char.isalnum() or char in "-_." for char in TOKEN)
    assert "s3cret" not in TOKEN


def test_a_token_is_for_one_generation_and_one_secret():
    assert refused(TOKEN, OTHER).failed.kind is ErrorKind.UNAUTHENTICATED
    assert refused(TOKEN, settings=Settings(secret="another")).failed.code == "invalid_read_token"
    assert refused(TOKEN, settings=Settings(secret=None)).failed.code == "invalid_read_token"


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
