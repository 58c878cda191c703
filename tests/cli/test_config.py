"""What ``sluice config`` says of files that cannot be used."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from cli.main import main
from common.config.settings import Settings
from common.live.reloadable import digests_of
from common.live.reports import Report
from common.redis import keyspace


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_reload_with_a_wrong_file_says_why_and_that_nothing_was_reloaded(folder: Path):
    (folder / "sluice.yaml").write_text("port: x\n")

    result = CliRunner().invoke(main, ["config", "reload"], env={"SLUICE_PORT": ""})

    assert result.exit_code == 2
    reason, end = result.output.splitlines()
    assert (reason.startswith(f"port in {folder}/sluice.yaml: "), end) == (True, "Nothing was reloaded.")


def test_a_check_names_both_lines_of_a_key_that_is_written_twice(folder: Path):
    (folder / "sluice.yaml").write_text("routes: {a: {targets: [x]}}\nroutes: {b: {targets: [y]}}\n")

    result = CliRunner().invoke(main, ["config", "check"])

    assert (result.exit_code, "in line 1 and in line 2" in result.output) == (1, True)


@pytest.fixture
def server(redis_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setenv("SLUICE_REDIS_URL", redis_server.url)
    client = Redis.from_url(redis_server.url)
    client.flushall()
    yield client
    client.close()


def report(server: Redis, path: Path, host: str, digests: dict[str, str] | None = None) -> None:
    """Be a process that has read a file."""
    running = Report(name="api-1", pid=os.getpid(), host=host, revision="r", files=(str(path),), digests=digests or {})
    server.set(keyspace.config_process("api-1"), running.model_dump_json())


def test_a_check_refuses_a_missing_file_as_the_process_that_has_read_it_would(folder: Path, server: Redis):
    path = folder / "sluice.yaml"
    report(server, path, socket.gethostname())

    missing = CliRunner().invoke(main, ["config", "check"])
    (folder / "new.yaml").write_text("queue_wait_s: 7\n")
    replaced = CliRunner().invoke(main, ["config", "check", "new.yaml"])  # It will be there.
    path.write_text("queue_wait_s: 7\n")
    present = CliRunner().invoke(main, ["config", "check"])

    assert (missing.exit_code, f"{path} is missing now" in missing.output, "no errors" in missing.output) == (1, True, False)
    assert (replaced.exit_code, present.exit_code) == (0, 0), replaced.output + present.output
    assert "sluice.yaml: no errors." in present.output


def test_a_check_does_not_look_for_files_of_other_machines_nor_praises_a_file_that_is_not_there(folder: Path, server: Redis):
    report(server, folder / "sluice.yaml", "another.example")

    result = CliRunner().invoke(main, ["config", "check"])

    assert result.exit_code == 0, result.output
    assert "There is no sluice.yaml here." in result.output


@pytest.mark.parametrize("own", ["", "another secret of 32 bytes or more"])
def test_a_check_with_another_secret_says_so_instead_of_naming_every_setting(
    folder: Path, server: Redis, monkeypatch: pytest.MonkeyPatch, own: str
):
    running = digests_of(Settings(secret="the secret of all processes, 32 bytes"))
    report(server, folder / "sluice.yaml", "another.example", running)
    monkeypatch.setenv("SLUICE_SECRET", own)

    text = CliRunner().invoke(main, ["config", "check"]).output
    row = json.loads(CliRunner().invoke(main, ["config", "check", "--json"]).output)["processes"][0]

    assert "not known: SLUICE_SECRET differs here" in text
    assert (row["has_another_secret"], row["would_change"], row["needs_restart"]) == (True, [], ["secret"])


def test_a_check_with_the_same_secret_names_what_differs(folder: Path, server: Redis, monkeypatch: pytest.MonkeyPatch):
    secret = "the secret of all processes, 32 bytes"
    monkeypatch.setenv("SLUICE_SECRET", secret)
    running = digests_of(Settings(worker_slots=7, aliases={"fast": ["openai/gpt-5"]}))
    report(server, folder / "sluice.yaml", "another.example", running)

    row = json.loads(CliRunner().invoke(main, ["config", "check", "--json"]).output)["processes"][0]

    assert (row["has_another_secret"], row["would_change"]) == (False, ["aliases"])
    assert "worker_slots" in row["needs_restart"]
