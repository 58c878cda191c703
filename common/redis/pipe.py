"""How do answers get from Redis to whoever waits for them, at the least cost?

redis-py connects (URL, TLS, password, database); from then on its transport is ours: a protocol that feeds hiredis and
hands each answer on in the same turn of the loop, with no reader task and no timer per answer. See
docs/decisions/redis-connections.md.
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

from common.process.loop_lag import TICK_S, able_timeout, loop_lag

# The server is the master no more, or may not act as one. A script's error holds what it ran into behind a dash.
# Proxies of managed servers put an ERR before the word.
NOT_MASTER = re.compile(r"(?:^(?:ERR )?|-)(?:READONLY|NOREPLICAS) ")
_LOST_AT_ONCE = "the connection was lost as soon as it was made"


class Pipe(asyncio.Protocol):
    """One connection. Each answer goes to ``on_answer``, errors as exception objects; ``on_lost`` is called at its end.

    A server that says it is not the master is left, once what it answered is handed on, unless ``leaves`` is False;
    ``on_misplaced`` is called then.
    """

    leaves = True
    on_misplaced: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._reader = hiredis.Reader(replyError=self._error)
        self._is_misplaced = False
        self._transport: Any = None
        self._writer: Any = None  # Held as long as we live: it closes its transport when it is collected.
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._lag = loop_lag()
        self.heard_s = self._lag.ticked_s  # When we last read anything, by the clock of the time in which we could.

    @classmethod
    async def open(cls, redis: Redis, on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> "Pipe":
        """Return a connection to the same server, with the same credentials, as ``redis`` has. The caller bounds the wait."""
        connection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py.
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        pipe = cls(on_answer, on_lost)
        # The handshake is over and all of its answers are read: nothing is left in redis-py's reader.
        pipe._writer, connection._writer, connection._reader = connection._writer, None, None
        pipe._transport = pipe._writer.transport
        pipe._transport.set_protocol(pipe)
        if pipe._transport.is_closing():
            raise RedisConnectionError(_LOST_AT_ONCE)
        return pipe

    def send(self, packed: bytes) -> None:
        """Send commands; all that is sent in one turn of the loop goes out in one write."""
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(packed)

    def _write(self) -> None:
        packed, self._unsent = self._unsent, []
        if self._transport and not self._transport.is_closing():
            self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))

    def close(self) -> None:
        """Cut the connection now; what was sent may or may not have run."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        # Hot path: once per read.
        self.heard_s = self._lag.ticked_s
        reader, on_answer = self._reader, self._on_answer
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
    """Commands on their way. ``answers`` fills up to ``count``."""

    __slots__ = ("answered", "answers", "count", "sent_s")

    def __init__(self, count: int, sent_s: float, answered: "asyncio.Future[list[Any]]") -> None:
        self.count = count
        self.sent_s = sent_s
        self.answered = answered
        self.answers: list[Any] = []


class Exchanges:
    """Commands and their answers over one connection that all callers of a process share.

    It is made when first needed, and anew after it was lost. A server that owes an answer for ``timeout_s`` and meanwhile says
    nothing at all is taken for gone: the connection is cut, and everyone who waits on it is told. Only time in which we were
    able to read counts: what a busy process has not read yet may lie in the socket.
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
            RedisError, OSError, TimeoutError: no answers; which commands ran is unknown.
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
        # One attempt, which all share: one after the other, each would first wait for those before it to time out. And it
        # is nobody's to cancel: redis-py is not safe against that while it connects.
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(_look_at)
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        try:
            async with able_timeout(self._timeout_s):
                self._pipe = await self._open_pipe(self._take, self._lose)
        finally:
            self._opening = None

    def _take(self, answer: Any) -> None:
        # Hot path: once per answer.
        exchange = self._waiting[0]
        exchange.answers.append(answer)
        if len(exchange.answers) == exchange.count:
            self._waiting.popleft()
            if not exchange.answered.done():  # Whoever waited may have been cancelled.
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
        left_s = max(self._waiting[0].sent_s, self._pipe.heard_s if self._pipe else 0) + self._timeout_s - self._lag.able_s
        if left_s > 0:
            self._watch = asyncio.get_running_loop().call_later(max(left_s, TICK_S / 2), self._check)
        elif self._pipe:
            self._pipe.close()


def _look_at(opening: "asyncio.Task[None]") -> None:
    """A failure that nobody waits for any more is nobody's business."""
    with contextlib.suppress(asyncio.CancelledError):
        opening.exception()
