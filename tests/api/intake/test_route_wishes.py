import pytest
from starlette.datastructures import Headers

from api.intake.route_wishes import conversation_of, tagged_targets
from common.access.principal import Principal
from common.canonical.errors import GatewayError
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.config.model_routes import resolve
from common.config.settings import Settings

ROUTES = {
    "fast": {
        "affinity": True,
        "targets": [{"model": "a/m", "tags": ["eu", "fast"]}, {"model": "b/m", "tags": ["eu"]}, {"model": "c/m"}],
    },
    "plain": {"targets": ["a/m"]},
    "spare": {
        "targets": [{"model": "a/m", "tags": ["eu", "us"]}],
        "fallbacks": [
            {"model": "b/m", "when": ["exhausted"], "tags": ["eu", "far"]},
            {"model": "c/m", "when": ["exhausted"]},
        ],
    },
}
SETTINGS = Settings(providers={name: {"base_url": "http://127.0.0.1:9"} for name in "abc"}, routes=ROUTES)
ME = Principal("key_1", "acme")


def tagged(tags, model="fast", only=("a", "b", "c")):
    targets = [target for target in resolve(model, SETTINGS) if target.provider in only]
    headers = Headers({} if tags is None else {"x-sluice-tags": tags})
    return [target.provider for target in tagged_targets(model, targets, headers, SETTINGS)]


@pytest.mark.parametrize(("tags", "providers"), [(None, "abc"), ("eu", "ab"), ("fast, EU", "a"), ("eu,fast", "a")])
def test_tags_choose_targets(tags, providers):
    assert "".join(tagged(tags)) == providers


@pytest.mark.parametrize(("tags", "providers"), [(None, "abc"), ("eu", "ab"), ("us", "a")])
def test_tags_choose_fallbacks_too(tags, providers):
    assert "".join(tagged(tags, "spare")) == providers


@pytest.mark.parametrize(
    ("tags", "model", "words"),
    [
        ("far", "spare", "Its tags: eu, us"),  # Only a fallback has it.
        ("us", "fast", "Its tags: eu, fast"),
        ("eu", "plain", "Its tags: none"),
        ("eu", "a/m", "is no route"),
        ("e u", "fast", "commas between"),
        ("", "fast", "commas between"),
        ("x," * 50 + "x", "fast", "commas between"),
    ],
)
def test_tags_that_no_target_has_are_refused(tags, model, words):
    with pytest.raises(GatewayError) as error:
        tagged(tags, model)
    assert words in error.value.failed.message
    assert error.value.failed.param == "x-sluice-tags"


def test_tags_do_not_widen_what_a_key_may_use():
    with pytest.raises(GatewayError):
        tagged("fast", only=("b", "c"))


def conversation(model="fast", headers=None, principal=ME, texts=("s", "hello"), **fields):
    roles = [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    messages = [Message(role, [TextPart(text)]) for role, text in zip(roles, texts, strict=False)]
    return conversation_of(Headers(headers or {}), principal, GenerationRequest(model, messages, **fields), SETTINGS)


def test_a_conversation_has_one_name_from_turn_to_turn():
    first = conversation()
    assert first == conversation(texts=("s", "hello", "answer", "more"))
    assert first != conversation(texts=("s", "another"))
    assert len(first) == 32


def test_what_names_it_is_taken_in_order():
    named = {
        conversation(headers={"x-session-id": "1"}, prompt_cache_key="2", end_user="3"),
        conversation(headers={"x-session-id": "1"}, texts=("x", "y")),
    }
    assert len(named) == 1
    assert conversation(prompt_cache_key="2", end_user="3") == conversation(prompt_cache_key="2", texts=("x", "y"))
    assert conversation(end_user="3") == conversation(end_user="3", texts=("x", "y"))


def test_tenants_do_not_share_names():
    assert conversation(prompt_cache_key="2") != conversation(prompt_cache_key="2", principal=Principal("key_2", "other"))


def test_without_affinity_there_is_none():
    assert conversation("plain") == conversation("a/m") == ""
