"""What answers at our own address? One GET with Python's standard library: it loads fast and uses no proxy."""

import asyncio
import http.client
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
BODY_BYTES_MAX = 64 * 1024


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def get(url: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer, with at most 64 KiB of its body.

    Raises:
        OSError: nothing answers in time, or what answers does not speak HTTP.
    """
    async with asyncio.timeout(2 * TIMEOUT_S):  # The socket's own timeout applies to each of its steps.
        return await asyncio.to_thread(_get, url, headers or {})


def _get(url: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=dict(headers))
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read(BODY_BYTES_MAX))
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(type(error).__name__) from error
    finally:
        connection.close()
