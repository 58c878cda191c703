import pytest

from api.auth.permissions import RequestedModel, listed_models, permitted_by_fields, permitted_targets, refuse_anonymous
from api.intake.disconnect import disconnect_policy
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Policy
from common.config.model_routes import Target, model_names, resolve
from common.config.settings import Settings

SETTINGS = Settings(
    providers={"openai": {"api_keys": "k"}, "anthropic": {"api_keys": "k"}, "mistral": {"api_keys": "k"}},
    aliases={"fast": ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"], "smart": ["anthropic/claude-opus-4-6"]},
)
FAST = RequestedModel("fast")
ROUTE = [Target("openai", "gpt-5-mini"), Target("anthropic", "claude-haiku-4-5")]


def who(access: Access = Access(), tenant: Access = Access()) -> Principal:  # noqa: B008 - It never changes.
    return Principal("p", access=access, tenant_access=tenant)


def refused(principal: Principal, *, dialect: str = "openai-chat", model: str = "fast") -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        permitted_targets(principal, dialect, RequestedModel(model), ROUTE, SETTINGS)
    assert caught.value.failed.kind is ErrorKind.PERMISSION_DENIED
    return caught.value


def test_who_has_no_rules_may_all():
    assert permitted_targets(who(), "openai-chat", FAST, ROUTE, SETTINGS) == ROUTE


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
    assert permitted_targets(who(access), "openai-chat", FAST, ROUTE, SETTINGS) == left
    assert permitted_targets(who(tenant=access), "openai-chat", FAST, ROUTE, SETTINGS) == left


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


@pytest.mark.parametrize("name", ["models", "providers", "dialects"])
def test_an_empty_list_allows_nothing(name):
    nothing = Access(**{name: ()})

    assert refused(who(nothing)).failed.code
    assert refused(who(tenant=nothing)).failed.code


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
        (
            Access(models=("openai/eXtra", "openai/gpt-?", "openai/gpt-[5]", "openai/o*")),
            {"openai/eXtra", "gpt-5", "o3"},
            {"openai/gpt-?", "openai/gpt-[5]", "openai/o*"},
        ),
        (Access(models=()), set(), {"fast", "smart"}),
    ],
)
def test_only_what_may_be_used_is_listed(access, has, has_not):
    for listed in (listed_models(who(access), SETTINGS), listed_models(who(tenant=access), SETTINGS)):
        assert set(listed) >= has
        assert not set(listed) & has_not
        for name in listed:
            assert permitted_targets(who(access), "openai-chat", RequestedModel(name), resolve(name, SETTINGS), SETTINGS)


ROUTERS = Settings(
    providers={
        "openai": {"api_keys": "k"},
        "agg": {"base_url": "http://agg", "api_keys": "k"},
        "vllm": {"base_url": "http://gpu"},
        "workers-ai": {"api_keys": "k", "base_url": "http://cf"},
    },
    aliases={"fast": ["openai/gpt-4o", "agg/x"], "team/fast": ["agg/x"]},
    model_map={"gpt-4": "agg/y"},
)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "openai/*",
            ["gpt-4o", "openai/gpt-4o", "gpt-4o#openai", "fast"],
            ["agg/openai/gpt-9", "openai/gpt-9#agg", "openai/gpt-oss-120b#vllm", "agg/gpt-4o", "gpt-4", "team/fast"],
        ),
        ("OpenAI/gpt-4o", ["gpt-4o", "openai/gpt-4o", "fast"], ["openai/gpt-4o-mini", "gpt-4o#agg"]),
        ("gpt-4o#openai", ["gpt-4o", "openai/gpt-4o"], ["gpt-4o#agg", "agg/gpt-4o"]),
        ("gpt-*", ["gpt-4o", "openai/gpt-4o", "gpt-4o#openai", "gpt-4"], ["gpt-4o#agg", "agg/gpt-4o", "agg/openai/gpt-4o"]),
        ("fast", ["fast"], ["gpt-4o", "agg/x", "agg/fast", "fast#agg", "team/fast"]),
        ("team/fast", ["team/fast"], ["fast", "agg/x"]),
        ("agg/openai/gpt-mini", ["agg/openai/gpt-mini", "openai/gpt-mini#agg"], ["openai/gpt-mini", "agg/openai/gpt-mini,x"]),
        ("agg/gpt-*", ["agg/gpt-1", "agg/gpt-1,gpt-2"], ["agg/gpt-1,claude-9", "agg/claude-9 , gpt-1"]),
        ("*/gpt-4o", ["gpt-4o", "agg/gpt-4o"], ["agg/openai/gpt-4", "gpt-4"]),
        ("cloudflare/@cf/*", ["@cf/meta/llama", "workers-ai/@cf/meta/llama"], ["@cf/meta/llama#agg"]),
        ("@cf/*", ["@cf/meta/llama", "workers-ai/@cf/meta/llama"], ["@cf/meta/llama#agg", "agg/@cf/meta/llama"]),
        ("*", ["gpt-4o", "agg/openai/gpt-9", "vllm/big", "fast", "gpt-4"], []),
    ],
)
def test_a_pattern_is_matched_with_what_a_name_leads_to_however_it_is_spelled(pattern, allowed, refused):
    def may(name: str) -> bool:
        try:
            return bool(
                permitted_targets(
                    who(Access(models=(pattern,))), "openai-chat", RequestedModel(name), resolve(name, ROUTERS), ROUTERS
                )
            )
        except GatewayError as error:
            if error.failed.code != "model_not_allowed":
                raise
            return False

    assert [name for name in allowed if not may(name)] == []
    assert [name for name in refused if may(name)] == []


@pytest.mark.parametrize(("model", "provider"), [("openai/gpt-9", "agg"), ("gpt-4o", "agg"), ("gpt-4o", "vllm")])
def test_a_provider_that_is_named_beside_the_model_decides(model, provider):
    for pattern in ("openai/*", "gpt-*"):
        with pytest.raises(GatewayError):
            targets = resolve(model, ROUTERS, provider)
            permitted_targets(who(Access(models=(pattern,))), "unified", RequestedModel(model, provider), targets, ROUTERS)


def test_with_a_brought_key_a_name_is_not_the_mapped_one():
    settings = Settings(providers={"anthropic": {"api_keys": "k"}})  # OpenAI's names stand for Claude's here.
    named = RequestedModel("gpt-4o", None, True)
    targets = resolve("gpt-4o", settings, has_byok_key=True)

    assert permitted_targets(who(Access(models=("gpt-*",))), "openai-chat", named, targets, settings) == targets
    with pytest.raises(GatewayError):
        permitted_targets(who(Access(models=("anthropic/*",))), "openai-chat", named, targets, settings)


@pytest.mark.parametrize("pattern", ["google-ai-studio", "google", "Gemini"])
def test_a_provider_may_be_named_by_any_of_its_names(pattern):
    settings = Settings(providers={"gemini": {"api_keys": "k"}})
    targets = resolve("gemini-2.5-pro", settings)

    assert (
        permitted_targets(who(Access(providers=(pattern,))), "openai-chat", RequestedModel("gemini-2.5-pro"), targets, settings)
        == targets
    )


@pytest.mark.parametrize("pattern", ["claude-sonnet-4", "anthropic/claude-sonnet-4", "anthropic/claude-sonnet-4-2025*"])
def test_a_public_name_and_the_vendor_s_own_are_one_model(pattern):
    for name in ("claude-sonnet-4", "anthropic/claude-sonnet-4-20250514"):
        assert permitted_targets(
            who(Access(models=(pattern,))), "openai-chat", RequestedModel(name), resolve(name, SETTINGS), SETTINGS
        )


MINI = [Target("agg", "openai/gpt-mini")]
BOUND = Access(models=("agg/openai/gpt-mini", "agg/small"))


def by_fields(body: dict, access: Access = BOUND, dialect: str = "openai-chat", settings: Settings = ROUTERS) -> list[Target]:
    return permitted_by_fields(who(access), dialect, {"model": "agg/openai/gpt-mini", **body}, MINI, settings)


@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages", "gemini"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"models": ["openai/gpt-9"]}, "models"),
        ({"models": ["small", "openai/gpt-9"]}, "models"),
        ({"fallbacks": ["openai/gpt-9"]}, "fallbacks"),
        ({"fallbacks": [{"openai/gpt-mini": ["openai/gpt-9"]}]}, "fallbacks"),
        ({"fallbackModel": "openai/gpt-9"}, "fallbackModel"),
        ({"route": "fallback"}, "route"),
        ({"provider": {"order": ["azure"]}}, "provider"),
        ({"providerOptions": {"gateway": {"models": ["openai/gpt-9"]}}}, "providerOptions"),
        ({"preset": "@preset/x"}, "preset"),
        ({"compound_custom": {"models": {}}}, "compound_custom"),
        ({"extra_body": {"models": ["openai/gpt-9"]}}, "extra_body.models"),
        ({"extra_body": {"extra_body": {"model": "openai/gpt-9"}}}, "extra_body.extra_body.model"),
        ({"plugins": [{"id": "fusion", "analysis_models": ["openai/gpt-9"]}]}, "plugins.0.analysis_models"),
        ({"tools": [{"type": "image_generation", "model": "gpt-image-9"}]}, "tools.0.model"),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "gpt-9"}]}, "tools.0.model"),
        ({"tools": [{"type": "openrouter:advisor", "parameters": {"model": "gpt-9"}}]}, "tools.0.parameters.model"),
        ({"lora_path": "/x"}, "lora_path"),
    ],
)
def test_who_is_bound_to_models_names_no_other_by_a_field(dialect, body, field):
    with pytest.raises(GatewayError) as caught:
        by_fields(body, dialect=dialect)

    assert (caught.value.failed.kind, caught.value.failed.param) == (ErrorKind.PERMISSION_DENIED, field)
    assert caught.value.failed.code in ("model_not_allowed", "field_not_allowed")
    assert field in caught.value.failed.message
    for unbound in (Access(), Access(models=("*",), providers=("x", "*"))):
        assert by_fields(body, unbound, dialect) == [], "who may use every model may have its router choose"


def test_a_name_in_a_field_is_the_upstream_s_even_where_the_gateway_has_an_alias_of_it():
    settings = Settings(**{**ROUTERS.model_dump(), "aliases": {"fast": ["agg/openai/gpt-mini"]}})

    with pytest.raises(GatewayError) as caught:
        by_fields({"models": ["fast"]}, Access(models=("fast", "agg/openai/gpt-mini")), settings=settings)

    assert caught.value.failed.param == "models"


@pytest.mark.parametrize(
    "settings", [ROUTERS, Settings(**{**ROUTERS.model_dump(), "guardrails_by_model": {"x": {"pii": "block"}}})]
)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"api_base": "http://x"}, "api_base"),
        ({"apiKey": "sk-x"}, "apiKey"),
        ({"base_url": "http://x", "api_key": "x"}, "base_url"),
        ({"extra_headers": {"authorization": "x"}}, "extra_headers"),
        ({"litellm_params": {}}, "litellm_params"),
        ({"user_config": {"model_list": []}}, "user_config"),
        ({"aws_access_key_id": "x"}, "aws_access_key_id"),
        ({"vertex_credentials": "x"}, "vertex_credentials"),
        ({"openai_api_key": "x"}, "openai_api_key"),
        ({"extra_body": {"api-base": "http://x"}}, "extra_body.api-base"),
        ({"extra_body": "no object"}, "extra_body"),
        ({"providerOptions": {"gateway": {"byok": {"openai": [{"apiKey": "x"}]}}}}, "providerOptions.gateway.byok"),
        ({"provider": {"base_url": "http://x"}}, "provider.base_url"),
        ({"kv_transfer_params": {"remote_host": "x"}}, "kv_transfer_params"),
    ],
)
def test_nobody_names_a_credential_or_an_endpoint_by_a_field(body, field, settings):
    for access in (Access(), BOUND):
        with pytest.raises(GatewayError) as caught:
            by_fields(body, access, settings=settings)
        assert (caught.value.failed.kind, caught.value.failed.param) == (ErrorKind.PERMISSION_DENIED, field)
        assert "http://x" not in caught.value.failed.message


SCHEMA = {"type": "object", "properties": {"model": {"type": "string", "enum": ["a"]}, "api_key": {"type": "string"}}}


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {**SCHEMA, "required": ["model"]}}}]},
        {"tools": [{"name": "f", "input_schema": SCHEMA}, {"type": "function", "name": "f", "parameters": SCHEMA}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}]},
        {"tools": [{"type": "mcp", "server_url": "https://x", "headers": {"authorization": "x"}}, {"type": "web_search"}]},
        {"mcp_servers": [{"type": "url", "url": "https://x", "authorization_token": "x"}], "container": "c_1"},
        {"prompt": {"id": "pmpt_1", "variables": {"model": "x"}}, "metadata": {"model": "x", "route": "y"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}, "moderation": {"model": "omni-moderation"}},
        {"messages": [{"role": "user", "content": "models", "api_key": "x"}], "model": "x"},
        {"api_base": None, "models": None, "enable_fallbacks": True, "prompt_cache_key": "k", "max_completion_tokens": 9},
        {"models": ["small", "openai/gpt-mini"], "tools": [{"type": "image_generation", "model": "small"}]},
        {"plugins": [{"id": "web", "max_results": 3}], "service_tier": "auto", "safety_identifier": "u"},
    ],
)  # fmt: skip
def test_what_chooses_no_other_model_passes(body):
    assert set(by_fields(body)) <= {Target("agg", "small"), Target("agg", "openai/gpt-mini")}


@pytest.mark.parametrize("dialect", ["agentary", "unified"])
def test_a_dialect_whose_fields_go_nowhere_may_have_any(dialect):
    assert by_fields({"modelProvider": "openai", "provider": "agg", "api_base": "http://x"}, dialect=dialect) == []


def test_a_model_that_a_field_names_has_its_guardrails():
    settings = Settings(**{**ROUTERS.model_dump(), "guardrails_by_model": {"agg/openai/gpt-9": {"pii": "block"}}})

    assert by_fields({"models": ["openai/gpt-9"]}, Access(), settings=settings) == [Target("agg", "openai/gpt-9")]


def test_whoever_has_no_key_is_told_why_nothing_is_told():
    with pytest.raises(GatewayError, match=r"Generations cannot be shown.*SLUICE_API_KEYS") as caught:
        refuse_anonymous(Principal("anonymous"), "Generations")

    assert caught.value.failed.kind is ErrorKind.PERMISSION_DENIED
    refuse_anonymous(Principal("key_1"), "Generations")


@pytest.mark.parametrize(
    ("principal_default", "said", "has_key", "expected"),
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
def test_a_key_s_own_policy_is_what_a_request_means_that_names_none(principal_default, said, has_key, expected):
    headers = {"x-disconnect": said} if said else {}

    assert disconnect_policy(headers, Policy.STOP, has_key=has_key, principal_default=principal_default) == expected


def test_what_a_route_implies_is_stronger_than_a_key_s_policy():
    assert disconnect_policy({}, Policy.DETACH, has_key=False, principal_default="grace=5") == (Policy.DETACH, 0)


@pytest.mark.parametrize(
    ("access", "dialect", "words"),
    [
        (Access(dialects=("anthropic-messages",)), "openai-chat", "dialect openai-chat"),
        (Access(models=("other",)), "openai-chat", "the model 'fast'. GET /v1/models"),
        (Access(providers=("groq",)), "openai-chat", "the provider openai, anthropic."),
    ],
)
def test_a_refusal_names_what_is_not_allowed_and_who_can_allow_it(access, dialect, words):
    with pytest.raises(GatewayError) as caught:
        permitted_targets(who(access), dialect, FAST, ROUTE, SETTINGS)

    assert words in caught.value.failed.message
    assert "Ask the gateway's operator" in caught.value.failed.message


@pytest.mark.parametrize(("length", "shown"), [(100, "x" * 100), (101, "x" * 100 + "…")])
def test_a_refusal_repeats_no_more_of_a_name_than_a_hundred_characters(length, shown):
    with pytest.raises(GatewayError) as caught:
        permitted_targets(who(Access(models=("other",))), "openai-chat", RequestedModel("x" * length), ROUTE, SETTINGS)

    assert f"'{shown}'" in caught.value.failed.message
