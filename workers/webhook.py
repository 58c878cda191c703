"""How does a worker ask a guardrail that is a service? The answer is bounded, redirects are not followed."""

import aiohttp

from common.guardrails.custom import ANSWER_BYTES_MAX, Post

CONNECTIONS_MAX = 100
_PIECE_BYTES = 64 * 1024


def poster(url: str, timeout_s: float) -> Post:
    """Return what posts JSON to the operator's own address; no other is ever asked."""
    return _Poster(url, timeout_s)


class _Poster:
    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"user-agent": "sluice", "accept-encoding": "identity"},
        )

    async def __call__(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
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
