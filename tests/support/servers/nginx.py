"""The real nginx with our nginx.conf and start.sh, in front of servers that a test chooses."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli.dev.embedded_redis import free_port
from tests.support.fleet import ROOT, until

OURS = ROOT / "deploy" / "nginx"


def command(folder: Path, *args: str) -> list[str]:
    # If nginx runs as root, its workers get another user by default, which cannot read the test's folder.
    user = ["-g", "daemon off; user root;"] if os.geteuid() == 0 else []
    return ["sh", str(folder / "ours" / "start.sh"), str(folder), *user, *args]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "SLUICE_TLS_FOLDER_INSIDE": str(folder / "tls"), **variables}


def write_config(folder: Path, ports: list[int], dns: int | None = None) -> tuple[int, int]:
    """Copy our configuration to ``ours`` there, changed only in its addresses, in the list of servers, and in what this
    machine's nginx is too old for. Return the ports for HTTP and HTTPS. With ``tls`` in the folder, HTTPS is on.

    The servers are the ones at ``ports``, as api-servers.conf says for a life without compose. With ``dns``, they are found by
    the name ``api``, as with compose: the DNS server is at that port, and all replicas have the only port in ``ports``."""
    plain, tls, health = free_port(), free_port(), free_port()
    addresses = {"listen 8080": f"listen 127.0.0.1:{plain}", "listen 8443": f"listen 127.0.0.1:{tls}", ":8079": f":{health}"}
    (folder / "ours").mkdir()
    for file in OURS.iterdir():
        text = file.read_text()
        if file.suffix == ".conf":
            for ours, here in addresses.items():
                text = text.replace(ours, here)
            text = for_version(text.replace("/etc/nginx/tls", str(folder / "tls")), version())
        (folder / "ours" / file.name).write_text(text)
    servers = folder / "ours" / "api-servers.conf"
    servers.write_text(found_by_name(servers.read_text(), dns, ports[0]) if dns else listed(servers.read_text(), ports))
    return plain, tls


def listed(text: str, ports: list[int]) -> str:
    """Return what the file's comment says to write without compose, with these servers."""
    written = "".join(re.findall(r"^#   (.*\n)", text, re.MULTILINE))
    line = re.search(r" *server HOST:PORT.*\n", written)
    assert line
    return written.replace(line[0], "".join(line[0].replace("HOST:PORT", f"127.0.0.1:{port}") for port in ports))


def found_by_name(text: str, dns: int, port: int) -> str:
    """Return the file as with compose. A list is remembered for one second, so that a test can see how it grows old."""
    here = text.replace("127.0.0.11 valid=2s", f"127.0.0.1:{dns} valid=1s").replace("default api:8080;", f"default api:{port};")
    assert "valid=1s" in here
    return here


def version() -> tuple[int, ...]:
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])


def for_version(text: str, found: tuple[int, ...]) -> str:
    """Return a configuration as an older nginx than the image's wants it."""
    if found < (1, 27, 4):
        text = re.sub(r" *keepalive_min_timeout .*\n", "", text)
    if found < (1, 25, 1):
        text = re.sub(r" *http2 on;.*\n", "", text).replace(" ssl backlog", " ssl http2 backlog")
    return text


@contextlib.contextmanager
def running(folder: Path, ports: list[int], dns: int | None = None, **variables: str) -> Iterator[str]:
    """Yield the address of an nginx in front of these ports. Its logs are in ``nginx.log``."""
    plain, tls = write_config(folder, ports, dns)
    with (folder / "nginx.log").open("ab") as log:
        process = subprocess.Popen(
            command(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(folder, **variables)
        )
    try:
        until(lambda: (folder / "nginx.pid").exists() or process.poll() is not None, "nginx has started")
        assert process.poll() is None, (folder / "nginx.log").read_text()
        yield f"https://localhost:{tls}" if (folder / "tls").exists() else f"http://127.0.0.1:{plain}"
    finally:
        process.terminate()
        process.wait(120)
