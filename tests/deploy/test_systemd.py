"""Are the systemd units valid, confined, and consistent with what the processes do?"""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.main import main
from cli.supervisor import KILL_MARGIN_S
from common.config.settings import Settings
from tests.support.fleet import ROOT

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
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
    assert str(tmp_path) not in verified.stderr, verified.stderr  # Warnings about our units; others are the machine's.


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


def test_the_page_names_each_unit_and_no_other():
    page = (UNITS / "README.md").read_text()
    named = set(re.findall(r"sluice-(?:api|worker)@\d+\.(?:service|socket)|sluice\.target|sluice-migrate", page))

    assert {re.sub(r"\d+", "", name) for name in named} == {
        unit.name.removesuffix(".service") if unit.name == "sluice-migrate.service" else unit.name
        for unit in UNITS.glob("sluice*")
    }
