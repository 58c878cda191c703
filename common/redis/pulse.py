"""Is Redis there, and is it still the master? One liveness probe per process, which others hang their questions on."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from common.process.loop_lag import able_timeout, loop_lag
from common.process.process import supervised
from common.redis.client import SENTINEL_TIMEOUT_S, Client, lost_connections, ms
from common.redis.errors import REDIS_ERRORS, is_refusal, words_of

log = structlog.get_logger()

PULSE_INTERVAL_S = 0.5
PULSE_TIMEOUT_S = 1.0  # With the interval: the breaker opens within 1.5 s of the last good answer.
MASTER_LOOK_S = 2.0  # What an old master takes until then is lost: less than a publisher can append again.

Command = tuple[str, ...] | Callable[[], tuple[str, ...]]  # The second where it changes, such as with the day.


class Pulse:
    """Asks Redis for its time twice a second. ``is_up`` is the breaker that callers check before they wait for anything."""

    def __init__(
        self, redis: Client, clock: Callable[[], float] = time.monotonic, interval_s: float = PULSE_INTERVAL_S
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._interval_s = interval_s
        self._whole_since = self._looked_at = clock()
        self._task: asyncio.Task[None] | None = None
        self._server: tuple[str, int] | None = None
        self._watches: list[_Watch] = []
        self.is_up = False
        self.problem = "it has not answered yet"  # Why it is not up; empty while it is.
        self.is_refused = False  # Whether it answered then, and refused.
        self._told_ms, self._told_at = 0, 0.0  # Redis' own clock, and when, by ours, it stood there.

    @property
    def redis_ms(self) -> int:
        """Redis' own clock, by its last answer. Scripts refuse what is much older when they run: a stale command.

        It goes on by ours from there: a busy process hears late, and what it sends then is no older for that.
        """
        return self._told_ms + ms(self._clock() - self._told_at) if self._told_ms else 0

    def watch(self, command: Command, take: Callable[[Any], None], lose: Callable[[], None] = lambda: None) -> None:
        """Send a small read with each question, such as ``("GET", key)``; ``take`` gets each answer, as redis-py has it.

        So what all processes must soon know costs no request anything: what ``take`` had last is at most as old as ``is_up``
        allows, 2 s. ``take`` must not wait. ``lose`` is called instead where Redis refused this read, or ``take`` could not
        use its answer: what is known is from before.
        """
        self._watches.append(_Watch(command, take, lose))

    async def start(self) -> None:
        """Ask once, then keep asking in the background."""
        self._client = self._redis.client()  # A connection of its own: a busy pool must not look like a dead server.
        await self.beat(is_first=True)
        self._task = supervised(self._run, "pulse")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._client.aclose(close_connection_pool=False)

    def whole_s(self) -> float:
        """Return for how long every answer has come in time, and from the same server; 0 while Redis is away."""
        return self._clock() - self._whole_since if self.is_up else 0.0

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.beat()
            if self.is_up and self._clock() - self._looked_at >= MASTER_LOOK_S:
                await self._look_for_master()

    async def _look_for_master(self) -> None:
        """A master that was cut off from its Sentinels answers us still, while another has taken its place."""
        self._looked_at = self._clock()
        if not await self._redis.is_master(self._client.connection):
            log.warning("redis_moved")
            await self._leave(even_in_use=True)

    async def _leave(self, *, even_in_use: bool = False) -> None:
        """Else what we send to a frozen server would run when it wakes, though another may be the master by then."""
        await self._client.aclose(close_connection_pool=False)
        await self._redis.leave(even_in_use=even_in_use)

    async def _ask(self) -> list[Any]:
        """Note Redis' time, and return the watches' answers; one that was refused is its error."""
        is_first = True
        while True:
            held_up_s = loop_lag().held_up_s
            try:
                return await self._read()
            except RedisConnectionError:
                # Cut, as a server that is there may do: another connection tells. And Sentinels are asked by redis-py, whose
                # timers count what held up our loop as their silence.
                if not is_first and loop_lag().held_up_s - held_up_s < SENTINEL_TIMEOUT_S / 2:
                    raise
                is_first = False
                self._whole_since = self._clock()  # It may lead to another server, at the same address.

    async def _read(self) -> list[Any]:
        held_up_s = loop_lag().held_up_s
        seconds, micros = await self._client.time()
        self._told_ms = seconds * 1000 + micros // 1000
        self._told_at = self._clock() - (loop_lag().held_up_s - held_up_s)  # For so long it may have lain in the socket.
        return await self._read_watched() if self._watches else []

    async def _read_watched(self) -> list[Any]:
        """In one round trip, on the connection that has just told the time."""
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

    def _note_server(self) -> None:
        """Another server may have answered without an outage of ours; what stands there of leases may be seconds old."""
        connection = self._client.connection
        server = (getattr(connection, "host", ""), getattr(connection, "port", 0))
        if self._server not in (None, server):
            self._whole_since = self._clock()
        self._server = server

    async def beat(self, *, is_first: bool = False) -> None:
        """Ask now, once it was started; ``is_first`` is told of an absence in any case."""
        try:
            async with able_timeout(PULSE_TIMEOUT_S):
                answers = await self._ask()
        except REDIS_ERRORS as error:
            await self._note_away(error, is_first=is_first)
            return
        self._note_server()
        if not self.is_up:
            self._whole_since = self._clock()
            if not is_first:
                log.info("redis_back")
        # Before anybody may rely on them: answers that are older than an outage say nothing.
        for watch, answer in zip(self._watches, answers, strict=False):  # One that was added meanwhile has none yet.
            watch.hand_over(answer)
        self.is_up, self.is_refused, self.problem = True, False, ""

    async def _note_away(self, error: Exception, *, is_first: bool) -> None:
        was_refused, self.is_refused = self.is_refused, is_refusal(error)
        self.problem = words_of(error) if self.is_refused else f"{type(error).__name__}: {error}"
        if self.is_up or is_first or was_refused != self.is_refused:
            log.warning("redis_refuses" if self.is_refused else "redis_away", error=self.problem)
        if self.is_up or is_first:
            self.is_up = False
            await self._leave()


@dataclass(slots=True)
class _Watch:
    command: Command
    take: Callable[[Any], None]
    lose: Callable[[], None]
    is_lost: bool = False

    def hand_over(self, answer: Any) -> None:
        """Give an answer to whoever waits for it; what is wrong with one is told once, and is nobody else's matter."""
        try:
            if isinstance(answer, Exception):
                raise answer
            self.take(answer)
        except Exception as error:
            if not self.is_lost and not is_refusal(error):  # Which the probe tells.
                log.exception("watched_key_unreadable")
            self.is_lost = True
            self.lose()
        else:
            self.is_lost = False
