"""How do live messages get from Redis to the listeners in this process?

One pub/sub connection serves all generations. After a loss it is opened again and subscribes to all of them again. Where
Redis refuses to let us subscribe, the process receives nothing: ``refusal`` has Redis' message, and every second we try again.
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

from common.canonical.errors import StoreRefused, StoreUnavailable
from common.channel.base import Frame, FrameId, FrameKind, Message
from common.process.loop_lag import lag_aware_timeout, loop_lag
from common.process.process import supervised
from common.process.rhythm import until_turn_s
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import REDIS_ERRORS, error_text
from common.redis.pipe import Pipe

log = structlog.get_logger()

FEED_PING_S = 1.0
# Redis cuts a subscriber that falls behind by more: 256 MiB at once, or 64 MiB for a minute. We repair the gap from the log.
OUTPUT_LIMIT = "pubsub 268435456 67108864 60"
FEED_SILENCE_MAX_S = 3.0  # Redis answers pings at once. No data for this long, while we could read, means a dead connection.

_new_tuple = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_KINDS = {kind.value.encode(): kind for kind in FrameKind}

# Cached: all generations share the same small ids, and each is read twice, as a message's own and as the next one's previous.
_frame_id = lru_cache(maxsize=8_192)(FrameId.from_text)


def read_message(raw: bytes) -> Message:
    """Parse one published message: ``<kind> <previous id> <id>\\n<data>``. The kind ``beat`` (a heartbeat) has no frame."""
    # Hot path: once per message.
    header, _, data = raw.partition(b"\n")
    kind, previous, frame_id = header.split(b" ")
    if kind == b"beat":
        return Message(_frame_id(previous), None)
    return _new_tuple(Message, (_frame_id(previous), _new_tuple(Frame, (_frame_id(frame_id), _KINDS[kind], data))))


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
        self.is_connected = False  # Whether published messages reach us.
        self._has_logged_unreadable = False
        self._new_refusal = ""  # Redis' refusal during the present resubscription.
        self.refusal = ""  # Redis' message, if it refuses to let us subscribe.

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
            # If the connection is down, the reconnection subscribes to all sinks and confirms this one too.
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
            TimeoutError: there was no connection for too long, or it sent nothing. While data arrives, the answer is still due.
        """
        left_s = COMMAND_TIMEOUT_S
        while True:
            confirmed = self._waiting[channel] = asyncio.get_running_loop().create_future()
            try:
                async with lag_aware_timeout(left_s):
                    await confirmed
                return
            except TimeoutError:
                left_s = self._pipe.heard_s + COMMAND_TIMEOUT_S - loop_lag().unblocked_s if self._pipe else 0
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
        """Connect, subscribe and receive, until the connection is lost."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with lag_aware_timeout(FEED_SILENCE_MAX_S):
            pipe = self._pipe = await self._redis.open_pipe(self._receive_first, lambda: _resolve(lost))
        try:
            self._is_open = True
            while not lost.done():
                if not self.is_connected:
                    async with lag_aware_timeout(FEED_SILENCE_MAX_S):
                        await self._resubscribe()
                    pipe.on_answer = self._receive
                self._probe_permission()
                self._send("PING")
                await asyncio.wait([lost], timeout=until_turn_s(FEED_PING_S))
                if loop_lag().unblocked_s - pipe.heard_s > FEED_SILENCE_MAX_S:
                    pipe.close()
            raise RedisConnectionError("the connection was lost")
        finally:
            pipe.close()
            self._pipe = None

    async def _resubscribe(self) -> None:
        """Subscribe to all sinks. Returns once the server has confirmed (then a log that is read leaves no gap) or refused."""
        self._new_refusal = ""
        with contextlib.suppress(ResponseError):  # Not every hosted Redis allows it; `sluice doctor` reports that.
            await self._redis.config_set("client-output-buffer-limit", OUTPUT_LIMIT)  # A restart of Redis resets it.
        probe_channel = self._probe_permission()
        requested: set[bytes] = set()
        while True:
            new = self._sinks.keys() - requested  # More may come while we wait.
            if requested and not new:
                break
            requested |= new or {probe_channel}
            self._ponged = asyncio.get_running_loop().create_future()
            if new:
                self._send("SUBSCRIBE", *new)
            self._send("PING")
            await self._ponged
        self.refusal = self._new_refusal
        if not self.refusal:
            self.is_connected = True
            for callback in self._resubscribed:
                callback()

    def _probe_permission(self) -> bytes:
        """Subscribe to an unused channel, to learn whether we may. A process that may not must not receive requests."""
        probe_channel = keyspace.live(f"gen_{secrets.token_hex(4)}")
        self._send("SUBSCRIBE", probe_channel)
        self._send("UNSUBSCRIBE", probe_channel)
        return probe_channel.encode()

    def _receive_first(self, answer: Any) -> None:
        """Receive on a new connection, until all listeners know that messages were lost. Earlier ones are in the logs."""
        if not isinstance(answer, list) or answer[0] != b"message":
            self._receive(answer)

    def _receive(self, answer: Any) -> None:
        # Hot path: once per message.
        if not isinstance(answer, list):
            if isinstance(answer, Exception):
                self._refuse(answer)
            self._pong()  # Before the first subscription Redis answers a PING with a string.
            return
        kind, channel = answer[0], answer[1]
        if kind == b"message":
            sink = self._sinks.get(channel)
            if sink:
                try:
                    sink(read_message(answer[2]))
                except Exception:  # Anybody may publish there, and all generations share the connection. The log is correct.
                    self._log_unreadable()
        elif kind == b"subscribe":
            waiting = self._waiting.get(channel)
            if waiting:
                _resolve(waiting)
        elif kind == b"pong":
            self._pong()

    def _refuse(self, error: Exception) -> None:
        """Record that Redis does not let us subscribe. It does not say to which channel, so all waiting subscriptions fail."""
        self.refusal = self._new_refusal = error_text(error)
        self.is_connected = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(StoreRefused(self.refusal))

    def _log_unreadable(self) -> None:
        if not self._has_logged_unreadable:
            self._has_logged_unreadable = True
            log.exception("message_unreadable")

    def _pong(self) -> None:
        if self._ponged:
            _resolve(self._ponged)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
