"""Where each wire has its list of models, and how the key is sent there."""

import pytest

from workers.providers.base import Deployment
from workers.upstream.model_list import model_list_request


@pytest.mark.parametrize(
    ("wire", "base_url", "url", "key_header"),
    [
        ("openai-chat", "http://x/v1", "http://x/v1/models", "authorization"),
        ("openai-responses", "http://x/v1", "http://x/v1/models", "authorization"),
        ("anthropic-messages", "http://x", "http://x/v1/models", "x-api-key"),
        ("gemini", "http://x", "http://x/v1beta/models", "x-goog-api-key"),
        ("gemini", "http://x/v1beta", "http://x/v1beta/models", "x-goog-api-key"),
        ("cohere", "http://x", "http://x/v1/models", "authorization"),
    ],
)
def test_each_wire_has_its_list(wire, base_url, url, key_header):
    request = model_list_request(Deployment("p", base_url, "secret", "m", wire))
    assert (request.method, request.url) == ("GET", url)
    assert request.headers[key_header].endswith("secret")
    assert ("anthropic-version" in request.headers) == (wire == "anthropic-messages")
