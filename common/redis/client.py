"""How do we connect to Redis, and which connections does a process share?

It also connects through Sentinel. ``scripts`` runs Lua. ``pulse`` knows whether Redis is available.
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

from common.process.loop_lag import lag_aware_timeout
from common.redis.errors import REDIS_ERRORS
from common.redis.pipe import Exchanges, Pipe

SENTINEL_PORT = 26379
COMMAND_TIMEOUT_S = 2.0  # None of our commands takes a millisecond. A server that needs two seconds counts as away.
SENTINEL_TIMEOUT_S = 0.3  # Per Sentinel. Two dead ones and one that answers fit into one beat of the pulse.


class Client(Redis):
    """redis-py's client, and the connections that its process shares: one for scripts, and one for reading logs.

    Reads have their own connection because Redis answers each connection in order: an append or a job must not wait behind
    megabytes that others read. Most of the time of a large read goes into sending and parsing, not into Redis' own work.
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
        """Open a separate connection, see ``Pipe.open``. ``leave`` closes it."""
        pipe = await Pipe.open(self, on_answer, on_lost)
        pipe.on_misplaced = self._leave_old_master
        self._pipes.add(pipe)
        return pipe

    def _leave_old_master(self) -> None:
        """Close all connections, because the address (a DNS name or a load balancer) now leads to another server.

        The other connections still lead to the old server. It answers them and refuses only writes.
        """
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self.leave(even_in_use=True))

    @functools.cached_property
    def _pipes(self) -> "weakref.WeakSet[Pipe]":
        return weakref.WeakSet()

    async def leave(self, *, even_in_use: bool = False) -> None:
        """Cut the connections to a server that is gone. Callers that wait on a connection of redis-py's end by their timeout.

        ``even_in_use``: also cut connections in use. Needed where the old server still answers but is no longer the master.
        The probe's connection stays: it asks this server what it refuses.
        """
        for pipe in list(self._pipes):
            if pipe.leaves:
                pipe.close()
        with contextlib.suppress(*REDIS_ERRORS):
            await self.connection_pool.disconnect(inuse_connections=even_in_use)

    async def is_master(self, connection: Any) -> bool:
        """Whether a connection leads to the master, as Sentinel says. True also where no Sentinel answers, or there is none."""
        pool = self.connection_pool
        if connection is None or not isinstance(pool, SentinelConnectionPool):
            return True
        try:
            async with lag_aware_timeout(3 * SENTINEL_TIMEOUT_S):  # The pulse waits for this.
                address = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis-py.
        except REDIS_ERRORS:
            return True  # Our own connection works, and that is what counts.
        return bool((connection.host, connection.port) == address)

    async def set_large(self, name: str, pieces: Sequence[bytes | bytearray], size: int, expiry_ms: int) -> None:
        """Set a key to a large value. The ``pieces`` (``size`` bytes together) are sent as they are, without a copy.

        hiredis needs 0.1 s to pack 20 MB, and joining the pieces takes half of that. Both would block the event loop.
        The caller bounds the wait.
        """
        key, expiry = name.encode(), b"%d" % expiry_ms
        head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size)
        tail = b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(expiry), expiry)
        connection = await self.connection_pool.get_connection()
        try:
            with lost_connections():
                await connection.send_packed_command([head, *pieces, tail])
                await connection.read_response()
        except BaseException:  # A cancelled caller too: a half-sent command would be answered to the next one.
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
    """Turn uvloop's error for a reset connection (``RuntimeError``) into redis-py's, which expects asyncio's errors."""
    try:
        yield
    except RuntimeError as error:
        raise RedisConnectionError("the connection was lost") from error


def connect(url: str, connections_max: int = 64) -> Client:
    """Return a client. It does not connect yet.

    The client has no timeout for answers: redis-py would set one timer per answer of a pipeline. The caller bounds each
    command or pipeline, including the time to connect, with ``able_timeout(COMMAND_TIMEOUT_S)``.
    """
    options: dict[str, Any] = {"socket_connect_timeout": None, "max_connections": connections_max}
    if "+sentinel" in urlsplit(url).scheme:
        return _through_sentinel(url, options)
    client: Client = Client.from_url(url, socket_timeout=None, **options)
    return client


def _through_sentinel(url: str, options: dict[str, Any]) -> Client:
    """``redis+sentinel://[user:password@]host[:port],host[:port]…/service[/db]``; ``rediss+sentinel`` for TLS.

    redis-py has no URL for Sentinel. Other libraries use this form.
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
    """Return a duration in whole milliseconds, as Redis' commands take it."""
    return int(seconds * 1000)
