import pytest

from common.errors import ErrorKind, GatewayError
from common.routes import Target, available, resolve
from common.settings import ProviderSettings, Settings


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
