"""Which answers continue when their connection is lost, and what have they sent so far?

As at OpenAI: a stream that was requested with ``background`` runs even if nobody reads it. Until it is dropped, it can be read
from any of its events on. An event's index in the list is its sequence number.

Source: https://developers.openai.com/api/docs/guides/background
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

KEPT_MAX = 1000  # Past this many the oldest is dropped, and stopped if it still runs.


class Background:
    """One background answer. A player writes to it as to a connection."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response
        self._events: list[bytes] = []
        self._is_over = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def run(self, playing: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(playing)
        self._task.add_done_callback(lambda _: self._end())

    async def write(self, data: bytes) -> None:
        self._events += [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
        self._notify()

    def cancel(self) -> None:
        if not self._is_over and self._task:
            self._task.cancel()
            self.response = {**self.response, "status": "cancelled"}

    async def events(self, start: int = 0) -> AsyncIterator[bytes]:
        """Yield its events from index ``start`` on, as they arrive. A cancelled answer just ends."""
        while True:
            for event in self._events[start:]:
                start += 1
                yield event
            if self._is_over and start >= len(self._events):
                return
            if start >= len(self._events):
                await self._changed.wait()

    def _end(self) -> None:
        self._is_over = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Backgrounds:
    """All background answers, by response id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Background] = {}

    def start(self, response: dict[str, Any], play: Callable[[Background], Coroutine[Any, Any, None]]) -> Background:
        answer = self._by_id[response["id"]] = Background(response)
        answer.run(play(answer))
        if len(self._by_id) > KEPT_MAX:
            self._by_id.pop(next(iter(self._by_id))).cancel()
        return answer

    def find(self, id_: str) -> Background | None:
        return self._by_id.get(id_)

    def stop(self) -> None:
        for answer in self._by_id.values():
            answer.cancel()
