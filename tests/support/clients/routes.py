"""How is each route asked that generates?"""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.fleet import KEY, Fleet, headers_of

ORIGIN = "https://app.example"


@dataclass(frozen=True)
class Route:
    """``ask`` is what a dialect's body has besides its model; ``provider_in`` tells where it names the provider."""

    path: str
    ask: dict[str, Any]
    provider_in: str = "model"

    def post(self, found: Fleet, provider: str, spec: str, *, stream: bool, key: str = KEY, **more: Any) -> httpx.Response:
        body = {"model": spec, "stream": stream, **self.ask, **more}
        if self.provider_in == "model":
            body["model"] = f"{provider}/{spec}"
        elif self.provider_in == "body":
            body["provider"] = provider
        url = found.url + self.path.replace("{provider}", provider)
        return found.client.post(url, json=body, headers=headers_of(key, origin=ORIGIN))


USER = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = {
    "openai-chat": Route("/v1/chat/completions", USER),
    "openai-responses": Route("/v1/responses", {"input": "hi"}),
    "anthropic-messages": Route("/v1/messages", {**USER, "max_tokens": 4096}),
    "agentary": Route("/api/{provider}", USER, "path"),
    "unified": Route("/v1/chat", USER, "body"),
}
