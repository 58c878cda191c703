"""Which answers run on when their connection is lost, and what have they said so far?

As at OpenAI: a stream that was asked for with ``background`` is made whether anybody reads it or not, and can be read from
any of its events on until it is forgotten. An event's place in the list is its sequence number.

Source: https://developers.openai.com/api/docs/guides/background
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

KEPT_MAX = 1000  # Then the oldest is forgotten, and stopped if it still runs.


class Background:
    """One answer in the background; whoever says it writes to it as to a connection."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response
        self._events: list[bytes] = []
        self._is_over = False
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def run(self, say: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(say)
        self._task.add_done_callback(lambda _: self._end())

    async def write(self, data: bytes) -> None:
        self._events += [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
        self._tell()

    def cancel(self) -> None:
        if not self._is_over and self._task:
            self._task.cancel()
            self.response = {**self.response, "status": "cancelled"}

    async def events(self, start: int = 0) -> AsyncIterator[bytes]:
        """Yield its events from that place on, as they come; one that was cancelled just ends."""
        while True:
            for event in self._events[start:]:
                start += 1
                yield event
            if self._is_over and start >= len(self._events):
                return
            if start >= len(self._events):
                await self._has_news.wait()

    def _end(self) -> None:
        self._is_over = True
        self._tell()

    def _tell(self) -> None:
        self._has_news.set()
        self._has_news = asyncio.Event()


class Backgrounds:
    """All of them, by the ids of their responses."""

    def __init__(self) -> None:
        self._kept: dict[str, Background] = {}

    def start(self, response: dict[str, Any], say: Callable[[Background], Coroutine[Any, Any, None]]) -> Background:
        answer = self._kept[response["id"]] = Background(response)
        answer.run(say(answer))
        if len(self._kept) > KEPT_MAX:
            self._kept.pop(next(iter(self._kept))).cancel()
        return answer

    def find(self, id_: str) -> Background | None:
        return self._kept.get(id_)

    def stop(self) -> None:
        for answer in self._kept.values():
            answer.cancel()
