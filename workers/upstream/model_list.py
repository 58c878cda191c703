"""How is a provider asked for its list of models? The list costs nothing, and shows whether its server takes a key.

``workers/routing/active_probes.py`` and ``sluice doctor`` ask for it.
"""

import re

from workers.providers.base import Deployment, UpstreamRequest

# By wire: the list's path, the header of the key, and what is written before the key.
_LISTS: dict[str, tuple[str, str, str]] = {
    "openai-chat": ("/models", "authorization", "Bearer "),
    "openai-responses": ("/models", "authorization", "Bearer "),
    "anthropic-messages": ("/v1/models", "x-api-key", ""),
    "gemini": ("/v1beta/models", "x-goog-api-key", ""),
    "cohere": ("/v1/models", "authorization", "Bearer "),
}
_ENDS_IN_VERSION = re.compile(r"/v\d\w*$")


def model_list_request(deployment: Deployment) -> UpstreamRequest:
    path, key_header, scheme = _LISTS[deployment.wire]
    path = "/models" if _ENDS_IN_VERSION.search(deployment.base_url) else path
    headers = deployment.request_headers(key_header, scheme)
    if deployment.wire == "anthropic-messages":
        headers.setdefault("anthropic-version", "2023-06-01")
    return UpstreamRequest(deployment.url(path), headers, b"", method="GET")
