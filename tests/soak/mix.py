"""What do clients do, all at once and for hours?

Sixteen kinds of actions, each against the whole gateway: answers of several dialects, streamed and not, read and left, resumed
and asked for twice, failures of the client's and of the upstream's making. Keys and model names are drawn from many, so that
whatever is kept for each of them shows.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

KEYS = [f"sk-soak-{n:04d}-0123456789" for n in range(200)]
MODEL_NAMES = 15_000
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


class Mix:
    """Clients of one gateway. ``seen`` counts each kind's ends, by their status."""

    def __init__(self, url: str, session: aiohttp.ClientSession, seed: int) -> None:
        self._url, self._session = url, session
        self._random = random.Random(seed)
        self.seen: Counter[tuple[str, str]] = Counter()
        self._kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "stream": lambda: self._chat(stream=True),
            "whole": lambda: self._chat(),
            "stream of another family": lambda: self._messages(stream=True),
            "whole of another family": lambda: self._messages(),
            "leaves amid": lambda: self._leave(after_reads=2),
            "leaves at once": lambda: self._leave(after_reads=0),
            "comes back": self._come_back,
            "tools": lambda: self._chat(stream=True, parts="-tool", tools=[TOOL]),
            "upstream fails": lambda: self._chat(parts="-e500x1"),
            "upstream refuses": lambda: self._chat(parts="-e400"),
            "upstream cuts": lambda: self._chat(stream=True, parts="-cut3"),
            "bad key": lambda: self._post("/v1/chat/completions", self._chat_body(), key=f"sk-bad-{self._random.random()}"),
            "bad body": lambda: self._post("/v1/chat/completions", {"model": self._model()}),
            "asks twice": self._ask_twice,
            "in the background": self._in_background,
            "unknown path": self._unknown,
        }

    async def one(self) -> None:
        """Do one thing that is drawn; whatever comes of it is only counted."""
        kind = self._random.choice(list(self._kinds))
        try:
            status = await asyncio.wait_for(self._kinds[kind](), 60)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            status = type(error).__name__
        self.seen[kind, str(status)] += 1

    def _model(self, parts: str = "") -> str:
        draw = self._random
        return f"demo/demo-n{draw.randint(5, 40)}-d{draw.choice([2, 5, 10])}{parts}-v{draw.randrange(MODEL_NAMES)}"

    def _chat_body(self, parts: str = "", **more: Any) -> dict[str, Any]:
        text = "tell me " * self._random.randint(1, 200)
        return {"model": self._model(parts), "messages": [{"role": "user", "content": text}], **more}

    def _headers(self, key: str = "", **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self._random.choice(KEYS)}", **more}

    async def _post(self, path: str, body: dict[str, Any], key: str = "", **headers: str) -> int:
        async with self._session.post(self._url + path, json=body, headers=self._headers(key, **headers)) as response:
            await response.read()
            return response.status

    async def _chat(self, *, parts: str = "", **more: Any) -> int:
        return await self._post("/v1/chat/completions", self._chat_body(parts, **more))

    async def _messages(self, **more: Any) -> int:
        return await self._post("/v1/messages", self._chat_body(max_tokens=500, **more))

    async def _leave(self, after_reads: int) -> str:
        body = self._chat_body("-f50", stream=True)
        async with self._session.post(f"{self._url}/v1/chat/completions", json=body, headers=self._headers()) as response:
            for _ in range(after_reads):
                await response.content.readany()
            response.close()
        return "left"

    async def _come_back(self) -> int:
        key = self._random.choice(KEYS)
        body, headers = self._chat_body(), self._headers(key)
        async with self._session.post(f"{self._url}/v1/generations", json=body, headers=headers) as response:
            if response.status != 202:
                return response.status
            events_url = (await response.json())["events_url"]
        url = events_url if events_url.startswith("http") else self._url + events_url
        last = ""
        async with self._session.get(url, headers={"accept": "text/event-stream"}) as response:
            async for line in response.content:
                if line.startswith(b"id:"):
                    last = line[3:].strip().decode()
                    break
            response.close()
        again = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        async with self._session.get(url, headers=again) as response:
            await response.read()
            return response.status

    async def _ask_twice(self) -> int:
        key, once = self._random.choice(KEYS), f"once-{self._random.getrandbits(64)}"
        body = self._chat_body(stream=True)
        await self._post("/v1/chat/completions", body, key, **{"idempotency-key": once})
        return await self._post("/v1/chat/completions", body, key, **{"idempotency-key": once})

    async def _in_background(self) -> int:
        key = self._random.choice(KEYS)
        asked = {"model": self._model(), "input": "hello", "background": True}
        async with self._session.post(f"{self._url}/v1/responses", json=asked, headers=self._headers(key)) as response:
            if response.status != 200:
                return response.status
            id_ = json.loads(await response.read())["id"]
        await asyncio.sleep(1)
        async with self._session.get(f"{self._url}/v1/responses/{id_}", headers=self._headers(key)) as response:
            await response.read()
            return response.status

    async def _unknown(self) -> int:
        path = f"{self._url}/v1/{self._random.getrandbits(40):x}"
        async with self._session.get(path, headers=self._headers()) as response:
            await response.read()
            return response.status
