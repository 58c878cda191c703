"""How does a worker ask a guardrail that is a service? The answer is bounded, redirects are not followed."""

import aiohttp

from common.config.proxies import Proxy
from common.guardrails.custom import ANSWER_BYTES_MAX, Post
from workers.upstream.connecting import request_arguments

CONNECTIONS_MAX = 100
_PIECE_BYTES = 64 * 1024


def poster(url: str, timeout_s: float, proxy: Proxy | None = None) -> Post:
    """Return what posts JSON to the operator's own address; no other is ever asked."""
    return _Poster(url, timeout_s, proxy)


class _Poster:
    def __init__(self, url: str, timeout_s: float, proxy: Proxy | None) -> None:
        self._url = url
        self._arguments = request_arguments(url, {"content-type": "application/json"}, proxy)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"user-agent": "sluice", "accept-encoding": "identity"},
        )

    async def __call__(self, body: bytes) -> bytes:
        async with self._session.post(self._url, data=body, **self._arguments) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            answer = bytearray()
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                answer += piece
                if len(answer) > ANSWER_BYTES_MAX:
                    raise ValueError("a longer answer than is taken")
            return bytes(answer)

    async def close(self) -> None:
        await self._session.close()
