"""How does a channel become one HTTP response?

It is a plain ASGI response. The HTTP status waits for the log's head, so that an early failure gets its true 4xx or 5xx.
After ``status_hold`` a stream gets its 200 and keep-alives, and a later failure becomes the dialect's error event. A JSON
answer waits for its end. All pending frames go out in one ``send``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.relay.viewer import Viewer
from api.server.connection import DIRECT_WRITE, chunk_of, presence_of
from api.server.http_errors import error_response, restarting
from api.server.retry_after import retry_ms
from common.canonical.errors import Failed
from common.channel.base import Frame, FrameId, FrameKind, State, Stop
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
SHARED_BYTES_MAX = 16_384  # Up to this size, a frame with ids is cached for other viewers of the same answer.
_DATA = FrameKind.DATA  # Access to an enum member costs a lookup each time.


@dataclass(slots=True)
class RelayTimeouts:
    """In seconds."""

    status_hold_s: float
    keep_alive_s: float


class Relay(Response):
    """One viewer's response. ``on_done`` runs when it is over, for whatever reason.

    ``has_ids``: the client may come back, so every event carries its id. ``is_resumable``: this response only reads a log, and
    the generation does not depend on it. So a draining process ends it at once, and the client resumes elsewhere.
    ``has_begun``: the status is decided, since the client has a part of the answer already, or the answer is complete. So the
    status is sent at once.
    """

    def __init__(
        self,
        viewer: Viewer,
        dialect: Dialect,
        timeouts: RelayTimeouts,
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
        self.outcome = "left"  # For the log: how the response ended.
        self._dialect = dialect
        self._timeouts = timeouts
        self._on_done = on_done
        self._request_id = request_id
        self._model, self._created_s = model, created_s
        self._is_stream = is_stream
        self._has_ids = has_ids
        self._extra_headers = {"x-generation-id": viewer.reader_id, **(extra_headers or {})}
        self._has_begun = has_begun
        self._is_open = False  # Whether the status and headers of a stream are sent.
        self._is_draining = False
        self._has_left = False
        self._write: Callable[[bytes], bool] | None = None  # Writes a chunk of the body at once; None: the server cannot.
        self._retry_line = b"retry: %d\n" % retry_ms() if has_ids else b""  # For the first event, if events have ids.
        self._body = BytesIO()  # Of an answer that is not streamed. A list of pieces would need twice the memory at the end.

    def drain(self, *, is_over: bool) -> None:
        """The process stops: end now if the client can resume elsewhere, or if the grace period ``is_over``."""
        if is_over or self.is_resumable:
            self._is_draining = True
            self.viewer.leave_reason = Stop.API_ENDED
            self.viewer.poke()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        presence = presence_of(scope)
        presence.watch(self._on_left)
        try:
            response: Response | None
            if self._is_stream:
                # Middleware need not see the pieces of a body: they go straight to the server.
                state = scope.get("state", {})
                direct: Send = state.get("direct_send", send)
                self._write = state.get(DIRECT_WRITE)
                # In a task of its own: each wake-up of this task goes through the call frames of all middleware first.
                response = await asyncio.create_task(self._stream(send, direct))
            else:
                response = await self._whole_answer()
            if response:
                await response(scope, receive, send)
        finally:
            presence.unwatch()
            await self._on_done(self)

    def _on_left(self) -> None:
        self._has_left = True
        self.viewer.poke()

    # A stream

    async def _stream(self, send: Send, direct: Send) -> Response | None:
        """Send the stream. Return what the client gets instead if the answer fails before its stream is open."""
        clock = _IdleClock(self.viewer, self._timeouts.status_hold_s)
        try:
            next_frames, keep_alive_s, is_plain = self.viewer.next_frames, self._timeouts.keep_alive_s, not self._has_ids
            if self._has_begun:
                await self._open(send, clock)
            while not self._has_left:
                # Hot path: runs once per flush and client. Nearly always there is one data frame, and the stream is open.
                frames = await next_frames()
                if is_plain and self._is_open and len(frames) == 1 and frames[0].kind is _DATA:
                    clock.arm(keep_alive_s)
                    await direct({"type": "http.response.body", "body": frames[0].data, "more_body": True})
                    if not self._is_draining:
                        continue
                    frames = []
                step = self._next_step(frames)
                if not self._is_open:
                    if step.failed and not step.has_begun:
                        return self._refusal(step.failed)
                    if not (step.has_begun or step.is_last or clock.is_due):
                        continue
                    await self._open(send, clock)
                if step.failed:
                    step.data += self._error_event(step)
                elif not step.data and not step.is_last:
                    if not clock.is_due:
                        continue
                    step.data = KEEP_ALIVE
                clock.arm(keep_alive_s)
                await direct({"type": "http.response.body", "body": step.data, "more_body": not step.is_last})
                if step.is_last:
                    break
        finally:
            self.viewer.write_live = None
            clock.stop()
        return None

    def _live_writer(self, write: Callable[[bytes], bool], clock: "_IdleClock") -> Callable[[Frame], bool]:
        """Return a function that writes a live frame without waking this response's task, or returns False if it cannot."""
        has_ids, keep_alive_s, now = self._has_ids, self._timeouts.keep_alive_s, asyncio.get_running_loop().time

        def write_live(frame: Frame) -> bool:
            # Hot path: runs once per live frame and client.
            if self._retry_line or len(frame.data) > SHARED_BYTES_MAX:
                return False
            if not write(_numbered_chunk(frame.id, frame.data) if has_ids else chunk_of(frame.data)):
                return False
            clock.due_at = now() + keep_alive_s
            return True

        return write_live

    def _next_step(self, frames: list[Frame]) -> "_Step":
        """Return what the client must get for the next frames. No frames: the viewer has failed, or it was woken."""
        parts: list[bytes] = []
        has_begun = False
        for frame in frames:
            if frame.kind is FrameKind.DATA:
                parts.append(self._with_ids(frame) if self._has_ids else frame.data)
            elif frame.kind is FrameKind.END:
                failed = unpack_failure(frame.data)
                self.outcome = failed.kind if failed else "completed"
                return _Step(b"".join(parts), has_begun, is_last=True, failed=failed, end=frame)
            elif frame.kind is FrameKind.HEAD:
                self._extra_headers |= Head.unpack(frame.data).headers
            has_begun = has_begun or frame.kind is not FrameKind.FENCE
        if not frames and self.viewer.failed:
            self.outcome = self.viewer.failed.kind
            return _Step(b"", has_begun, is_last=True, failed=self.viewer.failed)
        if self._is_draining:
            self.outcome = "drained"
            failed = None if self.is_resumable else restarting(self.viewer.reader_id if self._has_ids else "")
            return _Step(b"".join(parts), has_begun, is_last=True, failed=failed)
        return _Step(b"".join(parts), has_begun)

    def _error_event(self, step: "_Step") -> bytes:
        assert step.failed is not None
        if self._dialect.is_final(last_block(self.viewer.last_data)):
            return b""  # The answer was already complete. Only its end in the log was missing.
        so_far = OpenStream(self.viewer.generation_id, self.viewer.last_data, self._model, self._created_s)
        event = self._dialect.error_event(step.failed, so_far)
        return b"id: %s.1\n%s" % (str(step.end.id).encode(), event) if self._has_ids and step.end else event

    def _with_ids(self, frame: Frame) -> bytes:
        first = self.viewer.first_event(frame)
        number = _numbered if len(frame.data) <= SHARED_BYTES_MAX else _number
        numbered = number(frame.id, frame.data, first)
        if self._retry_line:  # Only on the first event: some clients would take a separate block for an event.
            id_line, end, rest = numbered.partition(b"\n")
            numbered, self._retry_line = b"".join((id_line, end, self._retry_line, rest)), b""
        return numbered

    async def _open(self, send: Send, clock: "_IdleClock") -> None:
        self._is_open = True
        headers = [(name.encode(), value.encode()) for name, value in (SSE_HEADERS | self._extra_headers).items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._write:
            self.viewer.write_live = self._live_writer(self._write, clock)

    # A JSON body

    async def _whole_answer(self) -> Response | None:
        """Return the response once the answer has ended; None if the client has left."""
        while not self._has_left:
            for frame in await self.viewer.next_frames():
                if frame.kind is FrameKind.DATA:
                    self._body.write(frame.data)
                elif frame.kind is FrameKind.FENCE:
                    self._body = BytesIO()  # Each claim begins a body that is not streamed from its start.
                elif frame.kind is FrameKind.HEAD:
                    self._extra_headers |= Head.unpack(frame.data).headers
                elif frame.kind is FrameKind.END:
                    failed = unpack_failure(frame.data)
                    if failed:
                        return self._refusal(failed)
                    self.outcome = "completed"
                    return Response(self._body.getvalue(), media_type="application/json", headers=self._extra_headers)
            if self.viewer.failed or self._is_draining:
                return self._refusal(self.viewer.failed or restarting())
        return None

    def _refusal(self, failed: Failed) -> Response:
        self.outcome = failed.kind
        return error_response(self._dialect, failed, self._request_id, self._extra_headers)


def _number(frame_id: FrameId, data: bytes, first: int) -> bytes:
    """Return a frame's events, each with its id. ``first`` is the number of the first event."""
    start = b"id: %d-%d." % frame_id
    return b"".join([b"%s%d\n%s" % (start, k, block) for k, block in enumerate(split_blocks(data), start=first)])


# All viewers of an answer get the same bytes. They are made once for all that read at about the same time.
_numbered = lru_cache(maxsize=64)(_number)


@lru_cache(maxsize=64)
def _numbered_chunk(frame_id: FrameId, data: bytes) -> bytes:
    return chunk_of(_number(frame_id, data, 1))


def headers_of_stream(generation_id: str, state: State, *, has_begun: bool) -> Response:
    """Return the response to a ``HEAD`` request for a generation that still runs: the headers that reading it would get."""
    head_headers = state.head.headers if state.head and not has_begun else {}
    media = SSE_HEADERS if state.stream else {"content-type": "application/json"}
    response = Response(headers={**media, "x-generation-id": generation_id, **head_headers})
    del response.headers["content-length"]  # A stream has none, and the length of an unfinished answer is not known.
    return response


@dataclass(slots=True)
class _Step:
    """What the client gets for a batch of frames. ``has_begun``: the status is decided, because output has come."""

    data: bytes
    has_begun: bool
    is_last: bool = False
    failed: Failed | None = None
    end: Frame | None = None


class _IdleClock:
    """Wakes a viewer when its response has been quiet for too long. To move the due time costs one assignment."""

    def __init__(self, viewer: Viewer, first_s: float) -> None:
        self._viewer = viewer
        self._loop = asyncio.get_running_loop()
        self.due_at = self._loop.time() + first_s
        self._handle = self._loop.call_at(self.due_at, self._check)

    @property
    def is_due(self) -> bool:
        return self._loop.time() >= self.due_at

    def arm(self, in_s: float) -> None:
        self.due_at = self._loop.time() + in_s

    def stop(self) -> None:
        self._handle.cancel()

    def _check(self) -> None:
        if self.is_due:
            self._viewer.poke()
        self._handle = self._loop.call_at(max(self.due_at, self._loop.time() + 0.05), self._check)
