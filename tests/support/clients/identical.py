"""Identical requests in every dialect: one, or hundreds at once on all replicas."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx

from demo_provider.script import answer
from tests.support.clients.every_dialect import CLIENTS
from tests.support.fleet import CHAT, KEY, WAIT_S, Fleet, body_of, headers_of

PATHS = {
    CHAT: "/v1/chat/completions",
    "anthropic-messages": "/v1/messages",
    "openai-responses": "/v1/responses",
    "agentary": "/api/openai",
    "unified": "/v1/chat",
}


def body(dialect: str, spec: str, *, stream: bool, text: str = "hi", **more: Any) -> dict[str, Any]:
    """Return a body for the demo provider's script ``spec``, at the provider ``openai``."""
    match dialect:
        case "openai-responses":
            return {"model": f"openai/demo-{spec}", "input": text, "stream": stream, **more}
        case "agentary":
            return body_of(CHAT, f"demo-{spec}", stream=stream, text=text, **more)
        case "unified":
            return {**body_of(CHAT, f"demo-{spec}", stream=stream, text=text), "provider": "openai", **more}
        case _:
            return body_of(dialect, f"openai/demo-{spec}", stream=stream, text=text, **more)


def send(
    found: Fleet,
    dialect: str,
    spec: str,
    *,
    stream: bool = True,
    replica: int = 0,
    key: str = KEY,
    text: str = "hi",
    fields: dict[str, Any] | None = None,
    **headers: str,
) -> httpx.Response:
    """Send one request, and return its answer. ``fields`` are added to the body."""
    url = f"http://127.0.0.1:{found.ports[replica]}{PATHS[dialect]}"
    content = body(dialect, spec, stream=stream, text=text, **(fields or {}))
    return found.client.post(url, json=content, headers=headers_of(key, **headers))


def cache_state(response: httpx.Response) -> str | None:
    return response.headers.get("x-sluice-cache")


def id_of(response: httpx.Response) -> str:
    return str(response.headers["x-generation-id"])


def without_ids(raw: bytes) -> bytes:
    """Return a stream without the lines that each reader gets for itself: ids of events, and when to come back."""
    return re.sub(rb"(?m)^(retry|id): [^\n]*\n", b"", raw)


def without_names(dialect: str, raw: bytes) -> bytes:
    """Return an answer without what each generation has of its own: the ids of a response, of which clients ask for more."""
    return re.sub(rb"_[0-9a-f]{32}", b"_", raw) if dialect == "openai-responses" else raw


def is_complete(dialect: str, raw: bytes, tokens: int, *, stream: bool) -> bool:
    """Whether the dialect's own client reads the whole answer out of these bytes."""
    client = CLIENTS[dialect]
    return (client.read_stream if stream else client.read_whole)(raw).text == answer(tokens)


@dataclass(slots=True)
class Reader:
    """One of many clients. ``received``: the bytes so far; ``failure``: why its connection broke off."""

    replica: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    received: bytes = b""
    failure: str = ""

    @property
    def cache(self) -> str:
        return self.headers.get("x-sluice-cache", "")

    @property
    def generation_id(self) -> str:
        return self.headers.get("x-generation-id", "")


def read_many(
    found: Fleet,
    count: int,
    dialect: str,
    spec: str,
    *,
    stream: bool = True,
    leave: Callable[[int], bool] = lambda number: False,
    **headers: str,
) -> list[Reader]:
    """Send identical requests at once, to all replicas in turn, and read all answers to their ends.

    ``leave``: which of them, by number, leave after their first bytes.
    """
    return asyncio.run(_read_many(found, count, dialect, spec, stream, leave, headers))


async def _read_many(
    found: Fleet,
    count: int,
    dialect: str,
    spec: str,
    stream: bool,
    leave: Callable[[int], bool],
    headers: dict[str, str],
) -> list[Reader]:
    content, named = body(dialect, spec, stream=stream), headers_of(**headers)
    readers = [Reader(number % len(found.ports)) for number in range(count)]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=WAIT_S)

    async def read(number: int, reader: Reader) -> None:
        url = f"http://127.0.0.1:{found.ports[reader.replica]}{PATHS[dialect]}"
        try:
            async with session.post(url, json=content, headers=named) as response:
                reader.status, reader.headers = response.status, {k.lower(): v for k, v in response.headers.items()}
                async for piece in response.content.iter_any():
                    reader.received += piece
                    if leave(number):
                        return response.close()
        except (aiohttp.ClientError, OSError) as error:
            reader.failure = repr(error)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(read(number, reader) for number, reader in enumerate(readers)))
    return readers
