"""How does a channel become one HTTP response?

A plain ASGI response. The status is held until the log's head, so that an early failure is a true 4xx or 5xx; past
``status_hold`` a stream gets its 200 and keep-alives, and a later failure is the dialect's error event. A JSON answer
holds to its end. All frames that are pending go out in one ``send``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.relay.viewer import Viewer
from api.server.http_errors import error_response, restarting
from api.server.retry_after import retry_ms
from common.canonical.errors import Failed
from common.channel.base import Frame, FrameId, FrameKind, State
from common.dialects.base import Dialect, OpenStream
from common.records.end import unpack_failure
from common.records.head import Head
from common.sse import KEEP_ALIVE, last_block, split_blocks

log = structlog.get_logger()

SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
SHARED_BYTES_MAX = 16_384  # Of a frame that is kept for others who read it.
_DATA = FrameKind.DATA  # An enum's member costs a look-up of its own.


@dataclass(slots=True)
class RelayTimeouts:
    """Seconds."""

    status_hold_s: float
    keep_alive_s: float


class Relay(Response):
    """One viewer's response. ``on_done`` runs when it is over, however that came about.

    ``has_ids``: the client may come back, so every event carries its id. ``is_resumable``: it is a read of a log that goes on
    without it, so a draining process ends it at once; the client resumes elsewhere. ``has_begun``: the status is decided, for
    the client has a part of the answer, or there is all of it; it is not held until more comes.
    """

    def __init__(
        self,
        viewer: Viewer,
        dialect: Dialect,
        times: RelayTimeouts,
        on_done: Callable[["Relay"], Awaitable[None]],
        *,
        request_id: str,
        model: str,
        created_s: int,
        is_stream: bool,
        has_ids: bool = False,
        is_resumable: bool = False,
        has_begun: bool = False,
        extra_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.viewer = viewer
        self.background = None
        self.is_resumable = is_resumable
        self.outcome = "left"  # For the log: how it ended.
        self._dialect = dialect
        self._times = times
        self._on_done = on_done
        self._request_id = request_id
        self._model, self._created_s = model, created_s
        self._is_stream = is_stream
        self._has_ids = has_ids
        self._extra_headers = {"x-generation-id": viewer.generation_id, **(extra_headers or {})}
        self._has_begun = has_begun
        self._is_open = False  # Whether the status and the headers of a stream are sent.
        self._is_draining = False
        self._has_left = False
        self._retry_line = b"retry: %d\n" % retry_ms()
        self._body = BytesIO()  # Of an answer that is not streamed. A list of its pieces would be there twice in the end.

    def drain(self, *, is_over: bool) -> None:
        """The process stops: end at once if the client can go on elsewhere, or if the grace is over."""
        if is_over or self.is_resumable:
            self._is_draining = True
            self.viewer.poke()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(_until_gone(receive))
        watch.add_done_callback(self._leave)
        try:
            if self._is_stream:
                # Middleware has nothing to do with the pieces of a body: they go straight to the server.
                direct: Send = scope.get("state", {}).get("direct_send", send)
                # A task of its own: each wake-up of this one goes through the frames of all middleware first.
                await asyncio.create_task(self._stream(scope, receive, send, direct))
            else:
                await self._whole(scope, receive, send)
        finally:
            watch.remove_done_callback(self._leave)
            watch.cancel()
            await self._on_done(self)

    def _leave(self, _: "asyncio.Task[None]") -> None:
        self._has_left = True
        self.viewer.poke()

    # A stream

    async def _stream(self, scope: Scope, receive: Receive, send: Send, direct: Send) -> None:
        clock = _Clock(self.viewer, self._times.status_hold_s)
        try:
            take, keep_alive_s, is_plain = self.viewer.take, self._times.keep_alive_s, not self._has_ids
            if self._has_begun:
                await self._open(send)
            while not self._has_left:
                # Hot path: runs once per flush and client. Nearly always it is one frame of data in an open stream.
                frames = await take()
                if is_plain and self._is_open and len(frames) == 1 and frames[0].kind is _DATA:
                    clock.arm(keep_alive_s)
                    await direct({"type": "http.response.body", "body": frames[0].data, "more_body": True})
                    if not self._is_draining:
                        continue
                    frames = []
                step = self._read(frames)
                if not self._is_open:
                    if step.failed and not step.has_begun:
                        await self._refuse(step.failed, scope, receive, send)
                        return
                    if not (step.has_begun or step.is_last or clock.is_due):
                        continue
                    await self._open(send)
                if step.failed:
                    step.data += self._error_event(step)
                elif not step.data and not step.is_last:
                    if not clock.is_due:
                        continue
                    step.data = KEEP_ALIVE
                clock.arm(keep_alive_s)
                await direct({"type": "http.response.body", "body": step.data, "more_body": not step.is_last})
                if step.is_last:
                    return
        finally:
            clock.stop()

    def _read(self, frames: list[Frame]) -> "_Step":
        """Return what the next frames mean for the client, or what it means that there are none."""
        parts: list[bytes] = []
        has_begun = False
        for frame in frames:
            if frame.kind is FrameKind.DATA:
                parts.append(self._with_ids(frame) if self._has_ids else frame.data)
            elif frame.kind is FrameKind.END:
                failed = unpack_failure(frame.data)
                self.outcome = failed.kind if failed else "completed"
                return _Step(b"".join(parts), has_begun or bool(parts), is_last=True, failed=failed, end=frame)
            elif frame.kind is FrameKind.HEAD:
                self._extra_headers |= Head.unpack(frame.data).headers
            has_begun = has_begun or frame.kind is not FrameKind.FENCE
        if not frames and self.viewer.failed:
            self.outcome = self.viewer.failed.kind
            return _Step(b"", has_begun, is_last=True, failed=self.viewer.failed)
        if self._is_draining:
            self.outcome = "drained"
            failed = None if self.is_resumable else restarting()
            return _Step(b"".join(parts), has_begun or bool(parts), is_last=True, failed=failed)
        return _Step(b"".join(parts), has_begun)

    def _error_event(self, step: "_Step") -> bytes:
        assert step.failed is not None
        if self._dialect.is_final(last_block(self.viewer.last_data)):
            return b""  # The answer was whole before this happened: only its end in the log was still to come.
        so_far = OpenStream(self.viewer.generation_id, self.viewer.last_data, self._model, self._created_s)
        event = self._dialect.error_event(step.failed, so_far)
        return b"id: %s.1\n%s" % (str(step.end.id).encode(), event) if self._has_ids and step.end else event

    def _with_ids(self, frame: Frame) -> bytes:
        first = self.viewer.first_event(frame)
        number = _numbered if len(frame.data) <= SHARED_BYTES_MAX else _number
        numbered = number(frame.id, frame.data, first)
        if self._retry_line and numbered:  # On the first event alone; a block of its own would be an event to some clients.
            id_line, end, rest = numbered.partition(b"\n")
            numbered, self._retry_line = b"".join((id_line, end, self._retry_line, rest)), b""
        return numbered

    async def _open(self, send: Send) -> None:
        self._is_open = True
        headers = [(name.encode(), value.encode()) for name, value in (SSE_HEADERS | self._extra_headers).items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    # A JSON body

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self._has_left:
            for frame in await self.viewer.take():
                if frame.kind is FrameKind.DATA:
                    self._body.write(frame.data)
                elif frame.kind is FrameKind.FENCE:
                    self._body = BytesIO()  # A body that is not streamed is begun anew by each claim.
                elif frame.kind is FrameKind.HEAD:
                    self._extra_headers |= Head.unpack(frame.data).headers
                elif frame.kind is FrameKind.END:
                    failed = unpack_failure(frame.data)
                    await (self._refuse(failed, scope, receive, send) if failed else self._answer(scope, receive, send))
                    return
            if self.viewer.failed or self._is_draining:
                await self._refuse(self.viewer.failed or restarting(), scope, receive, send)
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.outcome = "completed"
        response = Response(self._body.getvalue(), media_type="application/json", headers=self._extra_headers)
        await response(scope, receive, send)

    async def _refuse(self, failed: Failed, scope: Scope, receive: Receive, send: Send) -> None:
        self.outcome = failed.kind
        response = error_response(self._dialect, failed, self._request_id, self._extra_headers)
        await response(scope, receive, send)


def _number(frame_id: FrameId, data: bytes, first: int) -> bytes:
    """Return a frame's events, each with its id."""
    start = b"id: %d-%d." % frame_id
    return b"".join([b"%s%d\n%s" % (start, k, block) for k, block in enumerate(split_blocks(data), start=first)])


# Whoever reads the same answer gets the same bytes: they are made once for all who read at about the same time.
_numbered = lru_cache(maxsize=64)(_number)


def headers_of_stream(generation_id: str, state: State, *, has_begun: bool) -> Response:
    """Return what ``HEAD`` is answered where a relay would go on for as long as its generation does."""
    given = state.head.headers if state.head and not has_begun else {}
    media = SSE_HEADERS if state.stream else {"content-type": "application/json"}
    response = Response(headers={**media, "x-generation-id": generation_id, **given})
    del response.headers["content-length"]  # A stream has none, and of an answer that is still to come it is not known.
    return response


@dataclass(slots=True)
class _Step:
    """What a batch of frames means. ``has_begun``: the status is decided, for output has come."""

    data: bytes
    has_begun: bool
    is_last: bool = False
    failed: Failed | None = None
    end: Frame | None = None


class _Clock:
    """Pokes a viewer when its response has been quiet for too long. Moving the moment costs one assignment."""

    def __init__(self, viewer: Viewer, first_s: float) -> None:
        self._viewer = viewer
        self._loop = asyncio.get_running_loop()
        self._due_at = self._loop.time() + first_s
        self._handle = self._loop.call_at(self._due_at, self._check)

    @property
    def is_due(self) -> bool:
        return self._loop.time() >= self._due_at

    def arm(self, in_s: float) -> None:
        self._due_at = self._loop.time() + in_s

    def stop(self) -> None:
        self._handle.cancel()

    def _check(self) -> None:
        if self.is_due:
            self._viewer.poke()
        self._handle = self._loop.call_at(max(self._due_at, self._loop.time() + 0.05), self._check)


async def _until_gone(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
