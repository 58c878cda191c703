"""Tokens of every kind that is not good, and key sets that come, change and go."""

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from api.auth.jwt import (
    KEY_SET_BYTES_MAX,
    REFETCH_S,
    REFRESH_S,
    TOKEN_CHARS_MAX,
    KeySet,
    TokenRefused,
    TokenVerifier,
    public_keys,
)
from common.access.principal import ALL, Access
from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import Settings

SECRET = "a secret of at least thirty-two bytes"
ISSUER, AUDIENCE = "https://issuer.example/", "sluice"
RSA_1, RSA_2 = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())


def claims(**more: Any) -> dict[str, Any]:
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "tenant": "acme", "exp": time.time() + 60, **more}
    return {name: value for name, value in said.items() if value is not None}


def jwk(private: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    listed = {**kind.to_jwk(private.public_key(), as_dict=True), "use": "sig", **more}
    return {**listed, "kid": kid} if kid else listed


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Issuer:
    """Serves a key set, and counts how often. ``status`` None: it never answers."""

    def __init__(self) -> None:
        self.body = key_set(jwk(RSA_1, "one"))
        self.status: int | None = 200
        self.fetched = 0
        self.headers: dict[str, str] = {}
        self.is_over = asyncio.Event()

    async def answer(self, _: web.Request) -> web.Response:
        self.fetched += 1
        if self.status is None:
            await self.is_over.wait()
        return web.Response(body=self.body, status=self.status or 0, headers=self.headers)


@pytest.fixture
async def issuer():
    found = Issuer()
    app = web.Application()
    app.router.add_get("/keys", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield found
    found.is_over.set()
    await runner.cleanup()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def with_keys(issuer: Issuer, clock: Clock | None = None, **settings: Any) -> TokenVerifier:
    named = {"jwt_jwks_url": issuer.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **settings}
    return TokenVerifier(Settings(**named), KeySet(issuer.url, clock or Clock()))


def with_secret(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(**{"jwt_secret": SECRET, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **settings}))


async def reason(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        await verifier.verify(token)
    return caught.value.reason


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_a_good_token_names_its_tenant_its_user_and_what_they_may():
    tenants = {"acme": Access(models=("gpt-*",))}

    found = await with_secret(tenants=tenants).verify(jwt.encode(claims(scope="read generate"), SECRET))

    assert found.id.startswith("jwt_")
    assert (found.tenant, found.end_user, found.scopes) == ("acme", "ann", {"read", "generate"})
    assert found.tenant_access == tenants["acme"]
    assert found.access == ALL


@pytest.mark.parametrize(
    ("said", "scopes"),
    [({}, None), ({"scope": ""}, set()), ({"scope": ["read", 5]}, {"read"}), ({"scope": "a  b"}, {"a", "b"})],
)
async def test_scopes_are_words_or_a_list_and_all_where_there_is_no_claim(said, scopes):
    assert (await with_secret().verify(jwt.encode(claims(**said), SECRET))).scopes == scopes


async def test_the_claims_that_name_tenant_and_scopes_are_set():
    verifier = with_secret(jwt_tenant_claim="org", jwt_scopes_claim="scp")

    found = await verifier.verify(jwt.encode(claims(org=42, scp=["usage"]), SECRET))

    assert (found.tenant, found.scopes) == ("42", {"usage"})


async def test_whoever_is_another_is_another_principal():
    verifier = TokenVerifier(Settings(jwt_secret=SECRET))
    people = [{}, {"sub": "bob"}, {"tenant": "other"}, {"iss": "https://other/"}, {"tenant": None}]
    people += [{"tenant": "acmea", "sub": "nn"}, {"tenant": "acm", "sub": "eann"}]

    ids = [(await verifier.verify(jwt.encode(claims(**{"aud": None, **who}), SECRET))).id for who in people]

    assert len(set(ids)) == len(people)
    assert ids[0] == (await verifier.verify(jwt.encode(claims(aud=None, exp=time.time() + 999), SECRET))).id


async def test_without_a_tenant_whoever_asks_is_one_of_its_own():
    found = await with_secret().verify(jwt.encode(claims(tenant=None), SECRET))

    assert found.tenant == found.id


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"exp": time.time() - 3600}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "signature"),
        ({"iss": None}, "claims"),
        ({"iss": "https://evil.example/"}, "claims"),
        ({"aud": None}, "claims"),
        ({"aud": "another"}, "claims"),
        ({"aud": ["x", "y"]}, "claims"),
        ({"nbf": time.time() + 3600}, "claims"),
        ({"iat": time.time() + 3600}, "claims"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": "a\nb"}, "claims"),
        ({"sub": "x" * 256}, "claims"),
        ({"tenant": ["acme"]}, "claims"),
        ({"tenant": "x" * 65}, "claims"),
        ({"tenant": True}, "claims"),
        ({"tenant": "a\r\nb"}, "claims"),
        ({"scope": 5}, "claims"),
        ({"scope": {"read": True}}, "claims"),
    ],
)
async def test_a_token_whose_claims_are_wrong_is_refused(said, expected):
    assert await reason(with_secret(), jwt.encode(claims(**said), SECRET)) == expected


async def test_clocks_may_be_off_by_the_leeway_and_no_more():
    verifier = with_secret(jwt_leeway_s=100)
    now = time.time()

    await verifier.verify(jwt.encode(claims(exp=now - 50, nbf=now + 50, iat=now + 50), SECRET))

    assert await reason(verifier, jwt.encode(claims(exp=now - 150), SECRET)) == "expired"
    assert await reason(verifier, jwt.encode(claims(nbf=now + 150), SECRET)) == "claims"


async def test_any_of_several_audiences_will_do():
    verifier = with_secret(jwt_audience="a,b")

    assert await verifier.verify(jwt.encode(claims(aud=["x", "b"]), SECRET))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, "HS384", "HS512", "PS256", "EdDSA", 5, ["HS256"]])
async def test_an_algorithm_that_is_not_set_up_is_refused_whatever_the_token_says(alg):
    for signature in (b"", b"x" * 32):
        token = unsigned({"alg": alg, "typ": "JWT"}, claims(), signature)
        assert await reason(with_secret(), token) in ("algorithm", "malformed")


async def test_a_token_without_a_signature_is_refused():
    good = jwt.encode(claims(), SECRET)

    assert await reason(with_secret(), good.rpartition(".")[0] + ".") == "signature"


async def test_a_token_of_another_secret_is_refused():
    assert await reason(with_secret(), jwt.encode(claims(), SECRET + "!")) == "signature"


async def test_changing_one_claim_of_a_good_token_makes_it_a_bad_one():
    header, _, signature = jwt.encode(claims(), SECRET).split(".")
    body = unsigned({}, claims(tenant="victim")).split(".")[1]

    assert await reason(with_secret(), f"{header}.{body}.{signature}") == "signature"


async def test_the_public_key_is_no_secret_to_sign_with(issuer):
    pem = RSA_1.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signer = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    start = unsigned({"alg": "HS256", "kid": "one"}, claims()).rpartition(".")[0]
    forged = start + "." + base64.urlsafe_b64encode(signer.sign(start.encode(), pem)).rstrip(b"=").decode()

    assert await reason(with_keys(issuer), forged) == "algorithm"
    assert await reason(with_keys(issuer, jwt_secret=SECRET), forged) == "signature"


async def test_a_key_is_good_for_its_own_algorithm_alone(issuer):
    issuer.body = key_set(jwk(RSA_1, "one"), jwk(EC, "two"))
    verifier = with_keys(issuer)

    for private, kid, alg in [(RSA_1, "one", "RS256"), (EC, "two", "ES256")]:
        assert (await verifier.verify(jwt.encode(claims(), private, alg, {"kid": kid}))).end_user == "ann"
    assert await reason(verifier, jwt.encode(claims(), RSA_1, "RS256", {"kid": "two"})) == "algorithm"
    assert await reason(verifier, jwt.encode(claims(), RSA_1, "RS512", {"kid": "one"})) == "algorithm"
    assert await reason(verifier, jwt.encode(claims(), RSA_1, "PS256", {"kid": "one"})) == "algorithm"
    assert await reason(verifier, jwt.encode(claims(), RSA_2, "RS256", {"kid": "one"})) == "signature"


async def test_a_key_that_comes_with_the_token_is_not_looked_at(issuer):
    header = {"kid": "mine", "jwk": jwk(RSA_2, "mine"), "jku": issuer.url, "x5u": issuer.url}

    assert await reason(with_keys(issuer), jwt.encode(claims(), RSA_2, "RS256", header)) == "signature"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "...",
        "ey.ey.ey",
        "ey" + "x" * TOKEN_CHARS_MAX + ".a.b",
        base64.urlsafe_b64encode(b'{"a":' * 1500).decode() + ".e30.x",
        base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.x",
        base64.urlsafe_b64encode(b"\xff\xfe").decode() + ".e30.x",
        unsigned({"alg": "HS256", "kid": 5}, {}),
        unsigned({"alg": "HS256", "kid": ["x"]}, {}),
        unsigned({"alg": "HS256", "crit": ["exp"], "exp": 1}, {}),
        unsigned({"alg": "HS256", "b64": False, "crit": ["b64"]}, {}),
    ],
)
async def test_what_is_no_token_is_refused_and_breaks_nothing(token):
    assert await reason(with_secret(), token) == "malformed"


@pytest.mark.parametrize("body", [b"[" * 5000, b"[]", b"5", b'"x"', b'{"exp":1e999,"sub":"a","iss":"i","aud":"a"}', b"\xff"])
async def test_a_signed_token_whose_claims_are_none_is_refused_and_breaks_nothing(body):
    token = jwt.PyJWS().encode(body, SECRET, "HS256")

    assert await reason(with_secret(), token) in ("signature", "claims", "malformed")


# Key sets


def signed(private: Any = RSA_1, kid: str | None = "one") -> str:
    return jwt.encode(claims(), private, "RS256", {"kid": kid} if kid else None)


async def test_keys_are_fetched_once_for_all_who_ask_at_once(issuer):
    verifier = with_keys(issuer)

    await asyncio.gather(*(verifier.verify(signed()) for _ in range(20)))

    assert issuer.fetched == 1


async def test_a_new_key_is_fetched_when_a_token_names_it_and_the_old_one_goes(issuer):
    clock = Clock()
    verifier = with_keys(issuer, clock)
    await verifier.verify(signed())
    issuer.body = key_set(jwk(RSA_2, "two"))

    clock.now += REFETCH_S
    await verifier.verify(signed(RSA_2, "two"))

    assert await reason(verifier, signed()) == "signature"
    assert issuer.fetched == 2


async def test_made_up_key_ids_fetch_at_most_once_in_a_while(issuer):
    clock = Clock()
    verifier = with_keys(issuer, clock)
    await verifier.verify(signed())
    clock.now += REFETCH_S
    for number in range(50):
        assert await reason(verifier, signed(RSA_2, f"made-up-{number}")) == "signature"

    assert issuer.fetched == 2


async def test_a_key_that_was_taken_off_the_list_is_good_no_longer_than_until_the_next_refresh(issuer):
    clock = Clock()
    verifier = with_keys(issuer, clock)
    await verifier.verify(signed())
    issuer.body = key_set(jwk(RSA_2, "two"))

    clock.now += REFRESH_S
    with pytest.raises(TokenRefused) as caught:
        async with asyncio.timeout(120):
            while await verifier.verify(signed()):  # The first begins a refresh that nobody waits for.
                await asyncio.sleep(0.01)

    assert caught.value.reason == "signature"


@pytest.mark.parametrize("broken", [{"status": 500}, {"status": 302}, {"body": b"<html>"}, {"body": b'{"keys":[]}'}])
async def test_the_last_good_keys_are_kept_while_none_can_be_fetched(issuer, broken):
    clock = Clock()
    verifier = with_keys(issuer, clock)
    await verifier.verify(signed())
    issuer.headers = {"location": issuer.url}
    for name, value in broken.items():
        setattr(issuer, name, value)

    for fetched in (2, 3, 4):
        clock.now += REFRESH_S
        async with asyncio.timeout(120):
            while issuer.fetched < fetched:
                await verifier.verify(signed())
                await asyncio.sleep(0.01)

    assert issuer.fetched == 4
    assert await verifier.verify(signed())


async def test_without_any_keys_the_gateway_says_that_it_cannot_tell_and_goes_on_asking(issuer):
    clock = Clock()
    verifier = with_keys(issuer, clock)
    issuer.status = 503
    for _ in range(5):
        with pytest.raises(GatewayError) as caught:
            await verifier.verify(signed())
        assert (caught.value.failed.kind, caught.value.failed.retry_after_s) == (ErrorKind.OVERLOADED, 5)
    assert issuer.fetched == 1
    issuer.status, clock.now = 200, clock.now + 1

    assert await verifier.verify(signed())


async def test_an_issuer_that_does_not_answer_is_waited_for_a_bounded_time(issuer, monkeypatch):
    monkeypatch.setattr("api.auth.jwt.FETCH_TIMEOUT_S", 0.1)
    issuer.status = None

    with pytest.raises(GatewayError):
        await with_keys(issuer).verify(signed())


async def test_a_key_set_is_fetched_through_the_environments_proxy(issuer, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", issuer.url.removesuffix("/keys"))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    named = {"jwt_jwks_url": "http://issuer.invalid/keys", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}

    assert await TokenVerifier(Settings(**named)).verify(signed())
    with pytest.raises(GatewayError):
        await TokenVerifier(Settings(**named, proxy_from_env=False)).verify(signed())

    assert issuer.fetched == 1


async def test_a_proxy_that_cannot_be_used_is_not_passed_by(issuer, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    with pytest.raises(GatewayError):
        await TokenVerifier(Settings(jwt_jwks_url=issuer.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)).verify(signed())

    assert issuer.fetched == 0


async def test_a_key_set_without_bounds_is_not_read_to_its_end(issuer):
    issuer.body = key_set(jwk(RSA_1, "one")) + b" " * KEY_SET_BYTES_MAX

    with pytest.raises(GatewayError):
        await with_keys(issuer).verify(signed())


async def test_a_redirect_is_not_followed(issuer):
    issuer.status, issuer.headers = 302, {"location": issuer.url + "?elsewhere"}

    with pytest.raises(GatewayError):
        await with_keys(issuer).verify(signed())
    assert issuer.fetched == 1


async def test_without_a_name_the_only_key_is_meant_and_none_where_there_are_more(issuer):
    verifier = with_keys(issuer)
    assert await verifier.verify(signed(kid=None))

    issuer.body = key_set(jwk(RSA_1, "one"), jwk(RSA_2, "two"))
    assert await reason(with_keys(issuer), signed(kid=None)) == "signature"


def test_only_keys_for_signatures_that_are_strong_enough_are_taken():
    weak = rsa.generate_private_key(65537, 1024)
    curve = ec.generate_private_key(ec.SECP384R1())
    good = jwk(RSA_1, "good")
    others = [
        jwk(weak, "weak"),
        jwk(curve, "curve"),
        jwk(RSA_2, "for-encryption", use="enc"),
        jwk(RSA_2, "another-algorithm", alg="RS512"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a-secret"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": ["RSA"], "kid": "odd"},
        "no key",
    ]

    assert set(public_keys(key_set(*others, good))) == {"good"}
    for body in (b"[]", b"{}", b'{"keys":5}', key_set(*others)):
        with pytest.raises(ValueError):
            public_keys(body)
