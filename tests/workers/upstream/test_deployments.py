"""Where does a job go, and with which key?"""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from common.access.byok_keys import seal_byok_key
from common.canonical.errors import GatewayError
from common.canonical.job import Job, Policy
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from workers.providers.base import Deployment
from workers.upstream.deployments import deployments

GATEWAY = {"ai_gateway_account_id": "acct", "ai_gateway_id": "gw"}


def job(model: str, dialect: str = "openai-chat", headers: dict[str, str] | None = None, **more: Any) -> Job:
    return Job("gen_1", "r", dialect, model, True, Policy.STOP, 0.0, 1, headers or {}, b"{}", **more)


def only(model: str, settings: Settings, **more: Any) -> Deployment:
    (found,) = deployments(job(model, **more), settings)
    return found


def with_provider(provider: str, base_url: str | None = None, **fields: Any) -> Settings:
    return Settings(providers={provider: ProviderSettings(api_keys=("k",), base_url=base_url)}, **fields)


@pytest.mark.parametrize(
    ("provider", "dialect", "own_path", "url"),
    [
        ("openai", "openai-chat", "/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("openai", "openai-responses", "/responses", "https://api.openai.com/v1/responses"),
        ("anthropic", "anthropic-messages", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("mistral", "openai-chat", "/chat/completions", "https://api.mistral.ai/v1/chat/completions"),
        ("groq", "openai-chat", "/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("grok", "openai-chat", "/chat/completions", "https://api.x.ai/v1/chat/completions"),
        ("deepseek", "openai-chat", "/chat/completions", "https://api.deepseek.com/chat/completions"),
        ("cerebras", "openai-chat", "/chat/completions", "https://api.cerebras.ai/v1/chat/completions"),
        ("perplexity", "openai-chat", "/responses", "https://api.perplexity.ai/v1/responses"),
        ("cohere", "openai-chat", "/v2/chat", "https://api.cohere.com/v2/chat"),
    ],
)
def test_each_vendor_is_called_where_its_documents_say(provider, dialect, own_path, url):
    assert only(f"{provider}/m", with_provider(provider), dialect=dialect).url(own_path) == url


@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses"])
@pytest.mark.parametrize(
    ("model", "wire", "own_path", "url"),
    [
        ("perplexity/sonar", "openai-responses", "/responses", "/v1/responses"),
        ("low", "openai-responses", "/responses", "/v1/responses"),
        ("sonar-pro", "openai-chat", "/chat/completions", "/chat/completions"),
    ],
)
def test_perplexity_s_former_models_keep_their_wire(dialect, model, wire, own_path, url):
    found = only(f"perplexity/{model}", with_provider("perplexity"), dialect=dialect)

    assert (found.wire, found.url(own_path)) == (wire, f"https://api.perplexity.ai{url}")


@pytest.mark.parametrize(
    ("provider", "own_path", "base_urls"),
    [
        ("mistral", "/chat/completions", ["http://h", "http://h/", "http://h/v1"]),
        ("cerebras", "/chat/completions", ["http://h", "http://h/v1/"]),
        ("ollama", "/chat/completions", ["http://h", "http://h/v1"]),
        ("anthropic", "/v1/messages", ["http://h", "http://h/v1"]),
    ],
)
def test_a_base_url_may_or_may_not_end_in_the_version(provider, own_path, base_urls):
    urls = {only(f"{provider}/m", with_provider(provider, base_url)).url(own_path) for base_url in base_urls}

    assert urls == {"http://h/v1/messages" if provider == "anthropic" else "http://h/v1/chat/completions"}


def test_azure_is_called_by_deployment_with_its_own_header():
    found = only("azure/my model", with_provider("azure-openai", azure_resource="res", azure_api_version="2025-01-01"))

    assert found.url("/chat/completions") == (
        "https://res.openai.azure.com/openai/deployments/my%20model/chat/completions?api-version=2025-01-01"
    )
    assert (found.headers, found.api_key) == ({"api-key": "k"}, "")


def test_a_model_s_name_cannot_leave_its_place_in_a_path():
    found = only("azure/../../admin?x=", with_provider("azure-openai", "https://res.openai.azure.com"))

    assert found.base_url == "https://res.openai.azure.com/openai/deployments/..%2F..%2Fadmin%3Fx%3D"


def test_azure_s_newer_address_needs_no_version():
    settings = with_provider("azure-openai", "https://res.openai.azure.com/openai/v1")
    by_resource = with_provider("azure-openai", azure_resource="res")

    assert only("azure/m", settings).url("/chat/completions") == "https://res.openai.azure.com/openai/v1/chat/completions"
    assert (
        only("azure/m", by_resource, dialect="openai-responses").url("/responses")
        == "https://res.openai.azure.com/openai/v1/responses"
    )


def test_keys_are_taken_in_their_order():
    settings = Settings(providers={"openai": ProviderSettings(api_keys=("a", "b"))})

    assert [found.api_key for found in deployments(job("gpt-5"), settings)] == ["a", "b"]


@pytest.mark.parametrize(
    ("model", "own_path", "url"),
    [
        ("openai/m", "/chat/completions", "openai/chat/completions"),
        ("anthropic/m", "/v1/messages", "anthropic/v1/messages"),
        ("gemini/m", "/v1beta/models/m:x", "google-ai-studio/v1beta/models/m:x"),
        ("groq/m", "/chat/completions", "groq/chat/completions"),
        ("mistral/m", "/chat/completions", "mistral/v1/chat/completions"),
        ("xai/m", "/chat/completions", "grok/v1/chat/completions"),
        ("deepseek/m", "/chat/completions", "deepseek/chat/completions"),
        ("cerebras/m", "/chat/completions", "cerebras/chat/completions"),
        ("perplexity/m", "/responses", "perplexity-ai/v1/responses"),
        ("azure/m", "/chat/completions", "azure-openai/res/m/chat/completions?api-version=2024-10-21"),
        ("cohere/m", "/v2/chat", "cohere/v2/chat"),
        ("cloudflare/@cf/m", "/chat/completions", "workers-ai/v1/chat/completions"),
    ],
)
def test_the_ai_gateway_has_a_place_for_each_provider(model, own_path, url):
    found = only(model, Settings(azure_resource="res", **GATEWAY))

    assert found.url(own_path) == f"https://gateway.ai.cloudflare.com/v1/acct/gw/{url}"
    assert found.api_key == ""  # Stored there.


def test_the_ai_gateway_gets_our_token_and_the_client_s_wishes():
    settings = Settings(**GATEWAY, ai_gateway_token=SecretStr("tok"), providers={"openai": ProviderSettings(api_keys=("k",))})

    found = only("gpt-5", settings, headers={"cf-aig-cache-ttl": "60", "openai-beta": "x"})

    assert found.headers == {"cf-aig-authorization": "Bearer tok", "cf-aig-cache-ttl": "60"}
    assert found.api_key == "k"
    assert "tok" not in repr(found)


def test_a_base_url_of_one_s_own_goes_past_the_ai_gateway():
    settings = with_provider("openai", "http://h/v1", ai_gateway_token=SecretStr("tok"), **GATEWAY)

    found = only("gpt-5", settings, headers={"cf-aig-cache-ttl": "60"})

    assert (found.base_url, found.headers) == ("http://h/v1", {})


def test_the_ai_gateway_s_azure_has_chat_completions_alone():
    found = only("azure/m", Settings(azure_resource="res", **GATEWAY), dialect="openai-responses")

    assert found.wire == "openai-chat"


def test_a_brought_key_is_used_instead_of_ours_once():
    settings = Settings(
        secret=SecretStr("a long random text of 32 bytes or more"), providers={"openai": ProviderSettings(api_keys=("a", "b"))}
    )
    sealed = seal_byok_key(SecretStr("theirs"), "gen_1", settings.secret)

    assert only("gpt-5", settings, brought_key=sealed).api_key == "theirs"
    assert only("groq/m", settings, brought_key=sealed).api_key == "theirs"
    azure = only("azure/m", settings.model_copy(update={"azure_resource": "res"}), brought_key=sealed)
    assert (azure.api_key, azure.headers) == ("", {"api-key": "theirs"})


@pytest.mark.parametrize(("model", "client_pays"), [("gpt-5", True), ("vllm/m", False), ("keyed/m", True)])
def test_a_brought_key_pays_where_one_is_needed_and_is_one_of_many_where_none_is(model, client_pays):
    own = {"vllm": ProviderSettings(base_url="http://gpu"), "keyed": ProviderSettings(base_url="http://x", api_keys=("k",))}
    settings = Settings(secret=SecretStr("a long random text of 32 bytes or more"), providers=own)
    sealed = [seal_byok_key(SecretStr(key), "gen_1", settings.secret) for key in ("junk", "more junk")]

    first, other = (only(model, settings, brought_key=each) for each in sealed)

    assert first.api_key == "junk"
    assert first.client_pays is other.client_pays is client_pays
    assert first.key_id != other.key_id, "what the provider says of one is not said of the other"
    assert first.quota_id == other.quota_id
    assert bool(first.quota_id) is not client_pays
    if not client_pays:
        assert first.quota_id == only(model, settings).key_id


def test_a_provider_of_one_s_own_speaks_the_wire_that_it_is_said_to():
    own = {"lab": ProviderSettings(base_url="http://lab", wire="anthropic-messages")}

    found = only("lab/m", Settings(providers=own))

    assert (found.wire, found.base_url, found.provider) == ("anthropic-messages", "http://lab", "lab")


def reattached(provider: str = "openai", **fields: Any) -> Settings:
    return Settings(providers={provider: ProviderSettings(api_keys=("k",), continuation="reattach", **fields)})


def asking(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, **fields})


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic-messages", "agentary", "unified", "openai-responses"])
def test_an_answer_that_is_to_be_read_again_runs_in_the_background(dialect):
    more = {"openai-responses": {"input": "hi"}, "unified": {"provider": "openai"}}.get(dialect, {})
    asked = replace(job("gpt-5", dialect), body=asking(**more))

    (found,) = deployments(asked, reattached())
    (rest,) = deployments(asked, reattached(), for_rest=True)

    assert (found.wire, found.in_background, dict(found.headers)) == ("openai-responses", True, {})
    assert (rest.wire, rest.in_background) == ("openai-chat", False)


@pytest.mark.parametrize("fields", [{"stop": "x"}, {"seed": 1}, {"n": 2}, {"logprobs": True}, {"store": False}])
def test_what_a_response_cannot_say_goes_where_it_can_be_said(fields):
    (found,) = deployments(replace(job("gpt-5"), body=asking(**fields)), reattached())

    assert (found.wire, found.in_background) == ("openai-chat", False)


def test_only_streams_of_providers_that_can_run_in_the_background():
    asked = replace(job("gpt-5"), body=asking())
    for changed, settings in [
        (replace(asked, stream=False), reattached()),
        (replace(asked, operation="count_tokens"), reattached()),
        (replace(asked, model="upper/m"), reattached("upper", base_url="http://h/v1")),
        (asked, with_provider("openai")),
    ]:
        assert [found.in_background for found in deployments(changed, settings)] == [False]


def test_only_what_the_asker_may_use_of_a_route_is_called():
    settings = Settings(
        providers={"openai": ProviderSettings(api_keys=("k",)), "anthropic": ProviderSettings(api_keys=("k",))},
        aliases={"both": ["anthropic/claude-haiku-4-5", "openai/gpt-5"]},
    )

    found = {
        named: [each.provider for each in deployments(job("both", targets=targets), settings)]
        for named, targets in [("all", None), ("one", ["openai/gpt-5"])]
    }

    assert found == {"all": ["anthropic", "openai"], "one": ["openai"]}
    with pytest.raises(GatewayError, match="same settings"):
        deployments(job("both", targets=["mistral/large"]), settings)
    assert Job.unpack(job("both", targets=["openai/gpt-5"]).pack()).targets == ["openai/gpt-5"]
