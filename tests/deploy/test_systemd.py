"""Are the systemd units valid, confined, and consistent with what the processes do?"""

import configparser
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from cli.supervisor import KILL_MARGIN_S
from common.config.settings import Settings
from tests.support.fleet import ROOT

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
RESTARTED = [path for path in SERVICES if path.name != "sluice-migrate.service"]
NEWER_KEYS = ("RestartSteps", "RestartMaxDelaySec", "RestartMode")  # Of systemd 254. Older ones warn, and go on without them.
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(path)
    return parser


@needs_systemd
def test_systemd_accepts_all_units(tmp_path: Path):
    command = tmp_path / "sluice"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for unit in UNITS.glob("sluice*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/sluice/bin/sluice", str(command)))
    names = [unit.name.replace("@", "@8080") for unit in UNITS.glob("sluice*")]

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert verified.returncode == 0, verified.stderr
    ours = [line for line in verified.stderr.splitlines() if str(tmp_path) in line]  # Other warnings are the machine's.
    assert [line for line in ours if not any(f"'{key}'" in line for key in NEWER_KEYS)] == []


@needs_systemd
@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_is_confined(service: Path):
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", service],
        capture_output=True,
        text=True,
        check=False,
    )

    assert rated.returncode == 0, rated.stdout + rated.stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_a_command_that_exists_with_options_that_it_has(service: Path):
    words = read(service)["Service"]["ExecStart"].split()

    assert words[0] == "/opt/sluice/bin/sluice"
    command = main.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("tier", ["api", "worker"])
def test_systemd_waits_until_the_drain_is_over_and_signals_the_supervisor_alone(tier: str):
    service = read(UNITS / f"sluice-{tier}@.service")["Service"]
    drain_s = Settings.model_fields[f"{tier}_drain_s"].default

    assert int(service["TimeoutStopSec"]) > drain_s + KILL_MARGIN_S
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"
    assert service["Type"] == "notify"


@pytest.mark.parametrize("service", RESTARTED, ids=lambda path: path.name)
def test_what_only_a_person_can_mend_is_not_started_again(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = read(service)["Service"]
    command = settings["ExecStart"].split()[1]

    wrong_setting = CliRunner().invoke(main, [command], env={"SLUICE_LIMITS": "nope"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = CliRunner().invoke(
            main, [command, "--port", str(taken.getsockname()[1])], env={"SLUICE_HOST": "127.0.0.1"}
        )

    assert {str(wrong_setting.exit_code), str(taken_port.exit_code)} == {settings["RestartPreventExitStatus"]}


def test_the_port_of_an_api_is_closed_when_it_has_failed_for_good():
    failed = read(UNITS / "sluice-api@.service")["Unit"]["OnFailure"]

    assert read(UNITS / failed.replace("%i", ""))["Unit"]["Conflicts"] == "sluice-api@%i.socket"
    assert read(UNITS / "sluice-api@.service")["Service"]["RestartMode"] == "direct"  # Else each restart would close it.


@pytest.mark.parametrize("unit", [*SERVICES, UNITS / "sluice-api@.socket"], ids=lambda path: path.name)
def test_nothing_starts_without_the_file_of_the_settings(unit: Path):
    service = UNITS / "sluice-api@.service" if unit.suffix == ".socket" else unit

    assert read(unit)["Unit"]["AssertPathExists"] == f"{read(service)['Service']['WorkingDirectory']}/.env"


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_unit_runs_no_command_of_a_package_that_may_be_missing(service: Path):
    commands = {value.split()[0].lstrip("-+!@") for key, value in read(service)["Service"].items() if key.startswith("Exec")}

    assert commands <= {"/opt/sluice/bin/sluice", "/bin/sh"}


def test_the_page_names_each_unit_and_no_other():
    page = (UNITS / "README.md").read_text()
    named = set(re.findall(r"sluice(?:-[a-z-]+)?@\d+\.[a-z]+|sluice\.target|sluice-(?:migrate|demo-provider)", page))

    assert {re.sub(r"\d+", "", name) for name in named} == {
        unit.name if "@" in unit.name else unit.name.removesuffix(".service") for unit in UNITS.glob("sluice*")
    }


def test_the_commands_of_the_page_have_no_placeholder_that_would_be_taken_for_a_value():
    blocks = [line for line in (UNITS / "README.md").read_text().splitlines() if line.startswith("    ")]

    assert not [line for line in blocks if "…" in line]
