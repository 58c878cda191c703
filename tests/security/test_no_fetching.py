"""Can a request make the gateway call an address of the client's choice?

Every place of a request that may hold an address names a listener of ours, which counts who connects: nobody ever does.
What is an image's address stays with the vendor, which fetches it or does not.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support.fleet import CHAT, KEY, MESSAGES, PATH_OF, Fleet, RawClient, body_of, fleet, headers_of
from tests.support.upstreams.listener import Listener, Redirector

PROVIDERS = ("openai", "anthropic", "google-ai-studio", "cohere", "demo")


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as found:
        yield found


def _chat(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]}


def bodies(url: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Requests whose content is elsewhere, by what it is: the path and the body without its model."""
    limit = {"max_tokens": 100}
    return {
        "chat image": (PATH_OF[CHAT], _chat({"type": "image_url", "image_url": {"url": url}})),
        "chat file": (PATH_OF[CHAT], _chat({"type": "file", "file": {"file_data": url, "filename": "x.pdf"}})),
        "messages image": (PATH_OF[MESSAGES], _chat({"type": "image", "source": {"type": "url", "url": url}}) | limit),
        "messages document": (PATH_OF[MESSAGES], _chat({"type": "document", "source": {"type": "url", "url": url}}) | limit),
        "messages mcp": (PATH_OF[MESSAGES], body_of(MESSAGES, "", mcp_servers=[{"type": "url", "url": url, "name": "x"}])),
        "responses image": (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        ),
        "responses file": (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]},
        ),
        "responses mcp": (
            "/v1/responses",
            {"input": "hi", "tools": [{"type": "mcp", "server_label": "x", "server_url": url}]},
        ),
        "unified image": ("/v1/chat", _chat({"type": "image_url", "image_url": {"url": url}})),
        "agentary image": ("/api/openai", _chat({"type": "image_url", "image_url": {"url": url}})),
    }


NAMES = tuple(bodies(""))
TAKEN = {"chat image": "openai", "messages image": "anthropic", "responses image": "openai"}  # At least these pass on.


@pytest.mark.parametrize("name", NAMES)
def test_what_a_request_refers_to_is_never_fetched(shared: Fleet, listener: Listener, name: str):
    path, body = bodies(listener.url)[name]
    shared.reset_demo()

    for provider in PROVIDERS:
        more = {"provider": provider} if path == "/v1/chat" else {}
        target = path.replace("openai", provider) if path.startswith("/api/") else path
        model = "demo-n1-d0" if more or path.startswith("/api/") else f"{provider}/demo-n1-d0"
        response = shared.client.post(shared.url + target, json={**body, **more, "model": model}, headers=headers_of())
        assert response.status_code in (200, 400), response.text  # Refused where the wire has no such thing.
        if TAKEN.get(name) == provider:
            assert response.status_code == 200

    assert listener.connections == 0
    if name in TAKEN:
        assert listener.url in orjson.dumps(shared.upstream_requests()).decode()  # It was there to be fetched.


@pytest.mark.parametrize(
    "more",
    [
        {"base_url": "{}"},
        {"api_base": "{}", "api_key": "sk-mine"},
        {"endpoint": "{}"},
        {"provider": {"base_url": "{}"}},
        {"extra_body": {"base_url": "{}"}},
        {"extra_headers": {"host": "{}"}},
        {"callback_url": "{}", "webhook_url": "{}"},
    ],
)
def test_a_body_cannot_name_the_upstream(shared: Fleet, listener: Listener, more: dict[str, Any]):
    named = orjson.loads(orjson.dumps(more).replace(b"{}", listener.url.encode()))
    for path in (PATH_OF[CHAT], "/v1/chat", "/api/demo", "/v1/responses"):
        body = {**body_of(CHAT, "demo-n1-d0"), "input": "hi", **named}

        response = shared.client.post(shared.url + path, json=body, headers=headers_of())

        assert response.status_code < 500

    assert listener.connections == 0


HEADERS = (
    *("host", "x-forwarded-host", "x-forwarded-server", "x-host", "x-original-url", "x-rewrite-url", "x-original-host"),
    *("x-base-url", "x-api-base", "x-sluice-base-url", "x-portkey-custom-host", "cf-aig-custom-host", "openai-base-url"),
    *("proxy", "x-http-destinationurl", "destination", "referer", "origin", "x-forwarded-for", "true-client-ip"),
)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_cannot_name_the_upstream(shared: Fleet, listener: Listener, name: str):
    for value in (listener.address, listener.url):
        response = shared.client.post(
            shared.url + PATH_OF[CHAT], json=body_of(CHAT, "demo-n1-d0"), headers={**headers_of(), name: value}
        )

        assert response.status_code == 200
        # Nor does an answer lead there.
        assert listener.address not in str(response.headers) + response.text
    assert listener.connections == 0


def test_neither_can_forwarded(shared: Fleet, listener: Listener):
    forwarded = f'host="{listener.address}";proto=http;for="{listener.address}"'

    response = shared.client.get(shared.url + "/v1/models/", headers={**headers_of(), "forwarded": forwarded})

    assert response.status_code == 404  # Not a redirect to wherever.
    assert listener.connections == 0


@pytest.mark.parametrize("model", ["{}", "{}/gpt-5", "openai/{}", "x#{}", "openai/../../{}", "openai/x?y={}", "openai/@{}"])
@pytest.mark.parametrize("path", [PATH_OF[CHAT], "/v1/chat", "/api/openai"])
def test_a_model_cannot_name_the_upstream(shared: Fleet, listener: Listener, model: str, path: str):
    body = body_of(CHAT, model.format(listener.url))

    assert shared.client.post(shared.url + path, json=body, headers=headers_of()).status_code in (200, 400, 404)

    assert listener.connections == 0


@pytest.mark.parametrize("provider", ["http:%2F%2F{}", "{}", "@{}", "..%2F{}", "openai%00{}"])
def test_a_path_cannot_name_the_upstream(shared: Fleet, listener: Listener, provider: str):
    url = f"{shared.url}/api/{provider.format(listener.address)}"

    assert shared.client.post(url, json=body_of(CHAT, "demo-n1-d0"), headers=headers_of()).status_code in (400, 404)

    assert listener.connections == 0


def test_the_gateway_is_no_proxy(shared: Fleet, listener: Listener):
    for first in (f"GET {listener.url} HTTP/1.1", f"CONNECT {listener.address} HTTP/1.1"):
        with RawClient(shared.ports[0]) as client:
            client.send_bytes(f"{first}\r\nhost: {listener.address}\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())

            status = int(client.read_until(b"\r\n").split(b" ")[1])

            assert status in (400, 404, 405)
    assert listener.connections == 0


@pytest.mark.timeout(600)  # Each is tried again after a second or two.
def test_a_redirect_of_an_upstream_is_not_followed(tmp_path: Path, listener: Listener):
    """It would take the provider's key and the prompt to whoever the upstream names."""
    with Redirector(listener.url) as upstream:
        names = ("OPENAI", "ANTHROPIC", "GEMINI", "COHERE")
        addresses = {f"{name}_BASE_URL": upstream.url + ("/v1" if name == "OPENAI" else "") for name in names}
        with fleet(tmp_path, **addresses) as found:
            for provider, status in itertools.product(("openai", "anthropic", "google-ai-studio", "cohere"), (301, 303, 307)):
                seen = upstream.requests
                response = found.post(CHAT, body_of(CHAT, f"{provider}/m", text=f"say {status}"))

                assert response.status_code == 502, response.text
                assert upstream.requests > seen
                assert listener.address not in response.text
    assert listener.connections == 0


def test_a_proxy_in_the_environment_is_not_used_where_it_is_switched_off(tmp_path: Path, listener: Listener):
    """A variable that is meant for other programs must not lead prompts and keys past whoever set it for them."""
    proxy = f"http://{listener.address}"
    ways = {"HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy, "NO_PROXY": "nothing", "no_proxy": "nothing"}
    with fleet(tmp_path, SLUICE_PROXY_FROM_ENV="false", **ways) as found:
        with httpx.Client(trust_env=False) as client:
            response = client.post(found.url + PATH_OF[CHAT], json=body_of(CHAT, "openai/demo-n1-d0"), headers=headers_of())

        assert response.status_code == 200
    assert listener.connections == 0
