"""Which Redis stands behind a run, which way do processes take to it, and how does it break?

One server with appendonly, or a master with a replica and Sentinels. Either way each process has a way of its own that can be
cut, paused and slowed. Sentinel tells addresses, so what it tells a process is rewritten to that process' own links.
"""

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from cli.dev.embedded_redis import EmbeddedRedis
from tests.chaos.plan import Fault, FaultKind
from tests.chaos.proxy import Link
from tests.support.servers import sentinel

HEALED_S = 60.0  # By then a group is whole again, a full copy of its data included.
_CHECK_INTERVAL_S = 0.2


class Store(Protocol):
    """``may_lose_writes``: what was acknowledged may be gone after a fault."""

    may_lose_writes: bool

    async def open_way(self, name: str) -> tuple[str, tuple[Link, ...]]:
        """Return the URL that a process gets, and the links of its way; they begin with its name."""

    def direct_way(self) -> str:
        """Return the URL for a process whose way is never broken."""

    def client(self) -> Redis:
        """Return a client that no fault but the store's own befalls."""

    async def bring_about(self, fault: Fault) -> str | None:
        """Return once a fault is over and mended; what kept it from being mended, if anything did."""


async def _link(name: str, target: int | str, *, rewrites: dict[int, int] | None = None) -> Link:
    link = Link(name, target, rewrites=rewrites)
    await link.start()
    return link


class OneServer:
    """A server on a socket of its own, for as long as ``embedded`` lasts."""

    may_lose_writes = False  # What a process wrote to its file before it was killed is there.

    def __init__(self, embedded: EmbeddedRedis) -> None:
        self._embedded = embedded

    async def open_way(self, name: str) -> tuple[str, tuple[Link, ...]]:
        link = await _link(f"{name}-redis", urlsplit(self._embedded.url).path)
        return f"redis://127.0.0.1:{link.port}/0", (link,)

    def direct_way(self) -> str:
        return self._embedded.url

    def client(self) -> Redis:
        return Redis.from_url(self._embedded.url, socket_timeout=5)

    async def bring_about(self, fault: Fault) -> str | None:
        server = self._embedded
        assert server.process is not None
        if fault.kind is FaultKind.FROZEN:
            server.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                server.process.send_signal(signal.SIGCONT)
            return None
        if fault.kind is FaultKind.KILLED:
            server.process.kill()
        # In threads, for both wait. Linux ends the new server with the thread that started it, but the loop keeps its threads.
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(fault.for_s)
        await asyncio.to_thread(server.start)
        return None


class Watched:
    """A master and its replica, whoever is which, and the Sentinels that promote the replica."""

    may_lose_writes = True  # Replication is asynchronous.

    def __init__(self, group: sentinel.Group) -> None:
        self._group = group
        self._servers = (group.master, group.replica)

    async def open_way(self, name: str) -> tuple[str, tuple[Link, ...]]:
        to_servers = [await _link(f"{name}-redis", server.port) for server in self._servers]
        told = {server.port: link.port for server, link in zip(self._servers, to_servers, strict=True)}
        to_sentinels = [await _link(f"{name}-redis", each.port, rewrites=told) for each in self._group.sentinels]
        hosts = ",".join(f"127.0.0.1:{link.port}" for link in to_sentinels)
        return f"redis+sentinel://{hosts}/{sentinel.SERVICE}/0", (*to_servers, *to_sentinels)

    def direct_way(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self._group.sentinels)
        return f"redis+sentinel://{hosts}/{sentinel.SERVICE}/0"

    def client(self) -> Redis:
        from redis.asyncio.sentinel import Sentinel

        hosts = [("127.0.0.1", each.port) for each in self._group.sentinels]
        watch = Sentinel(hosts, sentinel_kwargs={"socket_timeout": 1})
        found: Redis = watch.master_for(sentinel.SERVICE, socket_timeout=5)
        return found

    async def bring_about(self, fault: Fault) -> str | None:
        server = await asyncio.to_thread(self._master)
        match fault.kind:
            case FaultKind.FAILOVER:
                await asyncio.to_thread(self._ask_for_failover)
            case FaultKind.FROZEN:
                server.send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.for_s)
                finally:
                    server.send(signal.SIGCONT)
            case _:
                server.send(signal.SIGKILL if fault.kind is FaultKind.KILLED else signal.SIGTERM)
                await asyncio.to_thread(server.process.wait, 10)
                await asyncio.sleep(fault.for_s)
                await asyncio.to_thread(server.start)
        return await self._healed()

    def _master(self) -> sentinel.Server:
        """The one that the Sentinels take for the master."""
        _, port = self._group.sentinels[0].redis.sentinel_get_master_addr_by_name(sentinel.SERVICE)
        return next(server for server in self._servers if server.port == port)

    def _ask_for_failover(self) -> None:
        with contextlib.suppress(ResponseError):  # One is under way.
            self._group.sentinels[0].redis.execute_command("SENTINEL", "FAILOVER", sentinel.SERVICE)

    async def _healed(self) -> str | None:
        """Wait until there is one master that has a replica: before that, nobody could take its place."""
        deadline = time.monotonic() + HEALED_S
        await asyncio.sleep(2 * sentinel.DOWN_AFTER_MS / 1000)  # The Sentinels need as long to notice anything.
        while not await asyncio.to_thread(self._is_whole):
            if time.monotonic() > deadline:
                return f"Redis has no master with a replica {HEALED_S:.0f} s after its fault"
            await asyncio.sleep(_CHECK_INTERVAL_S)
        return None

    def _is_whole(self) -> bool:
        try:
            master = self._master()
            replica = next(server for server in self._servers if server is not master)
            told = replica.redis.info("replication")
            is_following = (told["role"], told.get("master_port")) == ("slave", master.port)
            return master.role == "master" and is_following and told["master_link_status"] == "up"
        except (RedisError, OSError):
            return False


@contextlib.contextmanager
def _one_server(_: Path):
    with EmbeddedRedis() as embedded:
        yield OneServer(embedded)


@contextlib.contextmanager
def _watched(folder: Path):
    with sentinel.running(folder) as group:
        yield Watched(group)


# By the name that the command line takes.
STORES = {"one": _one_server, "sentinel": _watched}
