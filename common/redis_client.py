"""How do we talk to Redis, and is it there?

``connect`` makes a client, ``Scripts`` runs our Lua in pipelines, each bounded in time, and ``Pulse`` is the breaker: it
knows within two seconds that Redis is gone, so that nothing has to wait to find out.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hiredis
import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from common.process import in_background

log = structlog.get_logger()

COMMAND_TIMEOUT_S = 2.0  # No command of ours takes a millisecond; a server that needs two seconds is not there.
PULSE_INTERVAL_S = 0.5
PULSE_TIMEOUT_S = 1.0  # With the interval: the breaker opens within 1.5 s of the last good answer.

# Answers of a live server that cannot serve now: full, still loading, just demoted.
_NOT_NOW = ("OOM", "MISCONF", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNKILLABLE", "BUSY")

Call = tuple[str, Sequence[str], Sequence[Any]]  # A script's name, its keys, its arguments.


class RedisUnavailable(Exception):
    """Redis did not answer in time, or answered that it cannot serve now."""


def connect(url: str, connections_max: int = 64) -> Redis:
    """Return a client; no connection is made yet.

    It has no timeout of its own for answers: redis-py would set a timer for each of a pipeline's. Whoever sends a command
    bounds it with ``asyncio.timeout(COMMAND_TIMEOUT_S)``, and whoever pipelines bounds the pipeline.
    """
    client: Redis = Redis.from_url(
        url,
        socket_timeout=None,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        max_connections=connections_max,
    )
    return client


def as_unavailable(error: BaseException) -> RedisUnavailable | None:
    """Return what an error of redis-py or a socket means to us; None where it is a fault of our own."""
    is_our_fault = isinstance(error, ResponseError) and not str(error).startswith(_NOT_NOW)
    if isinstance(error, RedisError | OSError | TimeoutError) and not is_our_fault:
        return RedisUnavailable(f"{type(error).__name__}: {error}")
    return None


class Scripts:
    """The Lua files of one folder, by name. A file that begins with an underscore is put before each of the others."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self._redis = redis
        prelude = "".join(path.read_text() for path in sorted(folder.glob("_*.lua")))
        self._sources = {path.stem: prelude + path.read_text() for path in folder.glob("[!_]*.lua")}
        self._shas = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in self._sources.items()}  # noqa: S324 - Redis names scripts by SHA-1.

    async def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Return one script's answer.

        Raises:
            RedisUnavailable: no answer; whether the script ran is unknown.
        """
        (answer,) = await self.run_many([(name, keys, args)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Return the scripts' answers from one pipeline; one that failed has its exception in its place.

        Raises:
            RedisUnavailable: no answers; which scripts ran is unknown.
        """
        answers = await self._send(calls)
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:  # A restart or a failover emptied the script cache.
            await self._load({calls[index][0] for index in missing})
            for index, answer in zip(missing, await self._send([calls[index] for index in missing]), strict=True):
                answers[index] = answer
        return [as_unavailable(answer) or answer if isinstance(answer, Exception) else answer for answer in answers]

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        # Hot path: once per flush. redis-py's own pipeline costs twice as much per command.
        packed = [hiredis.pack_command(("EVALSHA", self._shas[name], len(keys), *keys, *args)) for name, keys, args in calls]
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):  # Around the connecting too: a frozen Redis lets one connect.
                return await self._exchange(packed)
        except (RedisError, OSError, TimeoutError) as error:
            raise as_unavailable(error) or error from error

    async def _exchange(self, packed: list[bytes]) -> list[Any]:
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(b"".join(packed), check_health=False)
            return [await _read(connection) for _ in packed]
        except BaseException:
            # The answers that were not read would be taken for those of the next command.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def _load(self, names: set[str]) -> None:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                for name in names:
                    await self._redis.script_load(self._sources[name])
        except (RedisError, OSError, TimeoutError) as error:
            raise as_unavailable(error) or error from error


async def _read(connection: Connection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


class Pulse:
    """Asks Redis for its time twice a second. ``is_up`` is the breaker that callers check before they wait for anything."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._whole_since = clock()
        self._task: asyncio.Task[None] | None = None
        self.is_up = False
        self.redis_ms = 0  # Redis' own clock, as of its last answer. Scripts refuse what is much older: a stale command.

    async def start(self) -> None:
        """Ask once, then keep asking in the background."""
        self._client = self._redis.client()  # A connection of its own: a busy pool must not look like a dead server.
        await self._beat(is_first=True)
        self._task = in_background(self._run(), "pulse")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._client.aclose(close_connection_pool=False)

    async def until_up(self) -> None:
        """Return once Redis has answered."""
        while not self.is_up:  # noqa: ASYNC110 - Nobody else waits for it, and half a second more does no harm.
            await asyncio.sleep(PULSE_INTERVAL_S)

    def whole_s(self) -> float:
        """Return for how long every answer has come in time; 0 while Redis is away."""
        return self._clock() - self._whole_since if self.is_up else 0.0

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PULSE_INTERVAL_S)
            await self._beat()

    async def _beat(self, *, is_first: bool = False) -> None:
        try:
            async with asyncio.timeout(PULSE_TIMEOUT_S):
                seconds, micros = await self._client.time()
        except (RedisError, OSError, TimeoutError) as error:
            if self.is_up or is_first:
                log.warning("redis_away", error=f"{type(error).__name__}: {error}")
            self.is_up = False
            return
        self.redis_ms = seconds * 1000 + micros // 1000
        if not self.is_up:
            self._whole_since = self._clock()
            if not is_first:
                log.info("redis_back")
        self.is_up = True
