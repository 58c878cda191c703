import pytest
from starlette.datastructures import Headers

from api.auth import ANONYMOUS, Authenticator
from common.errors import ErrorKind, GatewayError
from common.settings import Settings

KEYS = {"api_keys": "sk-one,sk-two"}


def examine(settings: dict[str, str], **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Authenticator(Settings(**settings)).examine(Headers(named))


def brought(settings: dict[str, str], **headers: str) -> str | None:
    key = examine(settings, **headers).brought_key
    return key.get_secret_value() if key else None


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
def test_a_key_of_ours_is_taken_from_any_of_its_headers_and_nothing_is_brought(headers):
    found = examine(KEYS, **headers)

    assert found.principal == examine(KEYS, authorization="Bearer sk-one").principal
    assert found.principal != examine(KEYS, authorization="Bearer sk-two").principal
    assert "sk-one" not in found.principal.id
    assert found.brought_key is None


@pytest.mark.parametrize("gateway", [{"x_sluice_key": "sk-one"}, {"cf_aig_authorization": "Bearer sk-one"}])
@pytest.mark.parametrize("provider", [{"authorization": "Bearer sk-theirs"}, {"x_api_key": "sk-theirs"}])
def test_beside_ours_in_a_header_of_its_own_the_usual_headers_bring_the_provider_s_key(gateway, provider):
    found = examine(KEYS, **gateway, **provider)

    assert found.principal == examine(KEYS, x_api_key="sk-one").principal
    assert found.brought_key is not None
    assert found.brought_key.get_secret_value() == "sk-theirs"
    assert "sk-theirs" not in repr(found)


def test_a_key_of_ours_is_never_taken_for_the_provider_s():
    assert brought(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-one") is None
    assert brought(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-two") is None
    assert brought(KEYS, x_sluice_key="sk-one", authorization="Bearer sk-two", x_api_key="sk-theirs") == "sk-theirs"


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
def test_without_a_key_of_ours_nobody_gets_in(headers, word):
    with pytest.raises(GatewayError, match=word) as caught:
        examine(KEYS, **headers)

    assert caught.value.failed.kind is ErrorKind.UNAUTHENTICATED


def test_an_open_gateway_takes_anything_for_its_own_key_unless_that_has_a_header_of_its_own():
    assert examine({}).principal.id == ANONYMOUS
    assert examine({}, authorization="Bearer sk-anything").brought_key is None
    assert brought({}, x_sluice_key="-", authorization="Bearer sk-theirs") == "sk-theirs"
    assert examine({**KEYS, "auth": "none"}, authorization="Bearer sk-anything").principal.id == ANONYMOUS
