"""A master, a replica and the Sentinels that watch them, for tests of failovers."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import redis

from cli.dev.embedded_redis import find_server, free_port
from common.process.process import die_with_parent
from tests.support.fleet import until

SERVICE = "main"
DOWN_AFTER_MS = 1000
SENTINELS = 3


class Server:
    """One redis-server or Sentinel."""

    def __init__(self, folder: Path, name: str, lines: list[str], *args: str) -> None:
        self.port = free_port()
        self.name = name
        config, self.log = folder / f"{name}.conf", folder / f"{name}.log"
        (folder / name).mkdir()
        config.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {folder / name}", *lines, ""]))
        self._command = [find_server() or "redis-server", str(config), *args]
        # When a master is demoted, these connections are closed too.
        self.redis = redis.Redis(port=self.port, socket_timeout=5, retry_on_error=[redis.ConnectionError])
        self.start()

    def start(self) -> None:
        """Start it, or start it again with its data; return when it answers."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=die_with_parent
            )
        until(self.answers, f"{self.name} answers")

    def answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def role(self) -> str:
        return self.redis.role()[0].decode()

    def send(self, sig: signal.Signals) -> None:
        self.process.send_signal(sig)

    def stop(self) -> None:
        self.redis.close()
        self.process.kill()
        self.process.wait()


class Group:
    """The servers and their Sentinels. ``url`` is a value for ``SLUICE_REDIS_URL``."""

    def __init__(self, folder: Path, keep: contextlib.ExitStack) -> None:
        def start(name: str, lines: list[str], *args: str) -> Server:
            server = Server(folder, name, lines, *args)
            keep.callback(server.stop)
            return server

        # A master that is cut off from its replica accepts no writes, because it would lose them.
        common = [
            "appendonly yes",
            'save ""',
            "maxmemory-policy noeviction",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
        ]
        self.master = start("one", common)
        self.replica = start("two", [*common, f"replicaof 127.0.0.1 {self.master.port}"])
        watch = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
        ]
        self.sentinels = [start(f"sentinel{n}", watch, "--sentinel") for n in range(SENTINELS)]
        until(lambda: self.master.redis.info("replication")["connected_slaves"] == 1, "the replica is connected")
        until(lambda: self._sees_all(self.sentinels[0]), "the Sentinels know each other and the replica")

    def _sees_all(self, sentinel: Server) -> bool:
        state = sentinel.redis.sentinel_master(SERVICE)
        return (state["num-slaves"], state["num-other-sentinels"]) == (1, SENTINELS - 1)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Group]:
    with contextlib.ExitStack() as keep:
        yield Group(folder, keep)
