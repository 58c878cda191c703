"""How do we connect to Redis, and which connections does a process share?

Through Sentinel too. Lua is run by ``scripts``; whether Redis is there at all is told by ``pulse``.
"""

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from common.process.loop_lag import able_timeout
from common.redis.errors import REDIS_ERRORS
from common.redis.pipe import Exchanges, Pipe

SENTINEL_PORT = 26379
COMMAND_TIMEOUT_S = 2.0  # No command of ours takes a millisecond; a server that needs two seconds is not there.
SENTINEL_TIMEOUT_S = 0.3  # Each. Two that are dead may be asked before the one that knows, within a beat of the pulse.


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
        with contextlib.suppress(*REDIS_ERRORS):
            await self.connection_pool.disconnect(inuse_connections=even_in_use)

    async def is_master(self, connection: Any) -> bool:
        """Whether Sentinel, where there is one, says that a connection leads to the master. One that is silent says yes."""
        pool = self.connection_pool
        if connection is None or not isinstance(pool, SentinelConnectionPool):
            return True
        try:
            async with able_timeout(3 * SENTINEL_TIMEOUT_S):  # The pulse waits for it.
                address = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis-py.
        except REDIS_ERRORS:
            return True  # What we are connected to answers, and that is what counts.
        return bool((connection.host, connection.port) == address)

    async def set_large(self, name: str, pieces: Sequence[bytes | bytearray], size: int, expiry_ms: int) -> None:
        """Set a key to a value that is sent as it is, in pieces of ``size`` bytes together: to pack 20 MB takes hiredis 0.1
        s, in which nothing else goes on, and to join them half of that.

        The caller bounds it.
        """
        key, expiry = name.encode(), b"%d" % expiry_ms
        head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size)
        tail = b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(expiry), expiry)
        connection = await self.connection_pool.get_connection()
        try:
            with lost_connections():
                await connection.send_packed_command([head, *pieces, tail])
                await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self.connection_pool.release(connection)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with lost_connections():
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
        with lost_connections():
            return await super().execute(raise_on_error)


@contextlib.contextmanager
def lost_connections() -> Iterator[None]:
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
