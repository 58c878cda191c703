"""How does an answer reach its client: at what pace, and with which failure?

Streamed and complete answers take the same time. Both are cancelled when the client leaves (see ``server``).
"""

import asyncio
import itertools
import socket
import struct
import time
from collections.abc import Iterator
from typing import Protocol

import orjson
from aiohttp import web

from demo_provider.background import Background
from demo_provider.ledger import Ledger
from demo_provider.script import Fault, FaultKind, Script
from demo_provider.wire import AnswerRequest, AnswerStream, Plan, Wire, WireError

_GATHERED_MAX = 64  # Tokens in one write if many are due at once. Then other tasks get a turn on the event loop.
_FLUSH_S_MAX = 1.0  # How long a reset waits until earlier writes are sent. A client that does not read loses the rest.
_FIRST_EVENTS, _LAST_EVENTS = (b".created", b".in_progress"), (b".completed", b".incomplete")  # Event names of a response.
_LINGER_OFF = struct.pack("ii", 1, 0)  # struct linger, on with 0 seconds: close() sends RST instead of FIN.


class Sink(Protocol):
    """Where an answer is written: a connection, or a background answer."""

    async def write(self, data: bytes) -> None: ...


class Player:
    """Plays one plan to one client."""

    def __init__(self, http: web.Request, script: Script, fault: Fault | None, ledger: Ledger) -> None:
        self._http = http
        self._script = script
        self._fault = fault
        self._ledger = ledger

    async def play_stream(self, wire: Wire, request: AnswerRequest, plan: Plan, headers: dict[str, str]) -> web.StreamResponse:
        """Send an answer token by token, or the part before the failure.

        Raises:
            ConnectionError: the client has left.
        """
        response = await self._open_stream(headers)
        await self.play(wire.open_stream(request, plan), response)
        return response

    async def play_background(self, answer: Background, start: int, headers: dict[str, str]) -> web.StreamResponse:
        """Send the past events of a background answer, then the live ones. A failure affects only this connection."""
        response = await self._open_stream(headers)
        tokens, fail_at = 0, self._fault.at if self._fault else None
        async for event in answer.events(start):
            name = event.partition(b"\n")[0]
            is_due = name.endswith(_LAST_EVENTS) or (tokens == fail_at and not name.endswith(_FIRST_EVENTS))
            if self._fault is not None and is_due:
                break
            tokens += name.endswith(b".delta")
            await response.write(event)
        if self._fault is not None and self._fault.kind is not FaultKind.END:
            await self.break_off(self._fault)
        return response

    async def _open_stream(self, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "cache-control": "no-cache"})
        response.headers["content-type"] = "text/event-stream; charset=utf-8"
        await response.prepare(self._http)
        return response

    async def play(self, stream: AnswerStream, response: Sink) -> None:
        """Write the complete answer, or the part before the failure. Raises as ``play_stream`` does."""
        await response.write(stream.opening())
        beats = stream.beats() if self._fault is None else itertools.islice(stream.beats(), self._fault.at)
        sent = await self._write_beats(response, beats)
        if self._fault is None:
            await response.write(stream.closing())
            self._ledger.count("completed")
            return
        # The failure happens instead of the next token, at the time when that was due.
        await asyncio.sleep(self._script.pace_s if sent else self._script.first_s)
        match self._fault.kind:
            case FaultKind.ERROR_EVENT:
                await response.write(stream.failure())
                self._ledger.count("errors")
            case FaultKind.END:
                self._ledger.count("cut")
            case _:
                await self.break_off(self._fault)

    async def play_json(self, wire: Wire, request: AnswerRequest, plan: Plan, headers: dict[str, str]) -> web.StreamResponse:
        """Send a complete answer, after the time that its tokens take.

        Raises:
            WireError: the script says that this request fails.
        """
        tokens = plan.tokens if self._fault is None else min(self._fault.at, plan.tokens)
        await asyncio.sleep(self._script.first_s + tokens * self._script.pace_s)
        if self._fault is not None and self._fault.kind is FaultKind.ERROR_EVENT:
            raise WireError(500)
        document = orjson.dumps(wire.build_reply(request, plan))
        if self._fault is None:
            self._ledger.count("completed")
            self._ledger.count("tokens", tokens)
            return web.Response(body=document, headers=headers, content_type="application/json")
        if self._fault.kind is not FaultKind.END:
            await self.break_off(self._fault)
            return web.Response()
        # Chunked, so that the body ends correctly and only its content shows that half is missing.
        response = web.StreamResponse(headers={**headers, "content-type": "application/json"})
        await response.prepare(self._http)
        await response.write(document[: len(document) // 2])
        self._ledger.count("cut")
        return response

    async def break_off(self, fault: Fault) -> None:
        """Go silent until the client leaves, or reset the connection after earlier writes have been sent."""
        if fault.kind is FaultKind.STALL:
            await asyncio.Event().wait()
        self._ledger.count("cut")
        transport = self._http.transport
        if transport is None:
            return
        deadline = time.monotonic() + _FLUSH_S_MAX
        while transport.get_write_buffer_size() and time.monotonic() < deadline:  # noqa: ASYNC110 - there is no event for it.
            await asyncio.sleep(0.005)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        transport.abort()

    async def _write_beats(self, response: Sink, beats: Iterator[bytes]) -> int:
        """Write each token when it is due, and return their number."""
        # time.monotonic(), because uvloop's clock does not advance within one iteration of the loop.
        begin, pace_s, sent = time.monotonic() + self._script.first_s, self._script.pace_s, 0
        due: list[bytes] = []
        # Hot path: runs once per token. A token is written as soon as the next one is not due yet.
        for beat in beats:
            wait_s = begin + (sent + len(due)) * pace_s - time.monotonic()
            if wait_s > 0 or len(due) == _GATHERED_MAX:
                if due:
                    await response.write(b"".join(due))
                    sent += len(due)
                    self._ledger.count("tokens", len(due))
                    due.clear()
                await asyncio.sleep(max(0.0, wait_s))
            due.append(beat)
        await response.write(b"".join(due))
        self._ledger.count("tokens", len(due))
        return sent + len(due)
