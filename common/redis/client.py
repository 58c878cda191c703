"""How do we talk to Redis, and is it there?

``connect`` makes a client, ``Scripts`` runs our Lua in pipelines, each bounded in time, and ``Pulse`` is the breaker: it
knows within two seconds that Redis is gone, so that nothing has to wait to find out.
"""

import asyncio
import contextlib
import functools
import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from common.process.loop_lag import able_timeout, loop_lag
from common.process.process import supervised
from common.redis.errors import RedisUnavailable, as_unavailable, is_refusal, words_of
from common.redis.pipe import Exchanges, Pipe

__all__ = ["Client", "Pulse", "RedisUnavailable", "Scripts", "as_unavailable", "connect", "ms"]

log = structlog.get_logger()

SENTINEL_PORT = 26379
COMMAND_TIMEOUT_S = 2.0  # No command of ours takes a millisecond; a server that needs two seconds is not there.
PULSE_INTERVAL_S = 0.5
PULSE_TIMEOUT_S = 1.0  # With the interval: the breaker opens within 1.5 s of the last good answer.
SENTINEL_TIMEOUT_S = 0.3  # Each. Two that are dead may be asked before the one that knows, within a beat of the pulse.
MASTER_LOOK_S = 2.0  # What an old master takes until then is lost: less than a publisher can append again.

_ERRORS = {NoScriptError, ResponseError}  # All that a pipe makes of a server's words.

Call = tuple[str, Sequence[str], Sequence[Any]]  # A script's name, its keys, its arguments.
Command = tuple[str, ...] | Callable[[], tuple[str, ...]]  # The second where it changes, such as with the day.


class Client(Redis):
    """redis-py's client, and the connections that its process shares: one for scripts, and one for reading logs.

    The second, so that no append and nobody's job waits behind the megabytes that others read: Redis answers a connection in
    order, and its own work on a read is a small part of the time that sending and parsing it takes.
    """

    _exchanges: Exchanges | None = None
    _reads: Exchanges | None = None
    _sentinel: Sentinel | None = None
    _leaving: asyncio.Task[None] | None = None

    @property
    def exchanges(self) -> Exchanges:
        self._exchanges = self._exchanges or Exchanges(self.open_pipe, COMMAND_TIMEOUT_S)
        return self._exchanges

    @property
    def reads(self) -> Exchanges:
        self._reads = self._reads or Exchanges(self.open_pipe, COMMAND_TIMEOUT_S)
        return self._reads

    async def open_pipe(self, on_answer: Callable[[Any], None], on_lost: Callable[[], None]) -> Pipe:
        """Return a connection of its own, see ``Pipe.open``; it ends with ``leave``."""
        pipe = await Pipe.open(self, on_answer, on_lost)
        pipe.on_misplaced = self._leave_old_master
        self._pipes.add(pipe)
        return pipe

    def _leave_old_master(self) -> None:
        """An address that leads to another server now, a name or a balancer's: the other connections still go to the old one,
        which answers them, and refuses only what writes.
        """
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self.leave(even_in_use=True))

    @functools.cached_property
    def _pipes(self) -> "weakref.WeakSet[Pipe]":
        return weakref.WeakSet()

    async def leave(self, *, even_in_use: bool = False) -> None:
        """Cut the connections to a server that is gone; whoever waits on one of redis-py's is cut by a timeout.

        ``even_in_use``: those too, for the server answers and would be used on, though it is the master no more.
        """
        for pipe in list(self._pipes):
            pipe.close()
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self.connection_pool.disconnect(inuse_connections=even_in_use)

    async def is_master(self, connection: Any) -> bool:
        """Whether Sentinel, where there is one, says that a connection leads to the master. One that is silent says yes."""
        pool = self.connection_pool
        if connection is None or not isinstance(pool, SentinelConnectionPool):
            return True
        try:
            async with able_timeout(3 * SENTINEL_TIMEOUT_S):  # The pulse waits for it.
                address = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis-py.
        except (RedisError, OSError, TimeoutError):
            return True  # What we are connected to answers, and that is what counts.
        return bool((connection.host, connection.port) == address)

    async def set_large(self, name: str, value: bytes, expiry_ms: int) -> None:
        """Set a key to a value that is sent as it is: to pack 20 MB takes hiredis 0.1 s, in which nothing else goes on.

        The caller bounds it.
        """
        key, expiry = name.encode(), b"%d" % expiry_ms
        head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, len(value))
        tail = b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(expiry), expiry)
        connection = await self.connection_pool.get_connection()
        try:
            with _lost_connections():
                await connection.send_packed_command([head, value, tail])
                await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self.connection_pool.release(connection)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with _lost_connections():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py.

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for exchanges in filter(None, (self._exchanges, self._reads)):
            await exchanges.close()
        await super().aclose(close_connection_pool)
        if self._sentinel:
            await asyncio.gather(*(sentinel.aclose() for sentinel in self._sentinel.sentinels))


class _Pipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _lost_connections():
            return await super().execute(raise_on_error)


@contextlib.contextmanager
def _lost_connections() -> Iterator[None]:
    """Turn uvloop's word for a connection that was reset into redis-py's, which knows the loop's own alone."""
    try:
        yield
    except RuntimeError as error:
        raise RedisConnectionError("the connection was lost") from error


def connect(url: str, connections_max: int = 64) -> Client:
    """Return a client; no connection is made yet.

    It has no timeout of its own for answers: redis-py would set a timer for each of a pipeline's. Whoever sends a command
    bounds it with ``able_timeout(COMMAND_TIMEOUT_S)``, the connecting included, and whoever pipelines bounds the pipeline.
    """
    options: dict[str, Any] = {"socket_connect_timeout": None, "max_connections": connections_max}
    if "+sentinel" in urlsplit(url).scheme:
        return _through_sentinel(url, options)
    client: Client = Client.from_url(url, socket_timeout=None, **options)
    return client


def _through_sentinel(url: str, options: dict[str, Any]) -> Client:
    """``redis+sentinel://[user:password@]host[:port],host[:port]…/service[/db]``; ``rediss+sentinel`` for TLS.

    redis-py has no URL for it; this form is the one that other libraries take.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError("SLUICE_REDIS_URL must be redis+sentinel://host:port,host:port/service or …/service/db")
    tls = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py.
        [_address(host) for host in hosts.split(",")],
        sentinel_kwargs={"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S, **tls},
    )
    login = {"username": unquote(user) or None, "password": unquote(password) or None}
    pool = SentinelConnectionPool(service, sentinel, db=int(db or 0), **options, **login, **tls)  # type: ignore[no-untyped-call]
    client = Client(connection_pool=pool)
    client.auto_close_connection_pool = True
    client._sentinel = sentinel
    return client


def _address(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    return name.strip("[]"), int(port or SENTINEL_PORT)


def ms(seconds: float) -> int:
    """Return a duration as Redis' commands take it."""
    return int(seconds * 1000)


class Scripts:
    """The Lua files of one folder, by name. Those that begin with an underscore are put together before each of the others.

    A script may have them later, where it says ``-- PRELUDE``. ``shared`` are such files of other folders; they come first.
    """

    def __init__(self, redis: Client, folder: Path, *shared: Path) -> None:
        self._redis = redis
        prelude = "".join(path.read_text() for path in [*shared, *sorted(folder.glob("_*.lua"))])
        self._sources = {path.stem: _with_prelude(path.read_text(), prelude) for path in folder.glob("[!_]*.lua")}
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
        if not calls:
            return []
        answers = await self._send(calls)
        if _ERRORS.isdisjoint(map(type, answers)):
            return answers  # Hot path.
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:  # A restart or a failover emptied the script cache.
            await self._load({calls[index][0] for index in missing})
            for index, answer in zip(missing, await self._send([calls[index] for index in missing]), strict=True):
                answers[index] = answer
        return [as_unavailable(answer) or answer if isinstance(answer, Exception) else answer for answer in answers]

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        # Hot path: once per flush. redis-py's own pipeline costs several times as much per command.
        shas = self._shas
        try:
            return await self._redis.exchanges.run(
                [hiredis.pack_command(("EVALSHA", shas[name], len(keys), *keys, *args)) for name, keys, args in calls]
            )
        except (RedisError, OSError, TimeoutError) as error:
            raise as_unavailable(error) or error from error

    async def _load(self, names: set[str]) -> None:
        # On the connection that will run them: another one of ours may lead to another server, after a failover.
        try:
            commands: list[tuple[Any, ...]] = [("SCRIPT", "LOAD", self._sources[name]) for name in names]
            answers = await self._redis.exchanges.run([hiredis.pack_command(command) for command in commands])
        except (RedisError, OSError, TimeoutError) as error:
            raise as_unavailable(error) or error from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise as_unavailable(answer) or answer


def _with_prelude(source: str, prelude: str) -> str:
    before, _, after = source.rpartition("-- PRELUDE\n")
    return before + prelude + after


class Pulse:
    """Asks Redis for its time twice a second. ``is_up`` is the breaker that callers check before they wait for anything."""

    def __init__(self, redis: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
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
        await self._beat(is_first=True)
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
            await asyncio.sleep(PULSE_INTERVAL_S)
            await self._beat()
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
        with _lost_connections():
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

    async def _beat(self, *, is_first: bool = False) -> None:
        try:
            async with able_timeout(PULSE_TIMEOUT_S):
                answers = await self._ask()
        except (RedisError, OSError, TimeoutError) as error:
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
