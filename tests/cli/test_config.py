"""What ``sluice config`` says of files that cannot be used."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main


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
