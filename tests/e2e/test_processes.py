"""Do several processes on one port behave like one? Real ones, with streams while they die and restart."""

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from cli.dev.embedded_redis import free_port
from common.process.metrics_page import merge
from demo_provider.script import answer
from tests.support.fleet import CHAT, KEY, ROOT, Fleet, RawClient, body_of, execute, fleet, until
from tests.support.fleet.process import Listening

PROCESSES = 2
MODEL, TOKENS = "demo-n150-d20", 150


class Supervised(Listening):
    """Several processes of one tier, on one port."""

    def __init__(self, tier: str, found: Fleet, **more: str) -> None:
        port = free_port()
        variable = {"api": "SLUICE_PORT", "worker": "SLUICE_WORKER_PORT"}[tier]
        env = {**found.env(), variable: str(port), **more}
        log = found.folder / f"{tier}s.log"
        super().__init__([tier, "--processes", str(PROCESSES)], env, log, port, execute)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One supervisor for each tier, in the places of an API and of a worker."""
    with fleet(tmp_path_factory.mktemp("processes"), apis=0, workers=0) as found:
        found.apis.append(Supervised("api", found))  # type: ignore[arg-type]
        found.workers.append(Supervised("worker", found))  # type: ignore[arg-type]
        for supervised in (*found.apis, *found.workers):
            until(lambda supervised=supervised: supervised.events("processes_ready"), "all are ready")
        yield found


@pytest.fixture
def open_streams(found: Fleet) -> Iterator[Callable[[int], list[RawClient]]]:
    """Make clients that have had some tokens each, and read on as they like."""
    made: list[RawClient] = []
    yield lambda count: _open_streams(found, count, made)
    for client in made:
        client.leave()


def _open_streams(found: Fleet, count: int, made: list[RawClient]) -> list[RawClient]:
    clients = [RawClient(found.apis[0].port) for _ in range(count)]
    made += clients
    for client in clients:
        client.post(CHAT, body_of(CHAT, MODEL, stream=True), x_disconnect="grace=60")
    for client in clients:
        client.read_until(b'"content"', times=3)
    return clients


def rest(client: RawClient) -> bytes:
    """Return everything that a client gets until its stream or its connection ends."""
    try:
        return client.read_until(b"data: [DONE]")
    except (AssertionError, ConnectionError):
        return client.received


def test_a_killed_process_costs_its_own_streams_alone_and_these_go_on_at_another(found: Fleet, open_streams):
    (apis,) = found.apis
    clients = open_streams(12)
    victim = max(apis.children(), key=lambda child: len(child.net_connections("tcp")))
    its_ports = {connection.raddr.port for connection in victim.net_connections("tcp") if connection.raddr}

    victim.kill()
    with ThreadPoolExecutor(len(clients)) as readers:
        received = list(readers.map(rest, clients))

    cut = [client for client in clients if client.socket.getsockname()[1] in its_ports]
    assert cut
    for client, text in zip(clients, received, strict=True):
        assert (b"data: [DONE]" in text) == (client not in cut)
    for client in cut:
        generation = re.search(rb"x-generation-id: (\S+)", client.received, re.IGNORECASE).group(1).decode()
        resumed = found.client.get(f"{found.url}/v1/generations/{generation}", headers={"authorization": f"Bearer {KEY}"})
        assert resumed.text.endswith("data: [DONE]\n\n")
        assert answer(TOKENS).split()[-1] in resumed.text
    until(lambda: len(apis.children()) == PROCESSES, "it is started again")
    assert apis.events("process_died")


def test_a_restart_of_all_one_by_one_loses_no_stream_and_refuses_no_request(found: Fleet, open_streams):
    before = {child.pid for tier in (found.apis, found.workers) for child in tier[0].children()}
    clients = open_streams(9)
    problems: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                with httpx.Client(timeout=120) as client:
                    response = client.post(
                        f"{found.url}/v1/chat/completions",
                        json=body_of(CHAT, "demo-n3-d0"),
                        headers={"authorization": f"Bearer {KEY}"},
                    )
                problems.extend([response.text] if response.status_code != 200 else [])
            except httpx.HTTPError as error:
                problems.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    for tier in (found.apis, found.workers):
        replaced = len(tier[0].events("processes_replaced"))
        tier[0].send(signal.SIGUSR2)
        until(lambda tier=tier, replaced=replaced: len(tier[0].events("processes_replaced")) > replaced, "all are replaced")
    done.set()
    asking.join()

    assert problems == []
    assert all(b"data: [DONE]" in rest(client) for client in clients)
    after = {child.pid for tier in (found.apis, found.workers) for child in tier[0].children()}
    assert before.isdisjoint(after)
    assert len(after) == 2 * PROCESSES


def test_one_page_has_the_metrics_of_all_processes_and_of_no_dead_one(found: Fleet):
    for _ in range(20):
        with httpx.Client() as client:  # Each on a connection of its own.
            client.get(f"{found.url}/livez")
    for port, metric in ((found.apis[0].port, "sluice_open_viewers"), (found.workers[0].port, "sluice_slots")):
        page = found.client.get(f"http://127.0.0.1:{port}/metrics").text

        assert len(re.findall(rf'^{metric}{{process="\d+"}} ', page, re.MULTILINE)) == PROCESSES
        assert page.count(f"# TYPE {metric} ") == 1
    asked = found.metrics(found.apis[0].port)
    counted = sum(value for name, value in asked.items() if name.startswith("sluice_requests_total") and "/livez" in name)
    assert counted >= 20


def test_a_hang_up_makes_all_processes_read_their_settings_again(found: Fleet):
    before = len(found.apis[0].events("settings_reloaded"))

    found.apis[0].send(signal.SIGHUP)

    until(lambda: len(found.apis[0].events("settings_reloaded")) == before + PROCESSES, "all have reloaded")
    assert len(found.apis[0].children()) == PROCESSES


def test_told_to_stop_they_finish_their_answers_and_close_the_port(found: Fleet, open_streams):
    (apis,) = found.apis
    clients = open_streams(6)

    apis.send(signal.SIGTERM)
    until(lambda: not accepts(apis.port), "the port is closed")

    assert all(b"data: [DONE]" in rest(client) for client in clients)
    assert apis.wait(60) == 0


def accepts(port: int) -> bool:
    try:
        RawClient(port).leave()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed")
@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one", "several"])
def test_it_serves_on_the_socket_that_systemd_passes(tmp_path: Path, options: list[str]):
    with fleet(tmp_path, apis=0, workers=1) as found:
        port = free_port()
        command = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "-E", "PYTHONPATH"]
        command += [f"--setenv={name}={value}" for name, value in found.env().items()]
        with (tmp_path / "api.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, sys.executable, "-m", "cli.main", "api", *options], cwd=ROOT, stdout=log, stderr=log
            )
        try:
            until(lambda: accepts(port), "systemd listens")
            whole = found.client.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json=body_of(CHAT, "demo-n3-d0"),
                headers={"authorization": f"Bearer {KEY}"},
            )
            assert whole.json()["choices"][0]["message"]["content"] == answer(3)
        finally:
            process.terminate()
            assert process.wait(60) == 0


def test_samples_get_the_process_and_lines_of_a_metric_stay_together():
    one = b'# HELP a_total A.\n# TYPE a_total counter\na_total{path="/{id} x"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    two = b"# HELP b B.\n# TYPE b gauge\nb 3.0\n# HELP c C.\n# TYPE c gauge\nc 4.0\n"

    assert merge({"1": one, "2": two}).decode().splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{process="1",path="/{id} x"} 1.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{process="1"} 2.0',
        'b{process="2"} 3.0',
        "# HELP c C.",
        "# TYPE c gauge",
        'c{process="2"} 4.0',
    ]
