"""How does the API ask a guardrail that is a service? With its own HTTP client; the rest is ``common.guardrails.custom``'s."""

from typing import TYPE_CHECKING

from common.config.proxies import Proxy
from common.guardrails.custom import WEBHOOK_CONNECTIONS_MAX, WEBHOOK_HEADERS, PostWebhook, read_webhook_answer

if TYPE_CHECKING:
    from api.server.http_client import HttpClient


def poster(url: str, timeout_s: float, proxy: Proxy | None = None) -> PostWebhook:
    """Return what posts JSON to the operator's own address; no other is ever asked."""
    from api.server.http_client import (
        http_client,  # Only here: it takes longer to load than all else that the API needs for it.
    )

    return _Poster(url, http_client(proxy, timeout_s, WEBHOOK_CONNECTIONS_MAX))


class _Poster:
    def __init__(self, url: str, client: "HttpClient") -> None:
        self._url, self._client = url, client

    async def __call__(self, body: bytes) -> bytes:
        async with self._client.stream("POST", self._url, content=body, headers=WEBHOOK_HEADERS) as response:
            return await read_webhook_answer(response.status_code, response.aiter_raw())

    async def close(self) -> None:
        await self._client.aclose()
