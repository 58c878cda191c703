"""How does the API ask a guardrail that is a service? The answer is bounded, redirects are not followed."""

from typing import TYPE_CHECKING

from common.config.proxies import Proxy
from common.guardrails.custom import ANSWER_BYTES_MAX, Post

if TYPE_CHECKING:
    import httpx

CONNECTIONS_MAX = 100


def poster(url: str, timeout_s: float, proxy: Proxy | None = None) -> Post:
    """Return what posts JSON to the operator's own address; no other is ever asked."""
    import httpx  # Only here: it takes longer to load than all else that the API needs for it.

    from api.server.http_client import http_client

    limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
    return _Poster(url, http_client(proxy, timeout_s, limits=limits))


class _Poster:
    def __init__(self, url: str, client: "httpx.AsyncClient") -> None:
        self._url, self._client = url, client

    async def __call__(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            answer = bytearray()
            async for piece in response.aiter_raw():
                answer += piece
                if len(answer) > ANSWER_BYTES_MAX:
                    raise ValueError("a longer answer than is taken")
            return bytes(answer)

    async def close(self) -> None:
        await self._client.aclose()
