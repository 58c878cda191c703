"""What ``sluice config`` says of files that cannot be used."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from cli.main import main
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
    assert (reason.startswith("port in sluice.yaml: "), end) == (True, "Nothing was reloaded.")


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


def report(server: Redis, path: Path, host: str) -> None:
    """Be a process that has read a file."""
    running = Report(name="api-1", pid=os.getpid(), host=host, revision="r", files=(str(path),))
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
