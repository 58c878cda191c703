"""What does one client do, and what does it see?"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.chaos.plan import Ask, Manner
from tests.chaos.readers import AGENTARY, CHAT, MESSAGES, RESPONSES, UNIFIED, Stream, error_code, whole_text

KEY = "sk-chaos"
DEADLINE_S = 130.0  # Longer than any answer with all that may delay it: a takeover, and a Redis that was away for a minute.
REFUSALS = (503, 529)  # The second is what Anthropic's clients know.
PAUSE_S = 0.25  # Before a client comes back that was refused or cut.
PAUSE_MAX_S = 1.0
STOPS_MAX = 8
# This connection is over, not the generation: who has ids comes back.
COME_BACK = {"gateway_restarting"}
# Nothing has begun: the client asks again when it was told to, as SDKs do. The second is what Anthropic's clients know.
OVERLOADED = ("overloaded", "overloaded_error")
# The answer to its enqueue came too late, or not at all. In Anthropic's dialect both are called overloaded.
LATE_WORDS = (b"more to do now than it can", b"its store does not answer")
ASKS_MAX = 8


class Outcome:
    """What came of a client, besides the code of an error."""

    COMPLETED = "completed"
    LEFT = "left"
    CUT = "(connection cut)"
    CUT_BEFORE = "(connection cut before the answer)"
    SILENT = "(ended without a word)"
    HANG = "(hangs)"
    ODD = "(impossible answer)"


@dataclass(slots=True)
class History:
    """One client's story, times as ``time.monotonic()``. ``outcome`` is one of ``Outcome`` or an error's code."""

    ask: Ask
    began_at: float
    outcome: str = ""
    status: int = 0
    status_after_end: int | None = None
    generation_id: str = ""
    cache: str = ""  # How the cache served it: miss, hit, join; empty where nobody asked for it.
    stream: Stream | None = None
    text: str = ""
    body: bytes = b""
    first_text_at: float | None = None
    ended_at: float = 0.0
    gone_at: float | None = None
    cuts: list[float] = field(default_factory=list)
    resumes: list[tuple[float, float]] = field(default_factory=list)  # When asked, and seconds until the answer.
    refusals: list[tuple[float, float]] = field(default_factory=list)  # The same, where the answer was to come later.
    sheds: int = 0  # How often the gateway was too busy to begin.
    late: int = 0  # How often of these it may have begun, and read too late that it had.
    problems: list[str] = field(default_factory=list)
    problems_after_end: list[str] = field(default_factory=list)


class _Answered(Exception):
    """The server gave a final word with this outcome."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome


class Client:
    """One client's life against ``url``."""

    def __init__(self, ask: Ask, session: aiohttp.ClientSession, url: str) -> None:
        self.history = History(ask, time.monotonic())
        self._ask = ask
        self._session = session
        self._url = url
        self._breaks = list(ask.breaks)
        self._stopping: asyncio.Task[None] | None = None
        self._retry_after_s = PAUSE_S

    async def live(self) -> History:
        history = self.history
        try:
            async with asyncio.timeout(DEADLINE_S + (self._ask.takes_s if self._ask.manner is Manner.VIEWER else 0)):
                history.outcome = await self._ask_until_admitted()
        except TimeoutError:
            history.outcome = Outcome.HANG
        except _Answered as answered:
            history.outcome = answered.outcome
        finally:
            if self._stopping:
                self._stopping.cancel()
        history.ended_at = time.monotonic()
        if history.stream:
            history.text = history.stream.text
            history.problems += history.stream.problems
        return history

    async def _ask_until_admitted(self) -> str:
        answer = self._whole if self._ask.manner is Manner.WHOLE else self._stream
        while (outcome := await answer()) in OVERLOADED and not self.history.generation_id and self.history.sheds < ASKS_MAX:
            self.history.sheds += 1
            await asyncio.sleep(self._retry_after_s)
        return outcome

    # A JSON answer

    async def _whole(self) -> str:
        history, asked_at = self.history, time.monotonic()
        try:
            async with self._session.post(**self._request()) as response:
                self._meet(response, asked_at)
                history.body = await response.read()
        except (aiohttp.ClientError, OSError):
            history.cuts.append(time.monotonic())
            return Outcome.CUT_BEFORE if not history.status else Outcome.CUT
        if history.status != 200:
            return self._refusal(history.body)
        try:
            history.text = whole_text(self._ask.dialect, history.body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            history.problems.append(f"a body that cannot be read: {error!r} {history.body[:200]!r}")
            return Outcome.ODD
        return Outcome.COMPLETED

    # A stream

    async def _stream(self) -> str:
        stream = self.history.stream = Stream(self._ask.dialect)
        outcome = await self._read(self._session.post(**self._request()))
        if self._ask.policy and self.history.generation_id:
            while outcome == Outcome.CUT or stream.end in COME_BACK:
                if stream.end in COME_BACK:
                    stream.reopen()
                outcome = await self._come_back()
            if outcome == Outcome.COMPLETED and stream.last_id:
                await self._see_that_it_is_over()
        return outcome

    async def _read(self, asking: Any, *, is_resumed: bool = False) -> str:
        """Read one connection to its end."""
        stream, history, asked_at = self.history.stream, self.history, time.monotonic()
        assert stream is not None
        was_met = False
        try:
            async with asking as response:
                was_met = True
                if is_resumed:
                    return await self._read_resumed(response, asked_at)
                self._meet(response, asked_at)
                if response.status != 200:
                    return self._refusal(await response.read())
                if await self._follow(response):
                    return Outcome.LEFT if self._ask.manner is Manner.LEAVING else Outcome.CUT
        except (aiohttp.ClientError, OSError):
            stream.broken()
            if stream.end:
                return stream.end
            history.cuts.append(time.monotonic())
            return Outcome.CUT if was_met or is_resumed else Outcome.CUT_BEFORE
        return stream.end or Outcome.SILENT

    async def _read_resumed(self, response: aiohttp.ClientResponse, asked_at: float) -> str:
        stream = self.history.stream
        assert stream is not None
        if response.status not in (200, 204):
            self._note_refusal(response, asked_at)
            code = self._refusal(await response.read())
            if self._ask.manner is Manner.VIEWER:
                self.history.problems.append(
                    f"{response.status} {code!r} for one that reads: its EventSource is closed for good"
                )
            if response.status == 503:  # Away just now.
                await asyncio.sleep(min(float(response.headers.get("retry-after", PAUSE_S)), PAUSE_MAX_S))
                return Outcome.CUT
            return code
        self.history.resumes.append((asked_at, time.monotonic() - asked_at))
        if response.status == 204:
            if not stream.end:
                self.history.problems.append(f"204 after {stream.last_id}, and the end never came")
                return Outcome.ODD
            return stream.end
        await self._follow(response)
        # A draining replica ends a reader in order, without an end: the next one goes on.
        return stream.end or Outcome.CUT

    async def _follow(self, response: aiohttp.ClientResponse) -> bool:
        """Feed what comes until the connection ends; True: the client itself broke it off."""
        stream, history = self.history.stream, self.history
        assert stream is not None
        stream.broken()
        before = len(stream.events)
        async for data in response.content.iter_any():
            stream.feed(data)
            if history.first_text_at is None and stream.text:
                history.first_text_at = time.monotonic()
            if self._breaks and not stream.end and len(stream.events) - before >= self._breaks[0]:
                self._breaks.pop(0)
                if self._ask.manner is Manner.STOPPING:
                    self._stopping = asyncio.create_task(self._stop())
                    continue
                response.close()
                stream.broken()
                history.gone_at = time.monotonic()
                return True
        return False

    async def _come_back(self) -> str:
        stream = self.history.stream
        assert stream is not None
        if self._ask.manner is Manner.VIEWER:
            await asyncio.sleep(stream.retry_s)
        elif self.history.cuts and time.monotonic() - self.history.cuts[-1] < PAUSE_S:
            await asyncio.sleep(PAUSE_S)
        return await self._read(self._session.get(**self._resumption()), is_resumed=True)

    async def _see_that_it_is_over(self) -> None:
        """At the end a reader gets 204, so that a browser's EventSource stops."""
        stream = self.history.stream
        assert stream is not None
        before = len(stream.problems)
        try:
            async with self._session.get(**self._resumption()) as response:
                if response.status == 200:  # The last event is there, the log's end not yet: nothing more may come.
                    await self._follow(response)
                self.history.status_after_end = response.status
        except (aiohttp.ClientError, OSError):
            pass  # Any other time.
        self.history.problems_after_end = stream.problems[before:]
        del stream.problems[before:]

    async def _stop(self) -> None:
        url = f"{self._url}/v1/generations/{self.history.generation_id}"
        for _ in range(STOPS_MAX):
            try:
                async with self._session.delete(url, headers={"authorization": f"Bearer {KEY}"}) as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(PAUSE_MAX_S)

    # Requests and first answers

    def _request(self) -> dict[str, Any]:
        path, body = _BODIES[self._ask.dialect](self._ask)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        if self._ask.policy:
            headers["x-disconnect"] = self._ask.policy
        if self._ask.twins:
            headers["x-sluice-cache"] = "use"
        return {"url": self._url + path, "data": orjson.dumps(body), "headers": headers}

    def _resumption(self) -> dict[str, Any]:
        stream = self.history.stream
        assert stream is not None
        headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
        if stream.last_id:
            headers["last-event-id"] = stream.last_id
        return {"url": f"{self._url}/v1/generations/{self.history.generation_id}", "headers": headers}

    def _meet(self, response: aiohttp.ClientResponse, asked_at: float) -> None:
        self.history.status = response.status
        self.history.generation_id = response.headers.get("x-generation-id", "")
        self.history.cache = response.headers.get("x-sluice-cache", "")
        self._note_refusal(response, asked_at)

    def _note_refusal(self, response: aiohttp.ClientResponse, asked_at: float) -> None:
        """Note who was told to come later, and when; not an answer that failed."""
        if response.status in REFUSALS and "x-generation-id" not in response.headers:
            self.history.refusals.append((asked_at, time.monotonic() - asked_at))
            self._retry_after_s = float(response.headers.get("retry-after", PAUSE_S))
            if "retry-after" not in response.headers:
                self.history.problems.append(f"{response.status} without retry-after")

    def _refusal(self, body: bytes) -> str:
        self.history.late += any(words in body for words in LATE_WORDS)
        try:
            return error_code(body)
        except (ValueError, TypeError, AttributeError):
            self.history.problems.append(f"an error that says nothing: {self.history.status} {body[:200]!r}")
            return Outcome.ODD


def _turns(ask: Ask) -> dict[str, Any]:
    named: dict[str, Any] = {}
    if ask.twins or ask.route:  # The ledger's row names the client.
        named = {"metadata": {"user_id": f"c{ask.number}"}} if ask.dialect == MESSAGES else {"user": f"c{ask.number}"}
    if ask.route:
        named["max_tokens"] = ask.tokens
    return named | {"messages": [{"role": "user", "content": "hi"}], "stream": ask.manner is not Manner.WHOLE}


# Path and body of a request, by dialect.
_BODIES: dict[str, Callable[[Ask], tuple[str, dict[str, Any]]]] = {
    CHAT: lambda ask: ("/v1/chat/completions", {"model": ask.full_model, **_turns(ask)}),
    MESSAGES: lambda ask: ("/v1/messages", {"model": ask.full_model, "max_tokens": 10_000, **_turns(ask)}),
    RESPONSES: lambda ask: (
        "/v1/responses",
        {"model": f"{ask.provider}/{ask.model}", "input": "hi", "stream": ask.manner is not Manner.WHOLE},
    ),
    AGENTARY: lambda ask: (f"/api/{ask.provider}", {"model": ask.model, **_turns(ask)}),
    UNIFIED: lambda ask: ("/v1/chat", {"provider": ask.provider, "model": ask.model, **_turns(ask)}),
}
