import pytest
from structlog.testing import capture_logs

from api.auth.startup_checks import log_if_open, refuse_to_start
from common.config.settings import Settings

WORLD = {"host": "0.0.0.0"}
KEYS = {"api_keys": "sk-0123456789abc"}
SECRET = {"secret": "a long random text that all processes share"}
JWKS = {"jwt_jwks_url": "https://issuer.example/keys", "jwt_issuer": "https://issuer.example/", "jwt_audience": "sluice"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "::1"},
        {"host": "localhost"},
        WORLD | KEYS,
        WORLD | SECRET,  # Only managed keys will be let in, be there any yet or not.
        WORLD | JWKS,
        WORLD | {"jwt_secret": "s" * 32},
        WORLD | {"auth": "none"},
        KEYS | SECRET | {"admin_keys": "admin-key"},
        {"api_keys": "k"},
        {"api_keys": "k", "host": "::1"},
        JWKS | {"jwt_jwks_url": "http://127.0.0.1:9/keys"},
        {"trusted_proxies": "127.0.0.1,10.0.0.0/8,::1,fd00::/8"},
    ],
)
def test_what_is_safe_may_start(settings):
    assert refuse_to_start(Settings(**settings)) is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (WORLD, "SLUICE_API_KEYS"),
        ({"host": "192.0.2.1"}, "SLUICE_API_KEYS"),
        ({"host": "gateway.example"}, "SLUICE_API_KEYS"),
        (SECRET | {"api_keys": "a,b", "admin_keys": "b"}, "both"),
        (KEYS | {"admin_keys": "a"}, "SLUICE_SECRET"),
        (WORLD | {"api_keys": "sk-0123456789abc,sk-one"}, "SLUICE_API_KEYS has a key that is too short"),
        (WORLD | KEYS | SECRET | {"admin_keys": "a" * 15}, "SLUICE_ADMIN_KEYS has a key that is too short"),
        (WORLD | {"api_keys": "k", "auth": "none"}, "16 characters"),
        (JWKS | {"jwt_jwks_url": "http://issuer.example/keys"}, "https"),
        (JWKS | {"jwt_issuer": None}, "SLUICE_JWT_ISSUER"),
        (JWKS | {"jwt_audience": ""}, "SLUICE_JWT_AUDIENCE"),
        ({"trusted_proxies": "*"}, "'*'"),
        ({"trusted_proxies": "10.0.0.1/8"}, "10.0.0.1/8"),
        ({"trusted_proxies": "balancer"}, "balancer"),
    ],
)
def test_what_is_less_safe_than_it_looks_is_refused_with_what_to_do(settings, word):
    reason = refuse_to_start(Settings(**settings))

    assert reason is not None
    assert word in reason


@pytest.mark.parametrize(
    ("settings", "is_told"), [({}, True), (KEYS, False), (SECRET, False), (JWKS, False), ({"auth": "none"}, False)]
)
def test_an_api_that_needs_no_key_because_none_is_set_says_so(settings, is_told):
    with capture_logs() as logs:
        log_if_open(Settings(**settings))

    assert [line["event"] for line in logs] == (["no_client_keys"] if is_told else [])
