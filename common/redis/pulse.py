"""Is Redis available, and is it still the master?

One liveness probe per process. Other parts add small reads to it (``watch``), which are sent with each probe.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from common.process.loop_lag import lag_aware_timeout, loop_lag
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.redis.client import SENTINEL_TIMEOUT_S, Client, lost_connections, ms
from common.redis.errors import REDIS_ERRORS, error_text, is_refusal

log = structlog.get_logger()

PULSE_INTERVAL_S = 0.5
PULSE_TIMEOUT_S = 1.0  # With the interval, the breaker opens within 1.5 s of the last good answer.
MASTER_CHECK_S = 2.0  # What an old master accepts until then is lost. A publisher can still append that much again.

Command = tuple[str, ...] | Callable[[], tuple[str, ...]]  # A callable where the command changes, for example with the day.


class Pulse:
    """Reads Redis' time twice a second. ``is_up`` is the circuit breaker that callers check before they wait for Redis."""

    def __init__(
        self, redis: Client, clock: Callable[[], float] = time.monotonic, interval_s: float = PULSE_INTERVAL_S
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._interval_s = interval_s
        self._healthy_since = self._master_checked_at = clock()
        self._task: asyncio.Task[None] | None = None
        self._server: tuple[str, int] | None = None
        self._watches: list[_Watch] = []
        self.is_up = False
        self.problem = "it has not answered yet"  # Why Redis is not up. Empty while it is.
        self.is_refused = False  # Whether Redis answered and refused.
        self._redis_ms, self._redis_ms_at = 0, 0.0  # The last time that Redis returned, and when that was by our clock.

    @property
    def redis_ms(self) -> int:
        """Redis' clock now, in ms; 0 before the first answer. Scripts refuse a command whose time is much older: it is stale.

        It is the last answer plus the time that has passed since by our own clock. A busy process reads answers late, and
        the commands that it sends then are not stale because of that.
        """
        return self._redis_ms + ms(self._clock() - self._redis_ms_at) if self._redis_ms else 0

    def watch(self, command: Command, on_answer: Callable[[Any], None], on_lost: Callable[[], None] = lambda: None) -> None:
        """Send a small read with each probe, such as ``("GET", key)``.

        Args:
            on_answer: gets each answer as redis-py returns it. It must not wait.
            on_lost: called instead where Redis refused the read, or where ``on_answer`` raised: the last known value is old.

        This gives every process a value that is at most 2 s old while ``is_up``, at no cost for requests.
        """
        self._watches.append(_Watch(command, on_answer, on_lost))

    async def start(self) -> None:
        """Probe once, then keep probing in the background."""
        self._client = self._redis.client()  # A separate connection: a busy pool must not look like a dead server.
        await self.beat(is_first=True)
        self._task = supervised(self._run, "pulse")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._client.aclose(close_connection_pool=False)

    def healthy_s(self) -> float:
        """Return for how many seconds every answer has come in time and from the same server. 0 while Redis is away."""
        return self._clock() - self._healthy_since if self.is_up else 0.0

    async def _run(self) -> None:
        while True:
            await next_turn(self._interval_s)
            await self.beat()
            if self.is_up and self._clock() - self._master_checked_at >= MASTER_CHECK_S:
                await self._check_master()

    async def _check_master(self) -> None:
        """Reconnect if Sentinel names another master. An old master that is cut off from its Sentinels still answers us."""
        self._master_checked_at = self._clock()
        if not await self._redis.is_master(self._client.connection):
            log.warning("redis_moved")
            await self._leave(even_in_use=True)

    async def _leave(self, *, even_in_use: bool = False) -> None:
        """Close all connections. Otherwise a frozen server would run our commands when it wakes, while another is master."""
        await self._client.aclose(close_connection_pool=False)
        await self._redis.leave(even_in_use=even_in_use)

    async def _read_with_retry(self) -> list[Any]:
        """Read Redis' time and return the answers of the watches, errors in their places. After a cut connection, try again."""
        is_first = True
        while True:
            blocked_s = loop_lag().blocked_s
            try:
                return await self._read_once()
            except RedisConnectionError:
                # A live server may cut a connection, so a second connection decides. redis-py also asks the Sentinels, and its
                # timers count time in which our own loop was blocked: then we try again too.
                if not is_first and loop_lag().blocked_s - blocked_s < SENTINEL_TIMEOUT_S / 2:
                    raise
                is_first = False
                self._healthy_since = self._clock()  # The new connection may lead to another server at the same address.

    async def _read_once(self) -> list[Any]:
        blocked_s = loop_lag().blocked_s
        seconds, micros = await self._client.time()
        self._redis_ms = seconds * 1000 + micros // 1000
        # The answer may have waited in the socket while the loop was blocked.
        self._redis_ms_at = self._clock() - (loop_lag().blocked_s - blocked_s)
        return await self._read_watched() if self._watches else []

    async def _read_watched(self) -> list[Any]:
        """Send all watched reads in one round trip, on the connection that has just returned the time."""
        commands = [watch.command() if callable(watch.command) else watch.command for watch in self._watches]
        connection, callbacks = self._client.connection, self._client.response_callbacks
        assert connection is not None
        with lost_connections():
            await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return [
            callbacks[name](answer) if name in callbacks and not isinstance(answer, Exception) else answer
            for (name, *_), answer in zip(commands, answers, strict=True)
        ]

    def _record_server(self) -> None:
        """Restart the healthy time where another server answers, even without an outage: its leases may be seconds old."""
        connection = self._client.connection
        server = (getattr(connection, "host", ""), getattr(connection, "port", 0))
        if self._server not in (None, server):
            self._healthy_since = self._clock()
        self._server = server

    async def beat(self, *, is_first: bool = False) -> None:
        """Probe now; call ``start`` before. ``is_first``: log an outage even though Redis was never up."""
        try:
            async with lag_aware_timeout(PULSE_TIMEOUT_S):
                answers = await self._read_with_retry()
        except REDIS_ERRORS as error:
            await self._record_outage(error, is_first=is_first)
            return
        self._record_server()
        if not self.is_up:
            self._healthy_since = self._clock()
            if not is_first:
                log.info("redis_back")
        # Before ``is_up`` is set: values from before an outage are not reliable.
        for watch, answer in zip(self._watches, answers, strict=False):  # A watch that was just added has no answer yet.
            watch.hand_over(answer)
        self.is_up, self.is_refused, self.problem = True, False, ""

    async def _record_outage(self, error: Exception, *, is_first: bool) -> None:
        was_refused, self.is_refused = self.is_refused, is_refusal(error)
        self.problem = error_text(error) if self.is_refused else f"{type(error).__name__}: {error}"
        if self.is_up or is_first or was_refused != self.is_refused:
            if self.is_refused:
                log.warning("redis_refuses", error=self.problem, mend="`sluice doctor` says what Redis must accept")
            else:
                log.warning("redis_away", error=self.problem, mend="start Redis, or correct SLUICE_REDIS_URL")
        if self.is_up or is_first:
            self.is_up = False
            await self._leave()


@dataclass(slots=True)
class _Watch:
    command: Command
    on_answer: Callable[[Any], None]
    on_lost: Callable[[], None]
    is_lost: bool = False

    def hand_over(self, answer: Any) -> None:
        """Give an answer to its watcher. A failure is logged once and does not affect other watches."""
        try:
            if isinstance(answer, Exception):
                raise answer
            self.on_answer(answer)
        except Exception as error:
            if not self.is_lost and not is_refusal(error):  # The probe reports refusals.
                log.exception("watched_key_unreadable")
            self.is_lost = True
            self.on_lost()
        else:
            self.is_lost = False
