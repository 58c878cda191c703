"""The real nginx with our nginx.conf, in front of servers that a test chooses."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli.dev.embedded_redis import free_port
from tests.support.fleet import ROOT, until

CONFIG = ROOT / "deploy" / "nginx" / "nginx.conf"


def command(folder: Path, *args: str) -> list[str]:
    # If nginx runs as root, its workers get another user by default, which cannot read the test's folder.
    options = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    nginx = shutil.which("nginx") or "nginx"
    return [nginx, "-e", "stderr", "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-g", options, *args]


def write_config(folder: Path, ports: list[int]) -> int:
    """Write our configuration there, changed only in the address where it listens and in the list of servers."""
    port, text = free_port(), CONFIG.read_text()
    assert text.count("listen 8080 ") == 1
    (folder / "nginx.conf").write_text(text.replace("listen 8080 ", f"listen 127.0.0.1:{port} "))
    servers = [f"server 127.0.0.1:{upstream} max_fails=0;\n" for upstream in ports]
    (folder / "api-servers.conf").write_text("".join(servers))
    return port


@contextlib.contextmanager
def running(folder: Path, ports: list[int]) -> Iterator[str]:
    """Yield the address of an nginx in front of these ports. Its logs are in ``nginx.log``."""
    port = write_config(folder, ports)
    with (folder / "nginx.log").open("ab") as log:
        process = subprocess.Popen(command(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: (folder / "nginx.pid").exists() or process.poll() is not None, "nginx has started")
        assert process.poll() is None, (folder / "nginx.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)
