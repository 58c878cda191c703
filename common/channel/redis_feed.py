"""How do live messages get from Redis to whoever listens in this process?

One pub/sub connection for all generations. It is made anew when it is lost, and subscribes to all of them again. Where Redis
refuses to let us subscribe, the process is deaf: ``refusal`` has Redis' words, and each second it is tried again.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import hiredis
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from common.canonical.errors import StoreRefuses, StoreUnavailable
from common.channel.base import Frame, FrameId, FrameKind, Message
from common.process.loop_lag import able_timeout, loop_lag
from common.process.process import supervised
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import REDIS_ERRORS, error_text
from common.redis.pipe import Pipe

log = structlog.get_logger()

FEED_PING_S = 1.0
# A subscriber that falls behind by more is cut: 256 MiB at once, or 64 MiB for a minute. Ours repairs the gap from the log.
OUTPUT_LIMIT = "pubsub 268435456 67108864 60"
FEED_SILENCE_MAX_S = 3.0  # Pings are answered at once; three seconds of nothing, while we could read, is a dead connection.

_new = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_KINDS = {kind.value.encode(): kind for kind in FrameKind}

# Ids are small numbers that all generations share, and each is read twice: as a message's own, then as the next one's previous.
_frame_id = lru_cache(maxsize=8_192)(FrameId.of)


def read_message(raw: bytes) -> Message:
    """Return what one published message says: ``<kind> <previous id> <id>\\n<data>``; the kind ``beat`` has no frame."""
    # Hot path: once per message.
    header, _, data = raw.partition(b"\n")
    kind, previous, frame_id = header.split(b" ")
    if kind == b"beat":
        return Message(_frame_id(previous), None)
    return _new(Message, (_frame_id(previous), _new(Frame, (_frame_id(frame_id), _KINDS[kind], data))))


class RedisFeed:
    """One pub/sub connection for all the generations that a process listens to."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._sinks: dict[bytes, Callable[[Message], None]] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._resubscribed: list[Callable[[], None]] = []
        self._pipe: Pipe | None = None
        self._ponged: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_open = False
        self.is_connected = False  # Whether what is published reaches us.
        self._has_met_junk = False
        self._refused = ""  # What a resubscription that is under way has met so far.
        self.refusal = ""  # Redis' words, where it refuses to let us subscribe.

    async def start(self) -> None:
        self._task = supervised(self._run, "feed")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_resubscribed(self, callback: Callable[[], None]) -> None:
        self._resubscribed.append(callback)

    async def subscribe(self, generation_id: str, sink: Callable[[Message], None]) -> None:
        channel = keyspace.live(generation_id).encode()
        self._sinks[channel] = sink
        try:
            # Where the connection is down, the reconnection subscribes to all sinks and confirms this one too.
            if self._is_open:
                self._send("SUBSCRIBE", channel)
            await self._confirmed(channel)
        except (TimeoutError, StoreUnavailable) as error:
            await self.unsubscribe(generation_id)
            raise StoreUnavailable("no confirmation of a subscription") from error
        except asyncio.CancelledError:
            await self.unsubscribe(generation_id)
            raise
        finally:
            self._waiting.pop(channel, None)

    async def _confirmed(self, channel: bytes) -> None:
        """Return once Redis has confirmed a subscription.

        Raises:
            TimeoutError: no connection for too long, or one that says nothing. Else it comes, behind all that comes before it.
        """
        left_s = COMMAND_TIMEOUT_S
        while True:
            confirmed = self._waiting[channel] = asyncio.get_running_loop().create_future()
            try:
                async with able_timeout(left_s):
                    await confirmed
                return
            except TimeoutError:
                left_s = self._pipe.heard_s + COMMAND_TIMEOUT_S - loop_lag().able_s if self._pipe else 0
                if left_s <= 0:
                    raise

    async def unsubscribe(self, generation_id: str) -> None:
        channel = keyspace.live(generation_id).encode()
        if self._sinks.pop(channel, None) and self._is_open:
            self._send("UNSUBSCRIBE", channel)

    @property
    def subscriptions(self) -> int:
        return len(self._sinks)

    def _send(self, *command: Any) -> None:
        if self._pipe:
            self._pipe.send(hiredis.pack_command(command))

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except REDIS_ERRORS as error:
                if self.is_connected:
                    log.warning("feed_lost", error=f"{type(error).__name__}: {error}")
            finally:
                self._is_open = self.is_connected = False
            await asyncio.sleep(0.2)

    async def _listen(self) -> None:
        """Be connected, until the connection is lost."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with able_timeout(FEED_SILENCE_MAX_S):
                self._pipe = await self._redis.open_pipe(self._take, lambda: _settle(lost))
            self._is_open = True
            while not lost.done():
                if not self.is_connected:
                    async with able_timeout(FEED_SILENCE_MAX_S):
                        await self._resubscribe()
                self._try()
                self._send("PING")
                await asyncio.wait([lost], timeout=FEED_PING_S)
                if self._pipe and loop_lag().able_s - self._pipe.heard_s > FEED_SILENCE_MAX_S:
                    self._pipe.close()
            raise RedisConnectionError("the connection was lost")
        finally:
            if self._pipe:
                self._pipe.close()
                self._pipe = None

    async def _resubscribe(self) -> None:
        """Subscribe to all sinks; returns once the server has, so that a log read from now on leaves no gap, or has refused."""
        self._refused = ""
        with contextlib.suppress(ResponseError):  # Not every hosted Redis lets us; `sluice doctor` tells.
            await self._redis.config_set("client-output-buffer-limit", OUTPUT_LIMIT)  # Anew after each of its restarts.
        own = self._try()
        asked: set[bytes] = set()
        while True:
            new = self._sinks.keys() - asked  # More may come while we wait.
            if asked and not new:
                break
            asked |= new or {own}
            self._ponged = asyncio.get_running_loop().create_future()
            if new:
                self._send("SUBSCRIBE", *new)
            self._send("PING")
            await self._ponged
        self.refusal = self._refused
        if not self.refusal:
            self.is_connected = True
            for callback in self._resubscribed:
                callback()

    def _try(self) -> bytes:
        """Subscribe even where nobody listens: who is not allowed to, or not any more, must not be sent requests."""
        own = keyspace.live(f"gen_{secrets.token_hex(4)}")
        self._send("SUBSCRIBE", own)
        self._send("UNSUBSCRIBE", own)
        return own.encode()

    def _take(self, answer: Any) -> None:
        # Hot path: once per message.
        if not isinstance(answer, list):
            if isinstance(answer, Exception):
                self._refuse(answer)
            self._pong()  # Before the first subscription a PING is answered with a string.
            return
        kind, channel = answer[0], answer[1]
        if kind == b"message":
            sink = self._sinks.get(channel)
            if sink:
                try:
                    sink(read_message(answer[2]))
                except Exception:  # Whatever somebody published there: the connection is everybody's. The log has the truth.
                    self._note_junk()
        elif kind == b"subscribe":
            waiting = self._waiting.get(channel)
            if waiting:
                _settle(waiting)
        elif kind == b"pong":
            self._pong()

    def _refuse(self, error: Exception) -> None:
        """Redis lets us not subscribe, or not any more; it does not say to what, and so nobody waits for it any longer."""
        self.refusal = self._refused = error_text(error)
        self.is_connected = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(StoreRefuses(self.refusal))

    def _note_junk(self) -> None:
        if not self._has_met_junk:
            self._has_met_junk = True
            log.exception("message_unreadable")

    def _pong(self) -> None:
        if self._ponged:
            _settle(self._ponged)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
