"""How do answers get from Redis to their callers at the lowest cost?

redis-py opens the connection (URL, TLS, password, database). Then our own protocol takes over its transport: it feeds
hiredis and delivers each answer in the same turn of the event loop, without a reader task and without a timer per answer.
See docs/decisions/redis-connections.md.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from common.process.loop_lag import TICK_S, lag_aware_timeout, loop_lag

# The server is no longer the master, or may not act as one. In a script's error, the command's error follows a dash.
# Proxies of managed servers put an ERR before the code.
NOT_MASTER = re.compile(r"(?:^(?:ERR )?|-)(?:READONLY|NOREPLICAS) ")
_LOST_AT_ONCE = "the connection was lost as soon as it was made"


class Pipe(asyncio.Protocol):
    """One connection. Each answer goes to ``on_answer``, errors as exception objects. Its end calls ``on_lost``.

    Where the server says that it is not the master, the pipe delivers the answers it has, closes the connection and calls
    ``on_misplaced``. It stays connected if ``leaves`` is False.
    """

    leaves = True
    on_misplaced: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self.on_answer = on_answer
        self._on_lost = on_lost
        self._reader = hiredis.Reader(replyError=self._error)
        self._is_misplaced = False
        self._transport: Any = None
        self._writer: Any = None  # Kept referenced: it closes its transport when it is garbage-collected.
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._lag = loop_lag()
        self.heard_s = self._lag.ticked_s  # When we last read anything, by the clock of ``loop_lag``.

    @classmethod
    async def open(cls, redis: Redis, on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> "Pipe":
        """Open a connection to the server of ``redis``, with its credentials. The caller bounds the wait."""
        connection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py.
        try:
            await connection.connect()
        except BaseException:  # A caller whose time is over cancels this. Nobody else knows the connection.
            await connection.disconnect(nowait=True)
            raise
        pipe = cls(on_answer, on_lost)
        # The handshake is over and all its answers are read: redis-py's reader is empty.
        pipe._writer, connection._writer, connection._reader = connection._writer, None, None
        pipe._transport = pipe._writer.transport
        pipe._transport.set_protocol(pipe)
        if pipe._transport.is_closing():
            raise RedisConnectionError(_LOST_AT_ONCE)
        return pipe

    def send(self, packed: bytes) -> None:
        """Send packed commands. All commands of one turn of the event loop go out in one write."""
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(packed)

    def _write(self) -> None:
        packed, self._unsent = self._unsent, []
        if self._transport and not self._transport.is_closing():
            self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))

    def close(self) -> None:
        """Cut the connection now. Commands that were sent may or may not run."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        # Hot path: once per read.
        self.heard_s = self._lag.ticked_s
        reader, on_answer = self._reader, self.on_answer
        reader.feed(data)
        while (answer := reader.gets()) is not False:
            on_answer(answer)
        if self._is_misplaced and self.leaves:
            self.close()
            self.on_misplaced()

    def _error(self, text: str) -> Exception:
        if NOT_MASTER.search(text):
            self._is_misplaced = True
        return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()


OpenPipe = Callable[[Callable[[Any], None], Callable[[], None]], Awaitable[Pipe]]  # As ``Pipe.open``, of a given server.


class _Exchange:
    """Commands that wait for answers. ``answers`` is complete when it holds ``count``."""

    __slots__ = ("answered", "answers", "count", "sent_s")

    def __init__(self, count: int, sent_s: float, answered: "asyncio.Future[list[Any]]") -> None:
        self.count = count
        self.sent_s = sent_s
        self.answered = answered
        self.answers: list[Any] = []


class Exchanges:
    """Sends commands and returns their answers over one connection that all callers of a process share.

    The connection is opened on first use, and again after a loss. If the server owes an answer for ``timeout_s`` and sends
    nothing at all meanwhile, the connection is cut and all waiting callers get an error. Only time in which the event loop
    could read counts, because a busy process may have unread answers in its socket.
    """

    def __init__(self, open_pipe: OpenPipe, timeout_s: float) -> None:
        self._open_pipe = open_pipe
        self._timeout_s = timeout_s
        self._pipe: Pipe | None = None
        self._opening: asyncio.Task[None] | None = None
        self._waiting: deque[_Exchange] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._lag = loop_lag()

    async def run(self, commands: Sequence[bytes]) -> list[Any]:
        """Return the answers to packed commands, errors as exceptions in their places.

        Raises:
            RedisError, OSError, TimeoutError: there are no answers. It is unknown which commands ran.
        """
        # Hot path: once per flush.
        if self._pipe is None:
            await self._open()
        if (pipe := self._pipe) is None:
            raise RedisConnectionError(_LOST_AT_ONCE)
        loop = asyncio.get_running_loop()
        exchange = _Exchange(len(commands), self._lag.ticked_s, loop.create_future())
        self._waiting.append(exchange)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._check)
        pipe.send(b"".join(commands))
        return await exchange.answered

    async def close(self) -> None:
        if self._opening:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._pipe:
            self._pipe.close()
        if self._watch:
            self._watch.cancel()
            self._watch = None

    async def _open(self) -> None:
        # All callers share one attempt to connect. With one attempt each, every caller would wait for the timeouts of those
        # before it. No caller can cancel it, because redis-py is not safe to cancel while it connects.
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(_consume_error)
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        try:
            async with lag_aware_timeout(self._timeout_s):
                self._pipe = await self._open_pipe(self._receive, self._lose)
        finally:
            self._opening = None

    def _receive(self, answer: Any) -> None:
        # Hot path: once per answer.
        exchange = self._waiting[0]
        exchange.answers.append(answer)
        if len(exchange.answers) == exchange.count:
            self._waiting.popleft()
            if not exchange.answered.done():  # The caller may have been cancelled.
                exchange.answered.set_result(exchange.answers)

    def _lose(self) -> None:
        self._pipe = None
        waiting, self._waiting = self._waiting, deque()
        for exchange in waiting:
            if not exchange.answered.done():
                exchange.answered.set_exception(RedisConnectionError("the connection was lost before the answer came"))

    def _check(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        left_s = max(self._waiting[0].sent_s, self._pipe.heard_s if self._pipe else 0) + self._timeout_s - self._lag.unblocked_s
        if left_s > 0:
            self._watch = asyncio.get_running_loop().call_later(max(left_s, TICK_S / 2), self._check)
        elif self._pipe:
            self._pipe.close()


def _consume_error(opening: "asyncio.Task[None]") -> None:
    """Retrieve the task's exception, so that asyncio does not log a failure that no caller waits for."""
    with contextlib.suppress(asyncio.CancelledError):
        opening.exception()
