"""The ``sluice`` command as its users meet it: real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from cli.embedded_redis import free_port
from cli.main import main

SLUICE = [sys.executable, "-m", "cli.main"]
ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "OPENAI_", "ANTHROPIC_"))}
    return {**clean, "PYTHONPATH": str(ROOT), **extra}


@pytest.mark.parametrize("command", [[], ["api"], ["worker"], ["dev"], ["demo-provider"], ["doctor"]])
def test_help_teaches(command):
    result = CliRunner().invoke(main, [*command, "--help"])

    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3


def test_dev_once_streams_the_sample_and_leaves_no_process_behind(tmp_path):
    port = str(free_port())
    dev = subprocess.run(
        [*SLUICE, "dev", "--once"], env=environment(SLUICE_PORT=port), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert dev.returncode == 0, dev.stderr
    assert "A sluice is a small gate" in dev.stdout
    assert not [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("SLUICE_PORT") == port]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dev_takes_its_processes_with_it_however_it_ends(tmp_path, sig):
    port = free_port()
    dev = subprocess.Popen(
        [*SLUICE, "dev"], env=environment(SLUICE_PORT=str(port)), cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        lines = []
        for line in dev.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        children = psutil.Process(dev.pid).children(recursive=True)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        assert len(children) == 5  # Redis, the demo provider, the API, two workers.

        dev.send_signal(sig)
        dev.wait(120)

        gone, alive = psutil.wait_procs(children, timeout=15)
        # A killed parent cannot stop its Redis in order; the kernel does it.
        assert not alive
        assert gone
    finally:
        dev.kill()
        dev.stdout.close()
    text = "".join(lines)
    assert f"http://127.0.0.1:{port}/" in text
    assert "curl -N" in text


def test_dev_says_what_died_what_it_means_and_mends_it(tmp_path):
    port = free_port()
    log = tmp_path / "dev.log"
    with log.open("w") as out:
        dev = subprocess.Popen([*SLUICE, "dev"], env=environment(SLUICE_PORT=str(port)), cwd=tmp_path, stdout=out)
    try:
        wait_for(log, "Ctrl-C")
        for name, words in [
            ("worker", "another worker takes its unfinished jobs over"),
            ("redis", "new requests get 503 until it is back"),
            ("api", "clients that keep their ids can resume"),
        ]:
            children = psutil.Process(dev.pid).children()
            next(child for child in children if name in " ".join(child.cmdline())).kill()
            wait_for(log, words)
        wait_until(lambda: answers(port))
    finally:
        dev.terminate()
        dev.wait(120)
    assert "Redis is back, with its data" in log.read_text()


def answers(port: int) -> bool:
    body = {"model": "demo-n3-d1", "messages": [{"role": "user", "content": "hi"}]}
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(log: Path, words: str) -> None:
    wait_until(lambda: words in log.read_text())


def wait_until(holds) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_taken_port_is_explained(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        dev = subprocess.run(
            [*SLUICE, "dev", "--once"],
            env=environment(SLUICE_PORT=port),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert dev.returncode == 1
    assert f"If port {port} is taken, choose another with SLUICE_PORT" in dev.stdout


def test_a_wrong_setting_is_named(tmp_path):
    api = subprocess.run(
        [*SLUICE, "api"], env=environment(SLUICE_PORT="many"), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert api.returncode == 2
    assert "SLUICE_PORT" in api.stderr
    assert "Traceback" not in api.stderr


def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it(tmp_path):
    env = environment(SLUICE_REDIS_URL="redis://:secret-word@127.0.0.1:9/0", SLUICE_HOST="0.0.0.0")

    doctor = subprocess.run([*SLUICE, "doctor"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert doctor.returncode == 1
    for words in ("SLUICE_API_KEYS", "OPENAI_API_KEY", "redis-server", "Refusing to listen"):
        assert words in doctor.stdout
    assert "secret-word" not in doctor.stdout


def test_doctor_is_content_with_a_good_setup(tmp_path, redis_server):
    with httpx.Client():
        env = environment(SLUICE_REDIS_URL=redis_server.url, SLUICE_API_KEYS="k", DEMO_BASE_URL="http://127.0.0.1:9/v1")
        without = subprocess.run([*SLUICE, "doctor"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        port = free_port()
        demo = subprocess.Popen(
            [*SLUICE, "demo-provider", "--port", str(port)], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: is_open(port))
            good = {**env, "DEMO_BASE_URL": f"http://127.0.0.1:{port}/v1"}
            doctor = subprocess.run([*SLUICE, "doctor"], env=good, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        finally:
            demo.terminate()
            demo.wait(120)

    assert without.returncode == 1
    assert "DEMO_BASE_URL" in without.stdout
    assert doctor.returncode == 0, doctor.stdout
    assert "All is well" in doctor.stdout


def is_open(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/stats").status_code == 200
    except httpx.HTTPError:
        return False
