import contextlib
import time
from typing import Any

import jwt
import pytest
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from api.auth.authenticator import ANONYMOUS, Authenticator, Identity, is_open
from api.auth.key_cache import CachedKey
from api.auth.read_tokens import sign_read_token
from common.access.key_records import KeyRecord
from common.access.key_text import mint
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import Settings

KEYS = {"api_keys": "sk-one,sk-two"}
SECRET = "a long random text that all processes share"
JWT_SECRET = "a secret of at least thirty-two bytes"
TOKENS = {"jwt_secret": JWT_SECRET}
MANAGED_ID = "0123456789ab"
MANAGED, SECRET_HASH = mint(MANAGED_ID, SecretStr(SECRET))
OTHER_MANAGED, _ = mint(MANAGED_ID, SecretStr(SECRET))  # The same id, another secret.
PAGE = "https://app.example"


class KeyCacheForTests:
    """Knows one managed key, and counts who asks."""

    def __init__(self, **fields: Any) -> None:
        self.record = KeyRecord(
            **{"id": MANAGED_ID, "name": "", "tenant": "acme", "secret_hash": SECRET_HASH, "created_ms": 1, "updated_ms": 1}
            | fields
        )
        self.asked = 0

    async def find(self, id_: str) -> CachedKey:
        self.asked += 1
        return CachedKey(self.record if id_ == self.record.id else None, 0)


def connection(headers: dict[str, str], address: str = "192.0.2.1") -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "scheme": "http", "headers": raw, "client": (address, 1)})


async def identify_sender(settings: dict[str, Any], key_cache: KeyCacheForTests | None = None, **headers: str) -> Identity:
    return await Authenticator(Settings(**settings), key_cache).identify(connection(headers))


async def byok_key_of(settings: dict[str, Any], **headers: str) -> str | None:
    key = (await identify_sender(settings, KeyCacheForTests(), **headers)).byok_key
    return key.get_secret_value() if key else None


async def refusal(settings: dict[str, Any], key_cache: KeyCacheForTests | None = None, **headers: str) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await identify_sender(settings, key_cache, **headers)
    return caught.value


def token(secret: str = JWT_SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + 60, **claims}, secret, "HS256")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-one"},
        {"authorization": "bearer  sk-one "},
        {"x_api_key": "sk-one"},
        {"authorization": "Bearer wrong", "x_api_key": "sk-one"},
        {"x_sluice_key": "sk-one"},
        {"cf_aig_authorization": "Bearer sk-one"},
        {"cf_aig_authorization": "Bearer cloudflare's", "authorization": "Bearer sk-one"},
    ],
)
async def test_a_key_of_ours_is_taken_from_any_of_its_headers_and_nothing_is_brought(headers):
    found = await identify_sender(KEYS, **headers)

    assert found.principal == (await identify_sender(KEYS, authorization="Bearer sk-one")).principal
    assert found.principal != (await identify_sender(KEYS, authorization="Bearer sk-two")).principal
    assert "sk-one" not in found.principal.id
    assert found.byok_key is None


@pytest.mark.parametrize("gateway", [{"x_sluice_key": "sk-one"}, {"cf_aig_authorization": "Bearer sk-one"}])
@pytest.mark.parametrize("provider", [{"authorization": "Bearer sk-theirs"}, {"x_api_key": "sk-theirs"}])
async def test_beside_ours_in_a_header_of_its_own_the_usual_headers_bring_the_provider_s_key(gateway, provider):
    found = await identify_sender(KEYS, **gateway, **provider)

    assert found.principal == (await identify_sender(KEYS, x_api_key="sk-one")).principal
    assert found.byok_key is not None
    assert found.byok_key.get_secret_value() == "sk-theirs"
    assert "sk-theirs" not in repr(found)


async def test_a_key_of_ours_is_never_taken_for_the_provider_s():
    assert await byok_key_of(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-one") is None
    assert await byok_key_of(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-two") is None
    assert await byok_key_of(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-two", x_api_key="sk-theirs") == "sk-theirs"


@pytest.mark.parametrize(
    "ours",
    [MANAGED, OTHER_MANAGED, "sk_sluice_made_up", token(), token(exp=1), token(sub=5)],
    ids=["good", "same id", "made up", "token", "expired token", "bad token"],
)
async def test_nothing_that_was_made_for_us_is_shown_to_a_provider_be_it_good_or_not(ours):
    settings = {**KEYS, **TOKENS, "secret": SECRET}

    assert await byok_key_of(settings, x_sluice_key="sk-one", authorization=f"Bearer {ours}") is None


async def test_another_issuer_s_token_may_be_the_provider_s_key():
    theirs = token("another secret, of another issuer's")

    assert await byok_key_of({**KEYS, **TOKENS}, x_sluice_key="sk-one", authorization=f"Bearer {theirs}") == theirs


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({}, "No API key"),
        ({"authorization": "Basic sk-one"}, "No API key"),
        ({"authorization": "Bearer sk-wrong"}, "not valid"),
        ({"x_sluice_key": "sk-wrong"}, "not valid"),
        ({"x_sluice_key": "sk-wrong", "authorization": "Bearer sk-theirs"}, "not valid"),
    ],
)
async def test_without_a_key_of_ours_nobody_gets_in(headers, word):
    error = await refusal(KEYS, **headers)

    assert error.failed.kind is ErrorKind.UNAUTHENTICATED
    assert word in error.failed.message


async def test_an_open_gateway_takes_anything_for_its_own_key_unless_that_has_a_header_of_its_own():
    assert (await identify_sender({})).principal.id == ANONYMOUS
    assert (await identify_sender({}, authorization="Bearer sk-anything")).byok_key is None
    assert await byok_key_of({}, x_sluice_key="-", authorization="Bearer sk-theirs") == "sk-theirs"
    assert (await identify_sender({**KEYS, "auth": "none"}, authorization="Bearer sk-anything")).principal.id == ANONYMOUS


async def test_a_good_key_is_known_where_anybody_is_let_in_too():
    named = await identify_sender({**KEYS, "auth": "none"}, authorization="Bearer sk-one")

    assert named.principal == (await identify_sender(KEYS, authorization="Bearer sk-one")).principal


@pytest.mark.parametrize(
    ("settings", "open_"),
    [
        ({}, True),
        (KEYS, False),
        (TOKENS, False),
        ({"jwt_jwks_url": "https://issuer.example/keys"}, False),
        ({"secret": SECRET}, False),  # Managed keys can be made: whoever makes one relies on it.
        ({"admin_keys": "a"}, False),
        ({**KEYS, "secret": SECRET, "auth": "none"}, True),
    ],
)
def test_only_what_knows_of_no_way_to_tell_who_asks_is_open(settings, open_):
    assert is_open(Settings(**settings)) is open_


# Managed keys


async def test_a_managed_key_names_itself_its_tenant_and_what_both_may():
    key_cache = KeyCacheForTests(access=Access(models=("gpt-*",)))

    found = (await identify_sender({"secret": SECRET}, key_cache, x_api_key=MANAGED)).principal

    assert (found.id, found.tenant, found.access.models) == (f"key_{MANAGED_ID}", "acme", ("gpt-*",))


@pytest.mark.parametrize(
    "text",
    ["sk_sluice_", MANAGED[:-1] + "!", MANAGED[:-1], MANAGED + "x", "sk_sluice_" + "x" * 51],
    ids=["prefix", "mistyped", "cut", "longer", "made up"],
)
async def test_a_text_that_cannot_be_a_managed_key_is_not_even_looked_up(text):
    key_cache = KeyCacheForTests()

    error = await refusal({"secret": SECRET}, key_cache, x_api_key=text)

    assert error.failed.kind is ErrorKind.UNAUTHENTICATED
    assert key_cache.asked == 0


async def test_an_id_alone_says_nothing_about_a_key():
    wrong = await refusal({"secret": SECRET}, KeyCacheForTests(is_disabled=True, expires_ms=1), x_api_key=OTHER_MANAGED)
    unknown = await refusal({"secret": SECRET}, KeyCacheForTests(id="another"), x_api_key=MANAGED)

    assert wrong.failed == unknown.failed


@pytest.mark.parametrize(("fields", "word"), [({"is_disabled": True}, "disabled"), ({"expires_ms": 1}, "expired")])
async def test_who_has_a_key_is_told_why_it_is_good_for_nothing_any_more(fields, word):
    error = await refusal({"secret": SECRET}, KeyCacheForTests(**fields), x_api_key=MANAGED)

    assert error.failed.kind is ErrorKind.UNAUTHENTICATED
    assert word in error.failed.message


# Scopes and pages


@pytest.mark.parametrize(("scope", "is_let_in"), [("read usage", False), ("generate", True), ("", False), (None, True)])
async def test_a_token_that_lists_scopes_is_good_for_these_alone(scope, is_let_in):
    said = {"scope": scope} if scope is not None else {}
    asking = connection({"authorization": f"Bearer {token(**said)}"})
    authenticator = Authenticator(Settings(**TOKENS))

    if is_let_in:
        await authenticator.authenticate(asking, "generate")
    else:
        with pytest.raises(GatewayError, match="'generate'") as caught:
            await authenticator.authenticate(asking, "generate")
        assert caught.value.failed.kind is ErrorKind.PERMISSION_DENIED
    assert await authenticator.authenticate(asking)


@pytest.mark.parametrize(
    ("listed", "settings", "origin", "is_let_in"),
    [
        (None, {}, "https://any.example", True),  # Whether the page can read the answer is CORS' matter.
        ((PAGE,), {}, PAGE, True),
        ((PAGE,), {}, "https://evil.example", False),
        ((PAGE,), {}, "null", False),
        ((PAGE,), {"cors_origins": "https://ours.example"}, "https://ours.example", True),
        ((PAGE,), {"cors_origins": "*"}, "https://evil.example", True),
        ((), {}, PAGE, False),
        ((), {}, "http://gateway.example", True),  # The gateway's own page.
        (("*",), {}, "https://any.example", True),
    ],
)
async def test_a_key_that_lists_pages_is_good_from_these_alone(listed, settings, origin, is_let_in):
    key_cache = KeyCacheForTests(access=Access(cors_origins=listed))
    headers = {"x_api_key": MANAGED, "origin": origin, "host": "gateway.example"}

    if is_let_in:
        await identify_sender({"secret": SECRET, **settings}, key_cache, **headers)
    else:
        error = await refusal({"secret": SECRET, **settings}, key_cache, **headers)
        assert (error.failed.kind, error.failed.code) == (ErrorKind.PERMISSION_DENIED, "origin_not_allowed")


async def test_what_is_no_browser_sends_no_origin_and_is_let_in():
    await identify_sender({"secret": SECRET}, KeyCacheForTests(access=Access(cors_origins=(PAGE,))), x_api_key=MANAGED)


async def test_a_tenant_s_list_of_pages_holds_for_its_keys_and_its_tokens():
    tenants = {"acme": Access(cors_origins=(PAGE,))}
    asking = {"authorization": f"Bearer {token(tenant='acme')}", "origin": "https://evil.example"}

    error = await refusal({**TOKENS, "tenants": tenants}, **asking)

    assert error.failed.code == "origin_not_allowed"


# Guessing


async def test_an_address_that_guesses_is_blocked_but_nobody_with_a_good_credential_behind_it():
    refused: list[str] = []
    long = "sk-0123456789abcdef"
    settings = Settings(
        api_keys=f"sk-one,sk-two,{long}", secret=SECRET, **TOKENS, refused_credentials_max=3, refused_credentials_block_s=30
    )
    authenticator = Authenticator(settings, KeyCacheForTests(), on_refused=refused.append)

    async def status_of(key: str, address: str = "192.0.2.1") -> ErrorKind | None:
        try:
            await authenticator.identify(connection({"x_api_key": key}, address))
        except GatewayError as error:
            return error.failed.kind
        return None

    assert await status_of("sk-one") is None
    assert [await status_of(f"guess-{n}") for n in range(4)] == [ErrorKind.UNAUTHENTICATED] * 4

    assert await status_of("guess-5") is ErrorKind.RATE_LIMITED
    good = ("sk-one", "sk-two", long, MANAGED, token())
    assert [await status_of(each) for each in good] == [None] * 5, "seen before or not, long or short"
    assert await status_of(token(exp=1)) is ErrorKind.UNAUTHENTICATED
    assert await status_of(token("another secret, of another issuer's")) is ErrorKind.RATE_LIMITED
    assert await status_of(OTHER_MANAGED) is ErrorKind.RATE_LIMITED
    assert await status_of("guess-6", "192.0.2.2") is ErrorKind.UNAUTHENTICATED
    assert refused == ["unknown"] * 4 + ["blocked"] + ["expired"] + ["blocked"] * 2 + ["unknown"]


async def test_a_blocked_address_is_told_the_same_of_every_guess():
    authenticator = Authenticator(Settings(**KEYS, **TOKENS, secret=SECRET, refused_credentials_max=1), KeyCacheForTests())
    guesses = ["guess", "sk-on", "sk-onee", OTHER_MANAGED, "sk_sluice_made_up", token("s" * 40), token(sub=5), "ey.."]
    told = []
    for guess in [*guesses[:2], *guesses]:
        with pytest.raises(GatewayError) as caught:
            await authenticator.identify(connection({"x_api_key": guess}))
        told.append(caught.value.failed)

    assert len({(each.kind, each.code, each.message.rpartition(" in ")[0]) for each in told[2:]}) == 1
    assert told[-1].code == "too_many_refused_credentials"


def test_an_admin_key_is_good_behind_a_blocked_address_too():
    authenticator = Authenticator(Settings(**KEYS, secret=SECRET, admin_keys="admin-1", refused_credentials_max=1))
    for expected in [ErrorKind.UNAUTHENTICATED] * 2 + [ErrorKind.RATE_LIMITED]:
        with pytest.raises(GatewayError) as caught:
            authenticator.check_admin(connection({"x_api_key": "guess"}))
        assert caught.value.failed.kind is expected

    authenticator.check_admin(connection({"x_api_key": "admin-1"}))


OURS = {
    "a static key": "sk-one",
    "an admin key": "admin-1",
    "a managed key": MANAGED,
    "one that was made with another secret": mint(MANAGED_ID, SecretStr("another secret of these tests, 32 bytes"))[0],
    "a mistyped one": MANAGED[:-1],
    "a token": token(iss="https://us"),
    "one that has expired": token(exp=1),
    "one that was signed with another secret, by our issuer": token(
        "another secret of these tests, 32 bytes", iss="https://us"
    ),
    "a read token": sign_read_token(Principal("key_0123456789abcdef"), "gen_1", Settings(secret=SECRET)),
    "one of before a rotation": sign_read_token(Principal("jwt_1"), "gen_1", Settings(secret=SECRET[::-1])),
}


@pytest.mark.parametrize("text", OURS.values(), ids=list(OURS))
@pytest.mark.parametrize("header", ["authorization", "x_api_key"])
async def test_no_credential_of_ours_is_taken_for_a_providers(text, header):
    settings = Settings(**KEYS, **TOKENS, secret=SECRET, admin_keys="admin-1", jwt_issuer="https://us")
    authenticator = Authenticator(settings, KeyCacheForTests())
    sent = f"Bearer {text}" if header == "authorization" else text

    found = await authenticator.identify(connection({"x_sluice_key": "sk-one", header: sent}))

    assert found.byok_key is None
    passed = {
        "cf-aig-metadata": f'{{"key": "{text}"}}',
        "anthropic-beta": f"a-2025-01-01,{text}",
        "anthropic-version": "2023-06-01",
    }
    assert await authenticator.without_gateway_credentials(passed) == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize("text", ["sk-ant-api03-theirs-0123456789", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "x.y"])
async def test_anothers_is_passed_on(text):
    found = await identify_sender({**KEYS, **TOKENS, "secret": SECRET}, x_sluice_key="sk-one", authorization=f"Bearer {text}")

    assert found.byok_key is not None
    assert found.byok_key.get_secret_value() == text


async def test_a_managed_key_of_before_a_rotation_is_good_while_the_secret_before_is_known():
    new = "another secret of these tests, 32 bytes"

    found = await identify_sender({"secret": new, "secret_previous": SECRET}, KeyCacheForTests(), x_api_key=MANAGED)

    assert found.principal.id == f"key_{MANAGED_ID}"
    await refusal({"secret": new}, KeyCacheForTests(), x_api_key=MANAGED)


async def test_what_has_expired_is_refused_but_blocks_nobody():
    authenticator = Authenticator(Settings(**TOKENS, refused_credentials_max=1))
    for _ in range(5):
        with pytest.raises(GatewayError) as caught:
            await authenticator.identify(connection({"x_api_key": token(exp=1)}))

    assert caught.value.failed.kind is ErrorKind.UNAUTHENTICATED


def test_an_admin_key_is_no_client_s_key_and_the_other_way_round():
    authenticator = Authenticator(Settings(**KEYS, secret=SECRET, admin_keys="admin-1,admin-2"))

    authenticator.check_admin(connection({"authorization": "Bearer admin-2"}))

    for headers in ({}, {"x_api_key": "sk-one"}, {"x_api_key": MANAGED}, {"x_sluice_key": "admin-1"}):
        with pytest.raises(GatewayError) as caught:
            authenticator.check_admin(connection(headers))
        assert caught.value.failed.kind is ErrorKind.UNAUTHENTICATED


async def test_an_admin_key_lets_no_client_in():
    error = await refusal({**KEYS, "secret": SECRET, "admin_keys": "admin-1"}, x_api_key="admin-1")

    assert error.failed.kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("owner", "fields", "is_good"),
    [
        (f"key_{MANAGED_ID}", {}, True),
        (f"key_{MANAGED_ID}", {"is_disabled": True}, False),
        (f"key_{MANAGED_ID}", {"expires_ms": 1}, False),
        ("key_000000000000", {}, False),
        (f"key_{'a' * 16}", {}, True),
        ("jwt_0123456789abcdef", {}, True),
        ("anonymous", {}, True),
    ],
    ids=["good", "disabled", "expired", "deleted", "static", "token", "nobody"],
)
async def test_a_revoked_key_takes_the_read_tokens_along_that_it_gave_away(owner, fields, is_good):
    authenticator = Authenticator(Settings(**KEYS, secret=SECRET), KeyCacheForTests(**fields))

    with contextlib.nullcontext() if is_good else pytest.raises(GatewayError):
        await authenticator.check_read_token_owner(Principal(owner))
