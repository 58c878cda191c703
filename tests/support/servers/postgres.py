"""A PostgreSQL server for tests, in a temporary folder, reached through a socket there."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

from common.process.process import die_with_parent

START_TIMEOUT_S = 120


def find_binaries() -> Path | None:
    """Return the folder of the server's programs. In Debian it is not in PATH."""
    if path := shutil.which("initdb"):
        return Path(path).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class PostgresForTests:
    """One server, which runs while its context is open; ``stop`` and ``start`` keep its data."""

    def __init__(self) -> None:
        self._binaries = find_binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
        self._databases = 0
        self.process: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._as: dict = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        self.user = "postgres" if self._as else pwd.getpwuid(os.geteuid()).pw_name

    def __enter__(self) -> "PostgresForTests":
        if self._as:
            shutil.chown(self._folder, "postgres", "postgres")
        command = [self._binaries / "initdb", "-D", self._folder / "data", "-A", "trust", "-U", self.user, "-E", "UTF8"]
        result = subprocess.run([*command, "--no-sync"], cwd="/", capture_output=True, text=True, check=False, **self._as)
        assert result.returncode == 0, result.stderr
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, user: str | None = None) -> str:
        return f"postgresql://{user or self.user}@/postgres?host={self._folder}"

    def start(self) -> None:
        options = {
            "unix_socket_directories": str(self._folder),
            "listen_addresses": "",
            "fsync": "off",
            "max_connections": "50",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") if not self._as else open(os.devnull, "ab") as out:
            self.process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *words],
                cwd="/",
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **self._as,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        ready = [self._binaries / "pg_isready", "-q", "-h", self._folder]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self.process.poll() is None and time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, even if there are connections."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown.
            self.process.wait(120)

    async def new_database(self) -> str:
        """Create what looks like an empty database, and return its URL.

        It is a role's own schema: a database would be a copy of 7 MB, which takes a tenth of a second.
        """
        self._databases += 1
        name = f"test_{self._databases}"
        connection = await asyncpg.connect(host=str(self._folder), user=self.user, database="postgres")
        try:
            await connection.execute(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name} AUTHORIZATION {name}")
        finally:
            await connection.close()
        return self.url(user=name)
