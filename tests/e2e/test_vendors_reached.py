"""Where requests go, and what of them: vendors at addresses of either form, own providers, Cloudflare's AI Gateway."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_provider.script import answer
from tests.support.fleet import CHAT, MESSAGES, Fleet, body_of, fleet
from tests.support.upstreams.recording_upstream import RecordingUpstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as found:
        yield found


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> Iterator[Fleet]:
    """Most vendors, each with an address and a key of its own."""
    up = upstream.url
    settings = {
        "MISTRAL_API_KEY": "sk-mistral",
        "MISTRAL_BASE_URL": up,
        "GROQ_API_KEY": "sk-groq",
        "GROQ_BASE_URL": f"{up}/openai/v1",
        "XAI_API_KEY": "sk-xai",
        "XAI_BASE_URL": f"{up}/v1",
        "DEEPSEEK_API_KEY": "sk-deepseek",
        "DEEPSEEK_BASE_URL": f"{up}/",
        "CEREBRAS_API_KEY": "sk-cerebras",
        "CEREBRAS_BASE_URL": up,
        "AZURE_OPENAI_API_KEY": "sk-azure",
        "AZURE_OPENAI_BASE_URL": up,
        "AZURE_API_VERSION": "2024-02-01",
        "OLLAMA_BASE_URL": up,
        "SLUICE_PROVIDERS": f'{{"lab": {{"base_url": "{up}/lab/v1", "api_keys": "sk-lab"}}}}',
        "SLUICE_ALIASES": '{"fast": ["groq/llama-x"]}',
        "RATE_LIMIT_MAX": "many",
    }
    with fleet(tmp_path_factory.mktemp("vendors"), **settings) as found:
        yield found


@pytest.mark.parametrize(
    ("model", "path", "upstream_model", "key"),
    [
        ("mistral-large", "/v1/chat/completions", "mistral-large-latest", "sk-mistral"),
        ("fast", "/openai/v1/chat/completions", "llama-x", "sk-groq"),
        ("xai/grok-4", "/v1/chat/completions", "grok-4", "sk-xai"),
        ("deepseek-chat", "/chat/completions", "deepseek-chat", "sk-deepseek"),
        ("llama3.1-8b#cerebras", "/v1/chat/completions", "llama3.1-8b", "sk-cerebras"),
        ("ollama/qwen3", "/v1/chat/completions", "qwen3", "ollama"),
        ("lab/m", "/lab/v1/chat/completions", "m", "sk-lab"),
    ],
)
def test_a_vendor_is_reached_by_its_name(vendors, upstream, model, path, upstream_model, key):
    response = vendors.post(CHAT, body_of(CHAT, model))

    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert (upstream.last.path, upstream.last.body["model"]) == (path, upstream_model)
    assert upstream.last.headers["authorization"] == f"Bearer {key}"


def test_azure_is_reached_by_deployment(vendors, upstream):
    response = vendors.post(CHAT, body_of(CHAT, "azure/my-gpt", stream=True))

    assert response.text.endswith("data: [DONE]\n\n")
    assert upstream.last.path == "/openai/deployments/my-gpt/chat/completions?api-version=2024-02-01"
    assert upstream.last.headers["api-key"] == "sk-azure"
    assert "authorization" not in upstream.last.headers
    assert "stream_options" not in upstream.last.body


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_vendor_does_not_know_is_renamed_or_left_out_and_named(vendors, upstream, stream):
    more = {"seed": 7, "max_completion_tokens": 9, "user": "u", "store": False}

    response = vendors.post(CHAT, body_of(CHAT, "mistral/m", stream=stream, **more))

    assert response.status_code == 200
    assert response.headers["x-sluice-dropped"] == "user, store"
    assert upstream.last.body == {
        "model": "m",
        "stream": stream,
        "messages": [{"role": "user", "content": "hi"}],
        "random_seed": 7,
        "max_tokens": 9,
    }


def test_an_anthropic_client_reaches_them_too(vendors, upstream):
    response = vendors.post(MESSAGES, body_of(MESSAGES, "groq/llama-x"))

    assert response.json()["content"] == [{"type": "text", "text": "Hello"}]
    assert upstream.last.path == "/openai/v1/chat/completions"


def test_models_are_listed_for_the_providers_that_are_on(vendors):
    listed = vendors.client.get(f"{vendors.url}/v1/models", headers={"authorization": "Bearer sk-test"}).json()["data"]
    owners = {model["id"]: model["owned_by"] for model in listed}

    assert owners["fast"] == "sluice"
    assert owners["mistral-large"] == "mistral"
    assert not [name for name in owners if "*" in name]  # A pattern is no model.


@pytest.mark.parametrize(
    ("path", "id_", "owner"),
    [
        ("fast", "fast", "sluice"),
        ("mistral-large", "mistral-large", "mistral"),
        ("lab/tiny", "lab/tiny", "lab"),
        ("lab%2Ftiny", "lab/tiny", "lab"),
        ("groq/meta/llama-4", "groq/meta/llama-4", "groq"),
    ],
)
def test_a_model_is_found_by_every_name_that_works_whether_it_is_listed_or_not(vendors, path, id_, owner):
    for more in ({}, {"anthropic-version": "2023-06-01"}):
        found = vendors.client.get(f"{vendors.url}/v1/models/{path}", headers={"authorization": "Bearer sk-test", **more})

        assert found.status_code == 200
        model = found.json()
        assert (model["id"], model["owned_by"]) == (id_, owner)


@pytest.mark.parametrize(
    ("path", "words"), [("sonar-pro", "PERPLEXITY_API_KEY"), ("nothing", "Available: "), ("lab/*", "a pattern")]
)
def test_a_model_that_is_not_there_is_told_as_a_request_for_it_would_be(vendors, path, words):
    for more in ({}, {"anthropic-version": "2023-06-01"}):
        answer = vendors.client.get(f"{vendors.url}/v1/models/{path}", headers={"authorization": "Bearer sk-test", **more})

        assert answer.status_code == 404
        assert words in answer.json()["error"]["message"]
        assert ("type" in answer.json()) is bool(more)  # Each vendor's shape of an error.


def test_a_provider_that_is_off_is_named_with_its_variable(vendors):
    response = vendors.post(CHAT, body_of(CHAT, "sonar-pro"))

    assert response.status_code == 404
    assert "PERPLEXITY_API_KEY" in response.json()["error"]["message"]


def test_both_tiers_log_which_foreign_variables_they_follow(vendors):
    for process in (vendors.apis[0], vendors.workers[0]):
        assert ["AZURE_API_VERSION"] in [line["variables"] for line in process.events("foreign_variables_taken")]
        assert [line["variable"] for line in process.events("foreign_variable_has_no_effect")] == ["RATE_LIMIT_MAX"]


def test_the_demo_provider_serves_vendors_at_both_forms_of_address(tmp_path: Path):
    with fleet(tmp_path, workers=0) as found:
        keys = {"MISTRAL_API_KEY": "k", "MISTRAL_BASE_URL": found.demo_url, "CEREBRAS_API_KEY": "k"}
        found.settings.update(**keys, CEREBRAS_BASE_URL=f"{found.demo_url}/v1")
        found.start(apis=1, workers=1)
        for model in ("mistral/demo-n3-d0", "cerebras/demo-n3-d0"):
            url = f"http://127.0.0.1:{found.ports[-1]}/v1/chat/completions"
            reply = found.client.post(url, json=body_of(CHAT, model), headers={"authorization": "Bearer sk-test"}).json()
            assert reply["choices"][0]["message"]["content"] == answer(3)


@pytest.fixture(scope="module")
def behind_gateway(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> Iterator[Fleet]:
    """Everything through an AI Gateway, but for the one provider with an address of its own; its token is a key of ours too."""
    settings = {
        "ACCOUNT_ID": "acct",
        "GATEWAY_ID": "gw",
        "GatewayToken": "sk-gateway",
        "SLUICE_API_KEYS": "",
        "SLUICE_AI_GATEWAY_BASE_URL": f"{upstream.url}/v1",
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "OPENAI_API_KEY": "",
        "OPENAI_BASE_URL": "",
        "ANTHROPIC_BASE_URL": "",
        "XAI_API_KEY": "sk-xai",
        "XAI_BASE_URL": f"{upstream.url}/direct/v1",
    }
    with fleet(tmp_path_factory.mktemp("gateway"), **settings) as found:
        yield found


def test_behind_the_ai_gateway_a_provider_needs_no_key_of_ours(behind_gateway, upstream):
    response = behind_gateway.post(
        CHAT, body_of(CHAT, "gpt-5"), key="sk-gateway", cf_aig_cache_ttl="60", cf_aig_metadata='{"a":1}'
    )

    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert response.headers["cf-aig-cache-status"] == "MISS"
    assert upstream.last.path == "/v1/acct/gw/openai/chat/completions"
    assert "authorization" not in upstream.last.headers
    assert upstream.last.headers["cf-aig-authorization"] == "Bearer sk-gateway"
    assert upstream.last.headers["cf-aig-cache-ttl"] == "60"
    assert upstream.last.headers["cf-aig-metadata"] == '{"a":1}'


def test_behind_the_ai_gateway_a_key_of_ours_is_sent_where_there_is_one(behind_gateway, upstream):
    response = behind_gateway.post(MESSAGES, body_of(MESSAGES, "claude-sonnet-4-5"), key="sk-gateway")

    assert response.json()["content"][0]["text"] == "Hello"
    assert upstream.last.path == "/v1/acct/gw/anthropic/v1/messages"
    assert upstream.last.headers["x-api-key"] == "sk-upstream-anthropic"
    assert upstream.last.headers["cf-aig-authorization"] == "Bearer sk-gateway"


def test_behind_the_ai_gateway_a_request_may_bring_the_provider_s_key(behind_gateway, upstream):
    response = behind_gateway.post(CHAT, body_of(CHAT, "gpt-5"), key="sk-theirs", cf_aig_authorization="Bearer sk-gateway")

    assert response.status_code == 200
    assert upstream.last.headers["authorization"] == "Bearer sk-theirs"
    assert upstream.last.headers["cf-aig-authorization"] == "Bearer sk-gateway"


def test_past_the_ai_gateway_nothing_of_it_is_sent(behind_gateway, upstream):
    behind_gateway.post(CHAT, body_of(CHAT, "grok-4"), key="sk-gateway", cf_aig_cache_ttl="60")

    assert upstream.last.path == "/direct/v1/chat/completions"
    assert [name for name in upstream.last.headers if name.startswith("cf-aig-")] == []
