"""How does the API call a guardrail that is a web service? With httpx; the rest is in ``common.guardrails.custom``."""

from typing import TYPE_CHECKING

from common.config.proxies import Proxy
from common.guardrails.custom import WEBHOOK_CONNECTIONS_MAX, WEBHOOK_HEADERS, PostWebhook, read_webhook_answer

if TYPE_CHECKING:
    from api.server.http_client import HttpClient


def poster(url: str, timeout_s: float, proxy: Proxy | None = None) -> PostWebhook:
    """Return a function that posts JSON to the operator's URL, and never to another one."""
    from api.server.http_client import (
        http_client,  # Imported here: it takes longer to load than everything else that the API needs for this.
    )

    return _HttpxPoster(url, http_client(proxy, timeout_s, WEBHOOK_CONNECTIONS_MAX))


class _HttpxPoster:
    def __init__(self, url: str, client: "HttpClient") -> None:
        self._url, self._client = url, client

    async def __call__(self, body: bytes) -> bytes:
        async with self._client.stream("POST", self._url, content=body, headers=WEBHOOK_HEADERS) as response:
            return await read_webhook_answer(response.status_code, response.aiter_raw())

    async def close(self) -> None:
        await self._client.aclose()
