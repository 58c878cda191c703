"""What is somebody else's id, token or key good for? Nothing, and it tells nothing."""

import base64
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import orjson
import pytest

from tests.security.conftest import SECRET
from tests.support.fleet import CHAT, KEY, OTHER_KEY, PATH_OF, Fleet, body_of, fleet, headers_of, until

TOKEN_SECRET = "a-secret-for-the-tokens-of-these-tests"
ISSUER, AUDIENCE = "https://issuer.example", "sluice"


def send(found: Fleet, method: str, path: str, key: str = OTHER_KEY, **options: Any) -> httpx.Response:
    return found.client.request(method, found.url + path, headers={**headers_of(key), **options.pop("headers", {})}, **options)


# Ids


@dataclass(frozen=True)
class Owned:
    """What the owner of ``KEY`` has: a generation with its read token, and a stored response that answers it."""

    generation_id: str
    token: str
    response_id: str
    item_id: str


@pytest.fixture(scope="module")
def owned(shared: Fleet) -> Owned:
    started = send(shared, "POST", "/v1/generations", KEY, json=body_of(CHAT, "demo-n5-d0", text="mine alone")).json()
    body = {"model": "demo-n5-d0", "input": "mine alone", "background": True}
    response_id = send(shared, "POST", "/v1/responses", KEY, json=body).json()["id"]

    def stored() -> dict[str, Any] | None:
        found = send(shared, "GET", f"/v1/responses/{response_id}", KEY).json()
        return found if found["status"] == "completed" else None

    return Owned(started["id"], started["read_token"], response_id, until(stored, "it is stored")["output"][0]["id"])


STEALING = [
    ("GET", "/v1/generations/{generation_id}", {}),
    ("GET", "/v1/generations/{generation_id}?after=1-1.0", {}),
    ("GET", "/v1/generations/{generation_id}?include=text", {"accept": "application/json"}),
    ("DELETE", "/v1/generations/{generation_id}", {}),
    ("GET", "/v1/responses/{response_id}", {}),
    ("GET", "/v1/responses/{response_id}?stream=true", {}),
    ("GET", "/v1/responses/{response_id}/input_items", {}),
    ("POST", "/v1/responses/{response_id}/cancel", {}),
    ("DELETE", "/v1/responses/{response_id}", {}),
]


@pytest.mark.parametrize(("method", "path", "headers"), STEALING)
def test_a_stolen_id_is_an_unknown_one(shared: Fleet, owned: Owned, method: str, path: str, headers: dict[str, str]):
    ids = {"generation_id": owned.generation_id, "response_id": owned.response_id}
    made_up = {name: id_[:-4] + "0000" for name, id_ in ids.items()}

    stolen, unknown = (send(shared, method, path.format(**each), headers=headers) for each in (ids, made_up))

    assert stolen.status_code == unknown.status_code == 404
    # Word for word but for the id: it does not tell that there is something.
    text = stolen.text.replace(owned.generation_id, "ID").replace(owned.response_id, "ID")
    assert text == unknown.text.replace(made_up["generation_id"], "ID").replace(made_up["response_id"], "ID")
    assert send(shared, "GET", f"/v1/generations/{owned.generation_id}", KEY).status_code == 200
    assert send(shared, "GET", f"/v1/responses/{owned.response_id}", KEY).status_code == 200


def test_a_stolen_id_cannot_be_gone_on_with(shared: Fleet, owned: Owned):
    stolen = [
        {"input": "and then?", "previous_response_id": owned.response_id},
        {"input": [{"type": "item_reference", "id": owned.item_id}, {"role": "user", "content": "and then?"}]},
    ]

    for body in stolen:
        assert send(shared, "POST", "/v1/responses", KEY, json={"model": "demo-n1-d0", **body}).status_code == 200
        refused = send(shared, "POST", "/v1/responses", json={"model": "demo-n1-d0", **body})
        assert refused.status_code == 400
        assert "mine alone" not in refused.text


def test_a_list_has_ones_own_alone(shared: Fleet, owned: Owned):
    assert owned.generation_id in send(shared, "GET", "/v1/generations?limit=100", KEY).text
    assert owned.generation_id not in send(shared, "GET", "/v1/generations?limit=100").text
    assert send(shared, "GET", f"/v1/generations?after={owned.generation_id}").status_code == 400


def test_anothers_idempotency_key_is_nobodys(shared: Fleet):
    body = body_of(CHAT, "demo-n2-d0", text="said once")
    headers = {"idempotency-key": "the-same-for-both"}

    first = send(shared, "POST", PATH_OF[CHAT], KEY, json=body, headers=headers)
    second = send(shared, "POST", PATH_OF[CHAT], OTHER_KEY, json=body, headers=headers)

    assert first.status_code == second.status_code == 200
    assert first.headers["x-generation-id"] != second.headers["x-generation-id"]


def test_usage_is_ones_own_alone(shared: Fleet, owned: Owned):
    for more in ("", "?key=key_x", "?owner=x", "?by=key", "?by=tenant"):
        told = send(shared, "GET", f"/v1/usage{more}")

        assert told.status_code == (200 if not more else 400)


# Read tokens


def _forged(token: str) -> list[str]:
    owner, _, signature = token.partition(".")
    other_owner = base64.urlsafe_b64encode(b"key_0000000000000000").rstrip(b"=").decode()
    flipped = signature[:-2] + ("A" if signature[-2] != "A" else "B") + signature[-1]
    return [
        *("", ".", "x", "null", owner, f"{owner}.", f".{signature}", f"{other_owner}.{signature}", f"{owner}.{flipped}"),
        *(f"{owner}.{signature[:-1]}", f"{owner}.{signature[:22]}", f"{owner}.{signature}x", f"{owner}.{signature}.x"),
        *(f"{owner}.{'A' * len(signature)}", "é.é", "%00", "." * 5000, f"{owner}.{signature}".upper(), f" {token}"),
    ]


def test_a_read_token_that_was_changed_is_refused(shared: Fleet, owned: Owned):
    path = f"/v1/generations/{owned.generation_id}"
    assert shared.client.get(shared.url + path, params={"token": owned.token}).status_code == 200

    for token in _forged(owned.token):
        refused = shared.client.get(shared.url + path, params={"token": token})
        assert refused.status_code == 401, token
        assert refused.json()["error"]["code"] == "invalid_read_token"


def test_a_read_token_is_for_one_generation(shared: Fleet, owned: Owned):
    another = send(shared, "POST", "/v1/generations", KEY, json=body_of(CHAT, "demo-n1-d0")).json()["id"]

    refused = shared.client.get(f"{shared.url}/v1/generations/{another}", params={"token": owned.token})

    assert refused.status_code == 401


def test_a_read_token_only_reads(shared: Fleet, owned: Owned):
    tries = [
        ("DELETE", f"/v1/generations/{owned.generation_id}"),
        ("POST", "/v1/generations"),
        ("POST", PATH_OF[CHAT]),
        ("GET", "/v1/generations"),
        ("GET", "/v1/models"),
        ("GET", "/v1/usage"),
    ]

    for method, path in tries:
        body = body_of(CHAT, "demo-n1-d0") if method == "POST" else None
        for headers in ({}, {"authorization": f"Bearer {owned.token}"}, {"x-api-key": owned.token}):
            told = shared.client.request(method, shared.url + path, params={"token": owned.token}, json=body, headers=headers)
            assert told.status_code == 401, (method, path, headers)


# JSON web tokens, on a real process; every rule on its own: tests/api/auth/test_jwt.py


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {
        "SLUICE_SECRET": SECRET,
        "SLUICE_JWT_SECRET": TOKEN_SECRET,
        "SLUICE_JWT_ISSUER": ISSUER,
        "SLUICE_JWT_AUDIENCE": AUDIENCE,
        "SLUICE_REFUSED_CREDENTIALS_MAX": "0",
    }
    with fleet(tmp_path_factory.mktemp("tokens"), **settings) as found:
        yield found


GOOD = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": 4_000_000_000}


def _encoded(part: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=").decode()


def _bad_tokens() -> dict[str, str]:
    def signed(secret: str = TOKEN_SECRET, algorithm: str = "HS256", **claims: Any) -> str:
        return jwt.encode({name: value for name, value in {**GOOD, **claims}.items() if value is not None}, secret, algorithm)

    good = signed()
    header, claims, signature = good.split(".")
    return {
        "alg none": f"{_encoded({'alg': 'none', 'typ': 'JWT'})}.{claims}.",
        "alg None with the signature": f"{_encoded({'alg': 'None', 'typ': 'JWT'})}.{claims}.{signature}",
        "no alg": f"{_encoded({'typ': 'JWT'})}.{claims}.{signature}",
        "another algorithm": signed(TOKEN_SECRET * 2, "HS512"),
        "another secret": signed("another-secret-of-thirty-two-bytes-and-more"),
        "a guessed secret": signed("secret"),
        "expired": signed(exp=1_000_000_000),
        "never expires": signed(exp=None),
        "not yet": signed(nbf=3_900_000_000),
        "another issuer": signed(iss="https://evil.example"),
        "no issuer": signed(iss=None),
        "another audience": signed(aud="other"),
        "no audience": signed(aud=None),
        "no subject": signed(sub=None),
        "truncated": good[:-5],
        "without a signature": f"{header}.{claims}.",
        "changed": f"{header}.{_encoded({**GOOD, 'tenant': 'admin'})}.{signature}",
        "twice": f"{good}.{good}",
        "long": f"{header}.{'A' * 20_000}.{signature}",
        "no json": f"{header}.AAAA.{signature}",
    }


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_a_token_that_is_not_good_lets_nobody_in(with_tokens: Fleet):
    body = body_of(CHAT, "demo-n1-d0")
    good = jwt.encode(GOOD, TOKEN_SECRET, "HS256")
    assert send(with_tokens, "POST", PATH_OF[CHAT], good, json=body).status_code == 200

    for name, token in _bad_tokens().items():
        refused = send(with_tokens, "POST", PATH_OF[CHAT], token, json=body)
        assert refused.status_code == 401, name
        assert token not in refused.text
        assert TOKEN_SECRET not in refused.text


# Managed keys: who may do what with them, tests/api/auth/test_authenticator.py and tests/api/routes/test_admin.py


def test_what_was_revoked_is_good_for_nothing(tmp_path: Any):
    admin = "admin-key-of-these-tests"
    with fleet(tmp_path, SLUICE_SECRET=SECRET, SLUICE_ADMIN_KEYS=admin, SLUICE_REFUSED_CREDENTIALS_MAX="0") as found:

        def made(**fields: Any) -> dict[str, Any]:
            return dict(send(found, "POST", "/admin/keys", admin, json=fields).json())

        def is_good(key: str) -> bool:
            return send(found, "POST", PATH_OF[CHAT], key, json=body_of(CHAT, "demo-n1-d0")).status_code == 200

        disabled, deleted, rotated, expired = made(), made(), made(), made(expires_at=1)
        assert [is_good(each["key"]) for each in (disabled, deleted, rotated, expired)] == [True, True, True, False]
        assert send(found, "PATCH", f"/admin/keys/{disabled['id']}", admin, json={"disabled": True}).status_code == 200
        assert send(found, "DELETE", f"/admin/keys/{deleted['id']}", admin).status_code == 200
        new = send(found, "POST", f"/admin/keys/{rotated['id']}/rotate", admin).json()["key"]

        until(lambda: not any(is_good(each["key"]) for each in (disabled, deleted, rotated)), "all processes know")
        assert is_good(new)
        for path in ("/admin/keys", f"/admin/keys/{rotated['id']}"):
            assert send(found, "GET", path, new).status_code == 401  # A client's key is no admin's.
