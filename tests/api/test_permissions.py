import pytest

from api.generate import disconnect_policy
from api.permissions import listed_models, permitted
from common.access import Access, Principal
from common.channel.base import Policy
from common.errors import ErrorKind, GatewayError
from common.routes import Target, model_names, resolve
from common.settings import Settings

SETTINGS = Settings(
    providers={"openai": {"api_keys": "k"}, "anthropic": {"api_keys": "k"}, "mistral": {"api_keys": "k"}},
    aliases={"fast": ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"], "smart": ["anthropic/claude-opus-4-6"]},
)
ROUTE = [Target("openai", "gpt-5-mini"), Target("anthropic", "claude-haiku-4-5")]


def who(access: Access = Access(), tenant: Access = Access()) -> Principal:  # noqa: B008 - It never changes.
    return Principal("p", access=access, tenant_access=tenant)


def refused(principal: Principal, *, dialect: str = "openai-chat", model: str = "fast") -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        permitted(principal, dialect, model, ROUTE)
    assert caught.value.failed.kind is ErrorKind.PERMISSION_DENIED
    return caught.value


def test_who_has_no_rules_may_all():
    assert permitted(who(), "openai-chat", "fast", ROUTE) == ROUTE


@pytest.mark.parametrize(
    ("access", "left"),
    [
        (Access(models=("fast",)), ROUTE),
        (Access(models=("f*",)), ROUTE),
        (Access(models=("openai/*",)), ROUTE[:1]),
        (Access(models=("anthropic/claude-*", "other")), ROUTE[1:]),
        (Access(providers=("anthropic",)), ROUTE[1:]),
        (Access(models=("fast",), providers=("openai",)), ROUTE[:1]),
        (Access(dialects=("openai-*",)), ROUTE),
    ],
)
def test_a_route_keeps_what_is_allowed_of_it(access, left):
    assert permitted(who(access), "openai-chat", "fast", ROUTE) == left
    assert permitted(who(tenant=access), "openai-chat", "fast", ROUTE) == left


def test_the_key_and_its_tenant_must_both_allow_it():
    principal = who(Access(providers=("openai",)), Access(providers=("anthropic",)))

    assert refused(principal).failed.code == "provider_not_allowed"


@pytest.mark.parametrize(
    ("access", "code", "param"),
    [
        (Access(dialects=("anthropic-messages",)), "dialect_not_allowed", None),
        (Access(models=("gpt-4",)), "model_not_allowed", "model"),
        (Access(models=()), "model_not_allowed", "model"),
        (Access(models=("fastest",)), "model_not_allowed", "model"),
        (Access(providers=("mistral",)), "provider_not_allowed", "provider"),
    ],
)
def test_what_is_left_of_nothing_is_a_refusal_that_names_what_is_not_allowed(access, code, param):
    failed = refused(who(access)).failed

    assert (failed.code, failed.param) == (code, param)


def test_a_long_name_is_not_told_back_whole():
    assert len(refused(who(Access(models=())), model="x" * 100_000).failed.message) < 300


def test_without_rules_all_names_are_listed():
    assert listed_models(who(), SETTINGS) == model_names(SETTINGS)


@pytest.mark.parametrize(
    ("access", "has", "has_not"),
    [
        (Access(providers=("anthropic",)), {"fast", "smart", "claude-opus-4-1"}, {"gpt-5", "mistral-large"}),
        (Access(models=("smart",)), {"smart"}, {"fast", "claude-opus-4-1"}),
        (Access(models=("openai/*",)), {"fast", "gpt-5"}, {"smart", "claude-opus-4-1"}),
        (
            Access(models=("openai/gpt-5", "openai/gpt-9", "nobody/x")),
            {"openai/gpt-5", "openai/gpt-9"},
            {"gpt-4o", "nobody/x"},
        ),
        (Access(models=()), set(), {"fast", "smart"}),
    ],
)
def test_only_what_may_be_used_is_listed(access, has, has_not):
    for listed in (listed_models(who(access), SETTINGS), listed_models(who(tenant=access), SETTINGS)):
        assert set(listed) >= has
        assert not set(listed) & has_not
        for name in listed:
            assert permitted(who(access), "openai-chat", name, resolve(name, SETTINGS))


@pytest.mark.parametrize(
    ("usual", "said", "has_key", "expected"),
    [
        (None, None, False, (Policy.STOP, 0)),
        ("detach", None, False, (Policy.DETACH, 0)),
        ("grace=90", None, False, (Policy.GRACE, 90)),
        ("grace=9999", None, False, (Policy.GRACE, 3600)),
        ("detach", "stop", False, (Policy.STOP, 0)),
        ("stop", None, True, (Policy.GRACE, 60)),
        ("grace=90", None, True, (Policy.GRACE, 90)),
    ],
)
def test_a_key_s_own_policy_is_what_a_request_means_that_names_none(usual, said, has_key, expected):
    headers = {"x-disconnect": said} if said else {}

    assert disconnect_policy(headers, Policy.STOP, has_key=has_key, usual=usual) == expected


def test_what_a_route_implies_is_stronger_than_a_key_s_policy():
    assert disconnect_policy({}, Policy.DETACH, has_key=False, usual="grace=5") == (Policy.DETACH, 0)
