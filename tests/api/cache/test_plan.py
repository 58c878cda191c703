import pytest
from starlette.datastructures import Headers

from api.cache.plan import ASKED_TTL_S, CachePlanner, not_cached_error
from api.cache.wishes import parse_wishes
from common.access.cache_rule import CacheRule
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import GenerationRequest
from common.config.model_routes import Target, resolve
from common.config.settings import Settings

TARGETS = [Target("demo", "m")]
KEY = Principal("key_1", "acme")
ALL = {"cache_ttl_s": 60, "cache_policy": "all"}


def plan(*, principal=KEY, headers=None, temperature=None, dialect="openai-chat", body=None, **values):
    request = GenerationRequest("demo/m", [], temperature=temperature)
    planner = CachePlanner(Settings(providers={"demo": {"base_url": "http://127.0.0.1:9"}}, **values))
    return planner.plan(Headers(headers or {}), principal, request, body or {}, dialect, TARGETS)


def test_nothing_is_cached_unless_somebody_asks_for_it():
    assert plan(temperature=0) is None
    assert plan(temperature=0, headers={"cache-control": "no-cache"}) is None


@pytest.mark.parametrize(
    ("temperature", "policy", "is_cached"),
    [(0, "deterministic", True), (0.5, "deterministic", False), (None, "deterministic", False), (None, "all", True)],
)
def test_the_policy_says_which_requests(temperature, policy, is_cached):
    assert bool(plan(temperature=temperature, cache_ttl_s=60, cache_policy=policy).scope) is is_cached


def test_a_client_may_ask_where_nobody_set_a_time():
    asked = plan(headers={"x-sluice-cache": "use"})
    assert (asked.scope, asked.ttl_s, asked.may_use, asked.may_store) == ("key", ASKED_TTL_S, True, True)
    assert plan(headers={"x-sluice-cache": "use"}, cache_ttl_s=0).scope is None, "the operator forbids it"


@pytest.mark.parametrize(
    ("headers", "may_use", "may_store", "may_join"),
    [
        ({}, True, True, True),
        ({"x-sluice-cache": "use"}, True, True, True),
        ({"x-sluice-cache": "REFRESH"}, False, True, False),
        ({"cache-control": "no-cache"}, False, True, False),
        ({"cache-control": "no-store"}, True, False, False),
        ({"cache-control": "No-Cache, no-store"}, False, False, False),
        ({"cache-control": "max-age=0"}, False, True, False),
        ({"cache-control": "no-cache", "x-sluice-cache": "use"}, True, True, True),
    ],
)
def test_headers_say_what_a_client_wants(headers, may_use, may_store, may_join):
    made = plan(headers=headers, **ALL)
    assert (made.may_use, made.may_store, made.may_join) == (may_use, may_store, may_join)


def test_off_and_an_unserved_wish_are_told_as_bypass():
    assert plan(headers={"x-sluice-cache": "off"}, **ALL).scope is None
    assert plan(headers={"cache-control": "only-if-cached"}).only_if_cached


def test_the_oldest_answer_that_a_client_takes():
    assert plan(headers={"cache-control": "max-age=30"}, **ALL).max_age_s == 30
    assert plan(headers={"cache-control": "max-age=soon"}, **ALL).max_age_s is None


def test_an_unknown_mode_is_refused():
    with pytest.raises(GatewayError) as error:
        parse_wishes(Headers({"x-sluice-cache": "always"}))
    assert (error.value.failed.kind, error.value.failed.param) == (ErrorKind.INVALID_REQUEST, "x-sluice-cache")


def test_each_source_of_rules_is_stronger_than_the_one_before():
    rule = {"cache_ttl_s": 1, "cache_policy": "all"}
    assert plan(**rule).ttl_s == 1
    rule["cache_dialects"] = {"openai-chat": CacheRule(ttl_s=2), "unified": CacheRule(ttl_s=20)}
    assert plan(**rule).ttl_s == 2
    rule["cache_models"] = {"x": CacheRule(ttl_s=30), "demo/*": CacheRule(ttl_s=3), "*": CacheRule(ttl_s=31)}
    assert plan(**rule).ttl_s == 3
    tenant = Access(cache=CacheRule(ttl_s=4))
    assert plan(principal=Principal("k", "acme", tenant_access=tenant), **rule).ttl_s == 4
    own = Access(cache=CacheRule(ttl_s=5, scope="tenant"))
    made = plan(principal=Principal("k", "acme", access=own, tenant_access=tenant), **rule)
    assert (made.ttl_s, made.scope) == (5, "tenant")


def test_clients_without_a_key_share_nothing_unless_that_is_set():
    anonymous = Principal("anonymous")
    assert plan(principal=anonymous, headers={"x-sluice-cache": "use"}, **ALL).scope is None
    assert plan(principal=anonymous, cache_anonymous=True, **ALL).scope == "key"


def test_what_is_audited_is_not_cached():
    assert plan(principal=Principal("k", access=Access(audit=True)), **ALL).scope is None


@pytest.mark.parametrize(("body", "is_stored"), [({}, True), ({"store": True}, True), ({"store": False}, False)])
def test_a_stored_response_shares_no_call(body, is_stored):
    made = plan(dialect="openai-responses", body=body, **ALL)
    assert (made.is_stored_response, made.may_join) == (is_stored, not is_stored)


def test_joining_can_be_switched_off():
    assert not plan(cache_join=False, **ALL).may_join


PROVIDERS = {name: {"base_url": "http://127.0.0.1:9"} for name in ("demo", "lab")}
ROUTES = {"faq": {"targets": ["demo/m", "lab/m"]}, "other": {"targets": ["demo/m"]}}


def is_cached(model, rules=None, tenant=None, **values):
    settings = Settings(providers=PROVIDERS, routes=ROUTES, cache_models=rules or {}, default_provider="demo", **values)
    request = GenerationRequest(model, [])
    principal = Principal("key_1", "acme", tenant_access=Access(cache=tenant) if tenant else Access())
    made = CachePlanner(settings).plan(Headers({}), principal, request, {}, "openai-chat", resolve(model, settings))
    return bool(made and made.scope)


RULE = CacheRule(ttl_s=600, policy="all")


@pytest.mark.parametrize(
    ("pattern", "cached"),
    [
        ("faq", {"faq"}),
        ("demo/m", {"demo/m", "m", "other"}),
        ("m", {"demo/m", "m", "other"}),
        ("*/m", {"demo/m", "lab/m", "m", "other", "faq"}),
        ("*", {"demo/m", "lab/m", "m", "other", "faq"}),
    ],
)
def test_a_rule_is_for_the_models_that_its_pattern_names_and_no_others(pattern, cached):
    assert {model for model in ("faq", "other", "demo/m", "lab/m", "m") if is_cached(model, {pattern: RULE})} == cached


def test_a_rule_that_forbids_the_cache_is_for_any_target_that_may_answer():
    off = {"lab/*": CacheRule(ttl_s=0)}
    assert not is_cached("faq", off, cache_ttl_s=60, cache_policy="all")
    assert is_cached("other", off, cache_ttl_s=60, cache_policy="all")


def test_a_tenant_s_rule_may_be_for_some_models_only():
    rule = CacheRule(ttl_s=600, policy="all", scope="tenant", models=("faq",))
    assert is_cached("faq", tenant=rule)
    assert not is_cached("demo/m", tenant=rule)
    assert not is_cached("faq"), "and other tenants have none"


def test_a_client_is_told_not_to_repeat_what_only_the_cache_could_answer():
    assert not_cached_error().headers["x-should-retry"] == "false"
