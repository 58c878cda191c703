"""How does a worker call a guardrail that is a web service? With its own HTTP client; the rest is in
``common.guardrails.custom``.
"""

import aiohttp

from common.config.proxies import Proxy
from common.guardrails.custom import WEBHOOK_CONNECTIONS_MAX, WEBHOOK_HEADERS, PostWebhook, read_webhook_answer
from workers.upstream.connecting import request_arguments

_PIECE_BYTES = 64 * 1024


def poster(url: str, timeout_s: float, proxy: Proxy | None = None) -> PostWebhook:
    """Return a function that posts JSON to the operator's own address, and to no other."""
    return _Poster(url, timeout_s, proxy)


class _Poster:
    def __init__(self, url: str, timeout_s: float, proxy: Proxy | None) -> None:
        self._url = url
        self._arguments = request_arguments(url, WEBHOOK_HEADERS, proxy)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=WEBHOOK_CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"user-agent": "sluice"},
        )

    async def __call__(self, body: bytes) -> bytes:
        async with self._session.post(self._url, data=body, **self._arguments) as response:
            return await read_webhook_answer(response.status, response.content.iter_chunked(_PIECE_BYTES))

    async def close(self) -> None:
        await self._session.close()
