"""Settings that change while real processes run, under load: no answer is lost, and a wrong file changes nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.fleet import CHAT, ROOT, Fleet, body_of, fleet, headers_of, sse_events, until

MODEL = "demo-n20-d5"


class Traffic:
    """Streams that follow each other in some threads until ``stop``. ``failures``: what was not a whole answer."""

    def __init__(self, gateway: Fleet, model: str, threads: int = 6) -> None:
        self._gateway, self._model = gateway, model
        self._is_over = threading.Event()
        self.failures: list[str] = []
        self.answers = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            response = self._gateway.post(CHAT, body_of(CHAT, self._model, stream=True))
            events = sse_events(response.text) if response.status_code == 200 else []
            if not events or events[-1].data != "[DONE]" or '"error"' in response.text:
                self.failures.append(response.text[-500:])
            self.answers += 1

    def more(self, count: int) -> None:
        """Wait for some more answers."""
        wanted = self.answers + count
        until(lambda: self.answers >= wanted, "more answers")

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def run_command(gateway: Fleet, *args: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a ``sluice`` command with the settings of the fleet, except those that are ``changed``."""
    env = {**os.environ, **gateway.env(), **changed}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *args], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    """The file with the aliases, which all processes read."""
    path = tmp_path / "aliases.json"
    write(path, one=f"demo/{MODEL}")
    return path


@pytest.fixture
def gateway(tmp_path: Path, aliases: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, apis=1, workers=2, SLUICE_ALIASES_FILE=str(aliases)) as found:
        yield found


def write(path: Path, **aliases: str) -> None:
    path.write_text(orjson.dumps({name: [target] for name, target in aliases.items()}).decode())


def revisions(gateway: Fleet) -> set[str]:
    ports = [*gateway.ports, *gateway.worker_ports]
    return {name for port in ports for name in gateway.metrics(port) if name.startswith("sluice_config_revision_info")}


def test_reloads_under_load_lose_no_stream(gateway: Fleet, aliases: Path):
    """By signal, to one process after another: API and workers have different settings for a while, each way round."""
    traffic = Traffic(gateway, "one")
    try:
        for turn in range(6):
            write(aliases, one=f"{('openai', 'demo')[turn % 2]}/{MODEL}", **{f"extra{turn}": f"demo/{MODEL}"})
            processes = [*gateway.apis, *gateway.workers]
            for process in processes if turn % 2 else reversed(processes):
                done = len(process.events("settings_reloaded"))
                process.send(signal.SIGHUP)
                until(lambda process=process, done=done: len(process.events("settings_reloaded")) > done, "it has reloaded")
                traffic.more(3)
    finally:
        traffic.stop()

    assert traffic.failures == []
    assert traffic.answers > 50
    assert len(revisions(gateway)) == 1


def test_a_new_name_works_everywhere_as_soon_as_the_api_knows_it(gateway: Fleet, aliases: Path):
    write(aliases, one=f"demo/{MODEL}", two=f"demo/{MODEL}")
    assert gateway.post(CHAT, body_of(CHAT, "two")).status_code == 404

    reloaded = run_command(gateway, "config", "reload", "--json")
    answer = gateway.post(CHAT, body_of(CHAT, "two"))

    assert (reloaded.returncode, answer.status_code) == (0, 200), reloaded.stderr
    rows = json.loads(reloaded.stdout)
    assert len(rows) == 3
    assert {(row["result"], tuple(row["changed"])) for row in rows} == {("reloaded", ("aliases",))}
    assert len(revisions(gateway)) == 1


def test_a_job_whose_target_is_gone_when_its_worker_takes_it_runs_as_it_was_accepted(gateway: Fleet, aliases: Path):
    for worker in gateway.workers:
        worker.send(signal.SIGSTOP)
    with gateway.client.stream(
        "POST", f"{gateway.url}/v1/chat/completions", json=body_of(CHAT, "one", stream=True), headers=headers_of()
    ) as response:
        write(aliases, two=f"demo/{MODEL}")
        for worker in gateway.workers:
            worker.send(signal.SIGHUP)  # It handles this before it takes the job.
            worker.send(signal.SIGCONT)
        text = response.read().decode()

    assert text.rstrip().endswith("[DONE]")
    until(lambda: all(worker.events("settings_reloaded") for worker in gateway.workers), "the workers have reloaded")
    assert gateway.post(CHAT, body_of(CHAT, "one")).status_code == 200  # The API has not reloaded.


def test_a_wrong_file_changes_nothing_and_is_told_everywhere(gateway: Fleet, aliases: Path):
    before = revisions(gateway)
    aliases.write_text('{"one": []}')

    own_settings_are_wrong = run_command(gateway, "config", "reload")
    reloaded = run_command(gateway, "config", "reload", SLUICE_ALIASES_FILE="")

    assert (own_settings_are_wrong.returncode, reloaded.returncode) == (2, 1)
    assert own_settings_are_wrong.stderr.endswith("\nNothing was reloaded.\n")
    assert reloaded.stdout.count("refused") == 6  # In the table, and in the reason of each process.
    assert revisions(gateway) == before
    for process in [*gateway.apis, *gateway.workers]:
        page = gateway.client.get(f"{process.url}/health")
        assert (page.status_code, page.json()["status"]) == (
            200,
            "healthy",
        )  # It serves as before.
        (problem,) = page.json()["problems"]
        # Anybody can read an API's page.
        assert ("refused" in problem, "one" in problem) == (True, process in gateway.workers)
        assert gateway.metrics(process.port)["sluice_config_last_reload_successful"] == 0
        assert process.events("settings_not_reloaded")
        assert process.is_ready()
    assert gateway.post(CHAT, body_of(CHAT, "one")).status_code == 200

    write(aliases, one=f"demo/{MODEL}")
    assert run_command(gateway, "config", "reload").returncode == 0
    assert gateway.client.get(f"{gateway.url}/health").json()["problems"] == []


def test_keys_of_clients_and_tenants_reload_but_a_file_without_keys_does_not_open_the_gateway(tmp_path: Path):
    keys, tenants = tmp_path / "keys", tmp_path / "tenants"
    keys.write_text("sk-test,sk-first")
    tenants.write_text("{}")
    settings = {"SLUICE_API_KEYS_FILE": str(keys), "SLUICE_TENANTS_FILE": str(tenants), "SLUICE_API_KEYS": ""}
    with fleet(tmp_path, apis=1, workers=1, **settings) as gateway:
        ask = lambda key: gateway.client.post(  # noqa: E731
            f"{gateway.url}/v1/chat/completions", json=body_of(CHAT, "demo-n1-d0"), headers=headers_of(key)
        )
        assert [ask(key).status_code for key in ("sk-first", "sk-second")] == [200, 401]

        keys.write_text("sk-test,sk-second")
        assert run_command(gateway, "config", "reload").returncode == 0
        assert [ask(key).status_code for key in ("sk-first", "sk-second")] == [401, 200]

        keys.write_text("")
        assert run_command(gateway, "config", "reload").returncode == 1
        assert [ask(key).status_code for key in ("sk-first", "sk-second")] == [401, 200]
        assert ask("").status_code == 401


def test_check_says_what_a_file_would_change_and_what_is_wrong_with_it(gateway: Fleet, aliases: Path, tmp_path: Path):
    new = tmp_path / "new.yaml"
    new.write_text("prices: {demo/x: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}}\nworker_slots: 7\n")

    checked = run_command(gateway, "config", "check", str(new), "--json")

    assert checked.returncode == 0, checked.stdout
    answer = json.loads(checked.stdout)
    assert answer["changes"] == {"changed": {"prices": {"added": ["demo/x"]}}, "needs_restart": ["worker_slots"]}
    assert [(row["would_change"], row["needs_restart"]) for row in answer["processes"]] == [(["prices"], ["worker_slots"])] * 3

    new.write_text("worker_slot: 7\n")
    checked = run_command(gateway, "config", "check", str(new))
    assert (checked.returncode, "worker_slot in " in checked.stdout) == (1, True)
    aliases.write_text("{")
    assert run_command(gateway, "config", "check").returncode == 1
