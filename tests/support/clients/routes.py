"""How is a request sent to each route that starts a generation?"""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.fleet import KEY, Fleet, headers_of

ORIGIN = "https://app.example"


@dataclass(frozen=True)
class Route:
    """``fields`` are the fields of a body besides its model; ``provider_in`` says where the request names the provider."""

    path: str
    fields: dict[str, Any]
    provider_in: str = "model"

    def post(self, fleet: Fleet, provider: str, spec: str, *, stream: bool, key: str = KEY, **more: Any) -> httpx.Response:
        body = {"model": spec, "stream": stream, **self.fields, **more}
        if self.provider_in == "model":
            body["model"] = f"{provider}/{spec}"
        elif self.provider_in == "body":
            body["provider"] = provider
        url = fleet.url + self.path.replace("{provider}", provider)
        return fleet.client.post(url, json=body, headers=headers_of(key, origin=ORIGIN))


USER = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = {
    "openai-chat": Route("/v1/chat/completions", USER),
    "openai-responses": Route("/v1/responses", {"input": "hi"}),
    "anthropic-messages": Route("/v1/messages", {**USER, "max_tokens": 4096}),
    "agentary": Route("/api/{provider}", USER, "path"),
    "unified": Route("/v1/chat", USER, "body"),
}
