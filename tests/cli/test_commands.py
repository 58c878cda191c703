"""The ``sluice`` command as its users meet it: real processes."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import psutil
import pytest
from click.testing import CliRunner

from cli.dev.embedded_redis import free_port
from cli.main import main

SLUICE = [sys.executable, "-m", "cli.main"]
ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "OPENAI_", "ANTHROPIC_"))}
    return {**clean, "PYTHONPATH": str(ROOT), **extra}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("command", [(), *commands(main)], ids=" ".join)
def test_help_teaches(command):
    result = CliRunner().invoke(main, [*command, "--help"])

    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3
    assert f"sluice {' '.join(command)}".strip() in result.output.partition("Options:")[0].partition("\n")[2]


def test_a_help_page_loads_none_of_what_commands_need():
    script = "import sys; import cli.main; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.split()

    assert not {"pydantic", "structlog", "redis", "sqlalchemy", "httpx", "asyncio", "api.main"} & set(loaded)


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
            ("worker", "another worker takes over its unfinished jobs"),
            ("redis", "until it is back, new requests get 503"),
            ("cli.main api", "clients that keep their event ids can resume"),
        ]:
            children = psutil.Process(dev.pid).children()
            next(child for child in children if name in " ".join(child.cmdline())).kill()
            wait_for(log, words)
        wait_until(lambda: answers(port))
    finally:
        dev.terminate()
        dev.wait(120)
    assert "Redis is back, with its data" in log.read_text()


def test_the_commands_that_dev_prints_reach_its_redis_and_its_database(tmp_path):
    port, log = free_port(), tmp_path / "dev.log"
    with log.open("w") as out:
        dev = subprocess.Popen([*SLUICE, "dev"], env=environment(SLUICE_PORT=str(port)), cwd=tmp_path, stdout=out)
    try:
        wait_for(log, "Ctrl-C")
        printed = dict(re.findall(r"^(Usage|Cache): +(.*)$", log.read_text(), re.MULTILINE))
        commands = {name: command.replace("sluice ", f"{' '.join(SLUICE)} ") for name, command in printed.items()}
        said = {
            name: subprocess.run(
                ["sh", "-c", command], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            for name, command in commands.items()
        }
    finally:
        dev.terminate()
        dev.wait(120)

    assert {name: done.returncode for name, done in said.items()} == {"Usage": 0, "Cache": 0}, said
    assert "Answers in the cache: 0" in said["Cache"].stdout
    assert "last 24 hours" in said["Cache"].stdout, "its ledger is read too"


def answers(port: int) -> bool:
    body = {"model": "demo-n3-d1", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": "Bearer sk-demo"}
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=headers).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(log: Path, words: str) -> None:
    wait_until(lambda: words in log.read_text())


def wait_until(holds) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which a Sluice seems to be: ready, and with an answer to everything."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pytest.fail("whoever has the port was asked")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("command", "setting", "options"),
    [
        (["dev", "--once"], "SLUICE_PORT", []),
        (["dev"], None, ["--port"]),
        (["dev", "--once", "--workers", "0"], "SLUICE_PORT", []),
        (["api"], "SLUICE_PORT", []),
        (["api"], None, ["--port"]),
        (["worker"], "SLUICE_WORKER_PORT", []),
        (["worker"], None, ["--port"]),
        (["demo-provider"], None, ["--port"]),
    ],
)
def test_a_taken_port_is_told_in_one_line(tmp_path, taken, command, setting, options):
    env = environment(**({setting: str(taken)} if setting else {}), SLUICE_REDIS_URL="redis://127.0.0.1:9/0")

    ended = subprocess.run(
        [*SLUICE, *command, *(part for option in options for part in (option, str(taken)))],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert ended.returncode != 0
    (line,) = (ended.stdout + ended.stderr).strip().splitlines()
    assert f"Port {taken} of 127.0.0.1 is used by another process. Choose another port with --port" in line


def test_the_demo_has_a_key_and_its_models_and_prices(tmp_path):
    port = free_port()
    with (tmp_path / "dev.log").open("w") as out:
        dev = subprocess.Popen([*SLUICE, "dev", "--port", str(port)], env=environment(), cwd=tmp_path, stdout=out, stderr=out)
    try:
        wait_for(tmp_path / "dev.log", "Ctrl-C")
        url, headers = f"http://127.0.0.1:{port}", {"authorization": "Bearer sk-demo"}
        body = {"provider": "demo", "model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        without = httpx.post(f"{url}/v1/chat", json=body)
        answer = httpx.post(f"{url}/v1/chat", json=body, headers=headers, timeout=30)
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
    finally:
        dev.terminate()
        dev.wait(20)

    assert without.status_code == 401
    assert "Authorization: Bearer KEY" in without.text
    assert float(answer.json()["cost"]["estimated_cost_usd"]) > 0
    assert models[0]["id"] == "demo"
    assert not [model for model in models if "*" in model["id"]]
    lines = (tmp_path / "dev.log").read_text().splitlines()
    assert lines[0].startswith("Starting Redis")
    assert not [line for line in lines if line.startswith(("{", "!", "SLUICE_"))]


def test_a_wrong_setting_is_named(tmp_path):
    api = subprocess.run(
        [*SLUICE, "api"], env=environment(SLUICE_PORT="many"), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert api.returncode == 2
    assert "SLUICE_PORT" in api.stderr
    assert "Traceback" not in api.stderr


def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it(tmp_path):
    away = "redis://:secret-word@127.0.0.1:9/0"
    env = environment(REDIS_URL=away, SLUICE_CACHE_REDIS_URL=away, SLUICE_HOST="0.0.0.0")

    doctor = subprocess.run([*SLUICE, "doctor"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert doctor.returncode == 1
    for words in (
        "SLUICE_API_KEYS",
        "OPENAI_API_KEY",
        "redis-server",
        "SLUICE_CACHE_REDIS_URL",
        "cache on",
        "Refusing to listen",
    ):
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
            good = {**env, "DEMO_BASE_URL": f"http://127.0.0.1:{port}/v1", "SLUICE_CACHE_REDIS_URL": redis_server.url}
            doctor = subprocess.run([*SLUICE, "doctor"], env=good, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        finally:
            demo.terminate()
            demo.wait(120)

    assert without.returncode == 1
    assert "DEMO_BASE_URL" in without.stdout
    assert doctor.returncode == 0, doctor.stdout
    assert "The cache's Redis answers" in doctor.stdout
    assert "All is well" in doctor.stdout


def is_open(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/stats").status_code == 200
    except httpx.HTTPError:
        return False
