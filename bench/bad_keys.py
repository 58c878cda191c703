"""What does a flood of bad keys cost? ``python bench/bad_keys.py``

Measures an API on this machine: CPU time and Redis commands per refused request. Once with every request checked, and once
with the default settings, which block an address that keeps guessing. docs/security.md has the figures.
"""

import asyncio
import base64
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from cli.dev.embedded_redis import EmbeddedRedis, free_port
from common.access import key_text

ROOT = Path(__file__).parent.parent
REQUESTS, CONNECTIONS = 6_000, 8
READY_S = 20
BODY = b'{"model":"demo","messages":[{"role":"user","content":"hi"}]}'


def _token() -> str:
    parts = (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"x","exp":4000000000}', secrets.token_bytes(32))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def _managed() -> str:
    return f"{key_text.PREFIX}8yxr35nb7q0d_{secrets.token_hex(19)}"


KINDS: dict[str, Callable[[], str]] = {
    "any text": lambda: "sk-" + secrets.token_urlsafe(32),
    "a managed key's form": _managed,
    "a web token": _token,
    "none at all": str,
}


@contextmanager
def api(server: EmbeddedRedis, refused_max: int) -> Iterator[tuple[int, int]]:
    """Yield the port and the process id."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SLUICE_REDIS_URL": server.url,
            "SLUICE_DATABASE_URL": f"sqlite:///{folder}/sluice.db",
            "SLUICE_PORT": str(port),
            "SLUICE_API_KEYS": "sk-a-key-that-is-good-0123456789",
            "SLUICE_SECRET": secrets.token_hex(32),
            "SLUICE_JWT_SECRET": secrets.token_hex(32),
            "SLUICE_REFUSED_CREDENTIALS_MAX": str(refused_max),
        }
        process = subprocess.Popen([sys.executable, "-m", "cli.main", "api"], env=env, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            _until_ready(port)
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit("the API did not start")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


async def flood(port: int, key: Callable[[], str]) -> dict[int, int]:
    """Send all requests, each with a different key. Return the number of answers by status."""
    statuses: dict[int, int] = {}
    remaining = iter(range(REQUESTS))

    async def use_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in remaining:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                + (f"authorization: Bearer {key()}\r\n".encode() if key is not str else b"")
                + b"content-length: %d\r\n\r\n" % len(BODY)
                + BODY
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            status = int(head[9:12])
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    await asyncio.gather(*(use_connection() for _ in range(CONNECTIONS)))
    return statuses


def main() -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        for refused_max, title in ((0, "every request is checked"), (30, "the address is blocked after 30 in a minute")):
            print(title)
            with api(server, refused_max) as (port, pid):
                asyncio.run(flood(port, KINDS["any text"]))  # Warm-up.
                for name, key in KINDS.items():
                    cpu_before_s, commands_before, began_at = cpu_s(pid), commands(client), time.monotonic()
                    statuses = asyncio.run(flood(port, key))
                    duration_s = time.monotonic() - began_at
                    cpu_us = (cpu_s(pid) - cpu_before_s) / REQUESTS * 1e6
                    redis_commands = (commands(client) - commands_before) / REQUESTS
                    print(
                        f"  {name:22s} {cpu_us:5.0f} µs of CPU, {redis_commands:.3f} Redis commands each "
                        f"(including the pulse's own), {REQUESTS / duration_s:5.0f}/s, statuses {statuses}"
                    )


if __name__ == "__main__":
    main()
