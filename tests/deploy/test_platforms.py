"""Do the files for hosting platforms parse, and do commands, settings and times in them fit together?"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cli.main import main
from common.config.settings import Settings
from common.vendors.table import VENDORS
from tests.support.fleet import ROOT

PLATFORMS = ROOT / "deploy" / "platforms"


class Tier(NamedTuple):
    """One service as a platform's file describes it. ``kill_after_s`` is the time between SIGTERM and SIGKILL."""

    command: str
    settings: dict[str, str | None]  # None: a secret, or an address that the platform fills in.
    kill_after_s: float


def heroku() -> list[Tier]:
    lines = dict(line.split(": ", 1) for line in (PLATFORMS / "heroku" / "Procfile").read_text().splitlines())
    page = (PLATFORMS / "heroku" / "README.md").read_text()
    settings = dict(re.findall(r"(SLUICE_\w+|OPENAI_API_KEY)=(\S+)", page))
    assert lines["release"] == "sluice migrate"
    assert (PLATFORMS / "heroku" / "requirements.txt").read_text() == "-c constraints.txt\n.\n"
    return [Tier(lines[process].removeprefix("sluice "), settings, 30) for process in ("web", "worker")]


def fly() -> list[Tier]:
    app = tomllib.loads((PLATFORMS / "fly" / "fly.toml").read_text())
    secrets = dict.fromkeys(re.findall(r"(\w+)=…", (PLATFORMS / "fly" / "README.md").read_text()))
    assert app["deploy"]["release_command"] == "migrate"
    assert app["http_service"]["auto_stop_machines"] == "off"
    assert (PLATFORMS / "fly" / app["build"]["dockerfile"]).resolve() == ROOT / "deploy" / "Dockerfile"
    return [
        Tier(command, {**app["env"], **secrets}, float(app["kill_timeout"].removesuffix("s")))
        for command in app["processes"].values()
    ]


def render() -> list[Tier]:
    services = yaml.safe_load((PLATFORMS / "render" / "render.yaml").read_text())["services"]
    assert [service["maxmemoryPolicy"] for service in services if service["type"] == "keyvalue"] == ["noeviction"]
    ours = [service for service in services if "dockerCommand" in service]
    assert all((ROOT / service["dockerfilePath"]).exists() and service["maxShutdownDelaySeconds"] <= 300 for service in ours)
    return [
        Tier(
            service["dockerCommand"].removeprefix("sluice "),
            {each["key"]: each.get("value") for each in service["envVars"]},
            service["maxShutdownDelaySeconds"],
        )
        for service in ours
    ]


def railway() -> list[Tier]:
    page = (PLATFORMS / "railway" / "README.md").read_text()
    block = "\n".join(line for line in page.splitlines() if line.startswith("    "))
    settings = {name: None if value == "…" else value for name, value in re.findall(r"([A-Z_]+)=(\S+)", block)}
    tiers = []
    for tier in ("api", "worker"):
        deploy = json.loads((PLATFORMS / "railway" / f"{tier}.railway.json").read_text())["deploy"]
        assert isinstance(deploy["drainingSeconds"], int)
        tiers.append(Tier(deploy["startCommand"].removeprefix("sluice "), settings, deploy["drainingSeconds"]))
    return tiers


def ecs() -> list[Tier]:
    tiers = []
    for tier in ("api", "worker"):
        (container,) = json.loads((PLATFORMS / "ecs" / f"{tier}.task.json").read_text())["containerDefinitions"]
        assert container["stopTimeout"] <= 120
        assert "/readyz" in container["healthCheck"]["command"][-1]
        plain = {each["name"]: each["value"] for each in container["environment"]}
        secrets = {each["name"]: None for each in container["secrets"]}
        tiers.append(Tier(" ".join(container["command"]), {**plain, **secrets}, container["stopTimeout"]))
    return tiers


def cloud_run() -> list[Tier]:
    tiers = []
    for name in ("api.service.yaml", "worker.workerpool.yaml"):
        template = yaml.safe_load((PLATFORMS / "cloud-run" / name).read_text())["spec"]["template"]
        (container,) = template["spec"]["containers"]
        tiers.append(Tier(" ".join(container["args"]), {each["name"]: each.get("value") for each in container["env"]}, 10))
    return tiers


@pytest.mark.parametrize("read", [heroku, fly, render, railway, ecs, cloud_run])
def test_a_platform_has_both_tiers_with_what_they_need(read: Any):
    tiers = read()

    assert [tier.command.split()[0] for tier in tiers] == ["api", "worker"]
    for command, settings, kill_after_s in tiers:
        name, *options = command.split()
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {option for option in options if option.startswith("--")} <= known
        _check_settings(settings)
        drain_s = float(settings[f"SLUICE_{name.upper()}_DRAIN_S"] or 0)
        unready_s = float(settings.get("SLUICE_API_UNREADY_S") or 0) if name == "api" else 0
        assert 0 < drain_s + unready_s < kill_after_s


def _check_settings(settings: dict[str, str | None]) -> None:
    variables = {f"SLUICE_{field.upper()}" for field in Settings.model_fields}
    vendors = {f"{vendor.env}_API_KEY" for vendor in VENDORS.values()}
    assert settings.keys() <= variables | vendors | {"PORT"}
    assert {"SLUICE_REDIS_URL", "SLUICE_DATABASE_URL", "SLUICE_SECRET", "OPENAI_API_KEY"} <= settings.keys()


def test_each_platform_has_a_page_that_the_overview_names():
    overview = (PLATFORMS / "README.md").read_text()

    for folder in (path for path in PLATFORMS.iterdir() if path.is_dir()):
        assert f"({folder.name}/README.md)" in overview
        for file in folder.iterdir():
            assert f"({folder.name}/{file.name})" in overview


# deploy.sh, with a program in place of Docker

DOCKER = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in "compose port nginx 8080") echo 127.0.0.1:8080 ;; esac
"""


def deploy(folder: Path, *words: str, env_file: str | None = None) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "deploy.sh"
    script.write_text((ROOT / "deploy.sh").read_text())
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    if env_file is not None:
        (folder / ".env").write_text(env_file)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(folder / "calls")}
    return subprocess.run(["bash", script, *words], env=env, capture_output=True, text=True, check=False)


def test_deploy_makes_the_secrets_starts_everything_and_says_where(tmp_path: Path):
    done = deploy(tmp_path, "deploy", env_file="ANTHROPIC_API_KEY=sk-ant-1\n")

    assert done.returncode == 0, done.stderr
    written = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    assert len(written["SLUICE_API_KEYS"]) == 48
    assert len(written["SLUICE_SECRET"]) == 64
    assert "compose up --detach --build --wait" in (tmp_path / "calls").read_text()
    assert "http://127.0.0.1:8080" in done.stdout
    assert written["SLUICE_SECRET"] not in done.stdout

    again = deploy(tmp_path, "deploy")
    assert again.returncode == 0
    assert dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines()) == written


def test_deploy_takes_the_other_gateways_keys(tmp_path: Path):
    deploy(tmp_path, "deploy", env_file="ANTHROPIC_API_KEY=sk-ant-1\nCCPROXY_API_KEYS=sk-ccproxy-1,sk-ccproxy-2\n")

    assert "SLUICE_API_KEYS=sk-ccproxy-1,sk-ccproxy-2\n" in (tmp_path / ".env").read_text()


@pytest.mark.parametrize("env_file", [None, "ANTHROPIC_API_KEY=\n# OPENAI_API_KEY=sk-1\n"])
def test_without_a_provider_nothing_is_started(tmp_path: Path, env_file: str | None):
    done = deploy(tmp_path, "deploy", env_file=env_file)

    assert done.returncode == 2
    assert "key of a provider" in done.stderr
    assert "compose up" not in (tmp_path / "calls").read_text()


def test_an_unknown_word_says_what_there_is(tmp_path: Path):
    done = deploy(tmp_path, "start")

    assert done.returncode == 2
    assert "deploy | update | status | logs" in done.stderr


def test_no_clients_keys_is_a_choice_that_stays(tmp_path: Path):
    deploy(tmp_path, "deploy", env_file="ANTHROPIC_API_KEY=sk-ant-1\nSLUICE_API_KEYS=\n")

    assert (tmp_path / ".env").read_text().count("SLUICE_API_KEYS") == 1
