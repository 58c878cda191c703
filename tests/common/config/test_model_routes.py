import pytest

from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.models import ProviderSettings
from common.config.model_routes import Target, available, model_names, resolve
from common.config.settings import Settings
from common.vendors.model_names import CLAUDE_FOR_OPENAI


def settings(**fields) -> Settings:
    on = {"openai": ProviderSettings(api_keys=("k",)), "anthropic": ProviderSettings(api_keys=("k",))}
    return Settings(**{"providers": on, **fields})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("gpt-4#openai", Target("openai", "gpt-4")),
        ("a#b#openai", Target("openai", "a#b")),
        ("openai/gpt-4", Target("openai", "gpt-4")),
        ("openai/org/model", Target("openai", "org/model")),
        ("anthropic/claude-x#openai", Target("openai", "anthropic/claude-x")),  # The last # is asked first.
        ("gpt-5-mini", Target("openai", "gpt-5-mini")),
        ("o3", Target("openai", "o3")),
        ("claude-sonnet-4-5", Target("anthropic", "claude-sonnet-4-5")),
    ],
)
def test_a_name_resolves_by_its_most_explicit_part(name, target):
    assert resolve(name, settings()) == [target]


def test_what_is_known_of_a_name_can_be_changed_by_nobody_and_ends_with_its_settings():
    chosen = settings(aliases={"mine": ["openai/one"]})
    resolve("mine", chosen).clear()
    changed = chosen.model_copy(update={"aliases": {"mine": ["openai/two"]}})

    assert resolve("mine", chosen) == [Target("openai", "one")]
    assert resolve("mine", changed) == [Target("openai", "two")]


def test_what_clients_ask_for_fills_no_memory():
    chosen = settings(default_provider="openai")
    for number in range(1_100):
        resolve(f"llama-{number}", chosen)
    resolve("x" * 10_000, chosen)

    assert len(chosen.known_routes) == 1_000
    assert resolve("llama-1099", chosen) == [Target("openai", "llama-1099")]


def test_an_alias_is_asked_first_and_may_have_several_targets():
    aliases = {"gpt-5": ["anthropic/claude-x", "openai/gpt-5"]}

    assert resolve("gpt-5", settings(aliases=aliases)) == [Target("anthropic", "claude-x"), Target("openai", "gpt-5")]


def test_a_bare_name_goes_to_the_default_provider():
    assert resolve("llama", settings(default_provider="openai")) == [Target("openai", "llama")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", ["'llama'", "openai/MODEL"]),
        ("demo", ["DEMO_BASE_URL"]),
        ("openai/", ["no model"]),
        ("x" * 500, ["…"]),
    ],
)
def test_an_unknown_name_says_what_there_is_and_what_to_set(name, words):
    with pytest.raises(GatewayError) as caught:
        resolve(name, settings())

    assert caught.value.failed.kind is ErrorKind.MODEL_NOT_FOUND
    assert all(word in caught.value.failed.message for word in words)
    assert len(caught.value.failed.message) < 400


def test_a_provider_without_a_key_is_named_with_its_variable():
    bare = settings(providers={})

    with pytest.raises(GatewayError, match="ANTHROPIC_API_KEY"):
        resolve("claude-x", bare)
    assert available(bare) == []


# Every name that the documents of the gateways before us print, with the provider that has it and its name there.
PRINTED = {
    "openai": {
        **{name: name for name in ("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-4")},
        **{name: name for name in ("gpt-3.5-turbo", "gpt-4-vision-preview", "o1", "o1-mini", "o3", "o3-mini")},
    },
    "anthropic": {
        "claude-sonnet-4-5": "claude-sonnet-4-5",
        "claude-haiku-4-5": "claude-haiku-4-5",
        "claude-opus-4-1": "claude-opus-4-1",
        "claude-sonnet-4": "claude-sonnet-4-20250514",
        "claude-3-7-sonnet": "claude-3-7-sonnet-20250219",
        "claude-3-5-sonnet-20241022": "claude-3-5-sonnet-20241022",
        "claude-3-5-haiku-20241022": "claude-3-5-haiku-20241022",
        "claude-3-opus": "claude-3-opus-20240229",
        "claude-3-haiku": "claude-3-haiku-20240307",
    },
    "mistral": {
        "mistral-large": "mistral-large-latest",
        "mistral-large-latest": "mistral-large-latest",
        "mistral-medium": "mistral-medium-latest",
        "mistral-small": "mistral-small-latest",
        "mistral-nemo": "open-mistral-nemo",
        "pixtral-12b": "pixtral-12b-2409",
        "codestral": "codestral-latest",
    },
    "google-ai-studio": {"gemini-2.0-flash": "gemini-2.0-flash"},
    "groq": {"mixtral-8x7b-32768": "mixtral-8x7b-32768"},
}


@pytest.mark.parametrize(("provider", "name"), [(provider, name) for provider in PRINTED for name in PRINTED[provider]])
def test_a_printed_name_is_known_in_every_way_of_saying_it(provider, name):
    every = settings(providers={each: ProviderSettings(api_keys=("k",)) for each in PRINTED})
    wanted = [Target(provider, PRINTED[provider][name])]

    assert resolve(name, every) == wanted
    assert resolve(f"{name}#{provider}", every) == wanted
    assert resolve(f"{provider}/{name}", every) == wanted
    assert resolve(name, every, provider) == wanted
    assert model_names(every)[name] == provider


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("gemini-3-pro", "google-ai-studio"),
        ("gemma-3-27b-it", "google-ai-studio"),
        ("open-mistral-7b", "mistral"),
        ("ministral-8b-latest", "mistral"),
        ("devstral-2512", "mistral"),
        ("grok-4", "grok"),
        ("deepseek-chat", "deepseek"),
        ("sonar-pro", "perplexity"),
        ("command-a-03-2025", "cohere"),
        ("@cf/meta/llama-3.1-8b-instruct", "workers-ai"),
    ],
)
def test_a_bare_name_that_only_one_vendor_has_is_evident(name, provider):
    on = {provider: ProviderSettings(api_keys=("k",), base_url="http://x")}

    assert resolve(name, settings(providers=on)) == [Target(provider, name)]


def test_an_open_model_that_many_serve_is_nobody_s():
    with pytest.raises(GatewayError, match="does not say which provider"):
        resolve("gpt-oss-120b", settings())


@pytest.mark.parametrize("name", ["foo/bar", "foo/org/bar", "bar#foo"])
def test_an_unknown_provider_in_a_model_s_name_is_named_with_what_there_is_and_what_to_set(name):
    with pytest.raises(GatewayError) as caught:
        resolve(name, settings(aliases={"fast": ["openai/gpt-5"]}))

    message = caught.value.failed.message
    assert message.startswith(f"There is no provider 'foo', which the model '{name}' names. ")
    assert "SLUICE_PROVIDERS" in message
    assert message.endswith(" Available: openai/MODEL, anthropic/MODEL, fast (MODEL is any name that the provider knows).")
    assert caught.value.failed.param == "model"


@pytest.mark.parametrize("name", ["nothing", "/bar", "foo/", "bar#"])
def test_a_name_without_a_provider_is_told_how_to_name_one(name):
    with pytest.raises(GatewayError, match="does not say which provider has it: write it as PROVIDER/MODEL"):
        resolve(name, settings())


def test_an_own_alias_wins_over_a_name_that_is_known():
    aliases = {"mistral-large": ["openai/gpt-5"]}

    assert resolve("mistral-large", settings(aliases=aliases)) == [Target("openai", "gpt-5")]


@pytest.mark.parametrize("name", ["anthropic/claude-x", "claude-x#anthropic", "claude-x"])
def test_a_provider_beside_the_model_may_be_said_twice(name):
    assert resolve(name, settings(), "anthropic") == [Target("anthropic", "claude-x")]


def test_a_provider_beside_the_model_takes_any_name_for_its_own():
    assert resolve("gpt-4", settings(), "anthropic") == [Target("anthropic", "gpt-4")]
    assert resolve("openai/gpt-4", settings(), "anthropic") == [Target("anthropic", "openai/gpt-4")]


def test_a_provider_beside_an_alias_takes_that_alias_s_models_there():
    aliases = {"fast": ["openai/gpt-5-nano", "anthropic/claude-x"], "cheap": ["openai/gpt-5-nano"]}

    assert resolve("fast", settings(aliases=aliases), "anthropic") == [Target("anthropic", "claude-x")]
    with pytest.raises(GatewayError, match="no model at the provider anthropic"):
        resolve("cheap", settings(aliases=aliases), "anthropic")


def test_an_unknown_provider_beside_the_model_is_its_own_fault():
    with pytest.raises(GatewayError, match="There is no provider 'nobody'") as caught:
        resolve("gpt-4", settings(), "nobody")

    assert caught.value.failed.param == "provider"


def test_where_anthropic_alone_has_a_key_openai_s_names_stand_for_claude_s():
    alone = settings(providers={"anthropic": ProviderSettings(api_keys=("k",)), "demo": ProviderSettings(base_url="http://d")})

    assert resolve("gpt-4o-mini", alone) == [Target("anthropic", "claude-haiku-5-5")]
    assert {name: resolve(name, alone)[0].model for name in CLAUDE_FOR_OPENAI} == {
        name: target.removeprefix("anthropic/") for name, target in CLAUDE_FOR_OPENAI.items()
    }
    assert model_names(alone)["gpt-4"] == "sluice"
    with pytest.raises(GatewayError, match="OPENAI_API_KEY"):
        resolve("openai/gpt-4", alone)  # Who names a provider means it.


def test_the_model_map_is_off_where_another_provider_has_a_key_or_it_is_set_to_nothing():
    assert resolve("gpt-4", settings()) == [Target("openai", "gpt-4")]
    with pytest.raises(GatewayError, match="OPENAI_API_KEY"):
        resolve("gpt-4", settings(providers={"anthropic": ProviderSettings(api_keys=("k",))}, model_map={}))


def test_the_model_map_can_be_one_s_own():
    assert resolve("gpt-4", settings(model_map={"gpt-4": "claude-x"})) == [Target("anthropic", "claude-x")]


def test_a_provider_of_one_s_own_is_named_like_any_other():
    own = settings(providers={"lab": ProviderSettings(base_url="http://lab/v1")})

    assert resolve("lab/llama#x", own) == [Target("lab", "llama#x")]
    assert resolve("llama#lab", own) == [Target("lab", "llama")]
    assert available(own) == ["lab"]
    assert model_names(own) == {}


def test_with_a_brought_key_a_provider_needs_no_configuration():
    bare = settings(providers={})

    assert resolve("gpt-4", bare, has_byok_key=True) == [Target("openai", "gpt-4")]
    with pytest.raises(GatewayError, match="and AZURE_OPENAI_BASE_URL"):
        resolve("azure/x", bare, has_byok_key=True)  # But for an address.


def test_a_brought_key_is_for_the_first_provider_of_an_alias():
    aliases = {"fast": ["groq/a", "openai/b", "groq/c"]}

    assert resolve("fast", settings(aliases=aliases), has_byok_key=True) == [Target("groq", "a"), Target("groq", "c")]


def test_a_brought_key_is_not_sent_to_another_provider_by_the_model_map_of_the_defaults():
    alone = settings(providers={"anthropic": ProviderSettings(api_keys=("k",))})

    assert resolve("gpt-4", alone, has_byok_key=True) == [Target("openai", "gpt-4")]


def test_behind_the_ai_gateway_providers_are_on_without_a_key():
    behind = settings(providers={}, ai_gateway_account_id="a", ai_gateway_id="g")

    assert {"openai", "anthropic", "google-ai-studio", "cohere", "workers-ai"} <= set(available(behind))
    assert "azure-openai" not in available(behind)  # Whose resource nobody knows.
    assert "ollama" not in available(behind)
    assert resolve("gpt-4", behind) == [Target("openai", "gpt-4")]


def test_many_aliases_do_not_flood_an_error():
    many = settings(aliases={f"alias-{n:03}": ["openai/x"] for n in range(500)})

    with pytest.raises(GatewayError) as caught:
        resolve("llama", many)

    assert len(caught.value.failed.message) < 600


@pytest.mark.parametrize("name", ["openai/*", "*", "gpt-*", "*#openai", "openai/gpt-5*", "nobody/*"])
@pytest.mark.parametrize("fields", [{}, {"default_provider": "openai"}, {"aliases": {"fast": ["openai/gpt-5"]}}])
def test_a_pattern_is_no_model(name, fields):
    for provider in (None, "openai"):
        with pytest.raises(GatewayError) as caught:
            resolve(name, settings(**fields), provider)
        assert caught.value.failed.kind is ErrorKind.MODEL_NOT_FOUND


def test_only_names_that_can_be_asked_for_are_listed():
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    on = {"openai": ProviderSettings(api_keys=("k",)), "lab": ProviderSettings(base_url="http://lab/v1")}
    prices = dict.fromkeys(("lab/own-model", "openai/gpt-9", "mistral/x", "lab/*", "nobody/x"), price)
    chosen = settings(providers=on, aliases={"fast": ["lab/own-model"]}, prices=prices)

    names = model_names(chosen)

    assert names["fast"] == "sluice"
    assert names["lab/own-model"] == "lab"
    assert names["openai/gpt-9"] == "openai"
    assert not {"mistral/x", "nobody/x", "demo", "lab/*", "openai/*"} & names.keys()
    for name in names:
        assert resolve(name, chosen)


def test_the_demo_s_model_is_listed_first_and_named_in_refusals():
    demo = settings(providers={"demo": ProviderSettings(base_url="http://d")})

    assert next(iter(model_names(demo))) == "demo"
    with pytest.raises(GatewayError, match="Available: demo/MODEL, demo"):
        resolve("nothing", demo)


def test_a_route_without_a_configured_target_says_so():
    route = {"targets": ["gone/m"], "fallbacks": [{"model": "openai/gpt-5", "when": ["exhausted"]}]}

    with pytest.raises(GatewayError, match="has no target that is configured"):
        resolve("fb", settings(routes={"fb": route}))
    with pytest.raises(GatewayError, match="has no target at this provider"):
        resolve("fb", settings(routes={"fb": route}), "openai")


def test_an_alias_leads_to_those_of_its_targets_that_can_be_used():
    aliases = {"fast": ["nosuch/x", "groq/a", "openai/b"], "broken": ["nosuch/x"]}

    assert resolve("fast", settings(aliases=aliases)) == [Target("openai", "b")]
    with pytest.raises(GatewayError, match="nosuch"):
        resolve("broken", settings(aliases=aliases))
