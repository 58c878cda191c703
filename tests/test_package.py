"""Is the package complete: does what is built run without the repository, and say which version it is?"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from cli.dev.embedded_redis import free_port
from common.version import VERSION
from tests.support.fleet import ROOT

PACKAGES = ("api", "cli", "common", "demo_provider", "workers")
WHEEL, SDIST = f"sluice_gateway-{VERSION}-py3-none-any.whl", f"sluice_gateway-{VERSION}.tar.gz"


def sources() -> list[str]:
    """Return what a commit of the present tree would have."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("git does not say which files belong to the project")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("sources")
    for path in sources():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def dist(copy: Path) -> Path:
    """The source distribution, and the wheel that is built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    return copy / "dist"


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(dist: Path):
    expected = {path for path in sources() if path.startswith(tuple(f"{package}/" for package in PACKAGES))}

    in_wheel = {name for name in zipfile.ZipFile(dist / WHEEL).namelist() if ".dist-info/" not in name}

    assert in_wheel == expected


def test_the_source_distribution_has_what_one_needs_to_read_run_and_deploy_it(dist: Path):
    head = f"sluice_gateway-{VERSION}/"
    with tarfile.open(dist / SDIST) as archive:
        in_sdist = {name.removeprefix(head) for name in archive.getnames()}
    wanted = {path for path in sources() if path.startswith((*(f"{package}/" for package in PACKAGES), "docs/", "deploy/"))}

    assert wanted | {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "docker-compose.yml"} <= in_sdist
    assert not {name for name in in_sdist if name.startswith(("tests", ".env")) and name != ".env.example"}


def test_its_metadata_has_the_name_the_version_and_the_license(dist: Path):
    info = f"sluice_gateway-{VERSION}.dist-info"
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        commands = wheel.read(f"{info}/entry_points.txt").decode()

        assert (metadata["Name"], metadata["Version"]) == ("sluice-gateway", VERSION)
        assert metadata["License-Expression"] == "MIT"
        assert b"MIT License" in wheel.read(f"{info}/licenses/LICENSE")
    assert {"sluice = cli.main:main", "sluice-gateway = cli.main:main"} <= set(commands.splitlines())


def test_everything_runs_from_the_files_of_the_wheel_alone(dist: Path, tmp_path: Path):
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    for taken in ("api", "common"):  # What a user's own project may have: it is none of ours.
        (elsewhere / taken).mkdir(parents=True)
        (elsewhere / taken / "__init__.py").write_text("raise ImportError('this is not a part of Sluice')")
    zipfile.ZipFile(dist / WHEEL).extractall(installed)
    from_wheel = {"PYTHONPATH": str(installed)}
    python = (sys.executable, "-P")
    where = run(*python, "-c", "import api, common; print(api.__file__, common.__file__)", cwd=elsewhere, **from_wheel)
    assert where.stdout.count(str(installed)) == 2

    sample = run(
        *python, "-m", "cli.main", "dev", "--once", "--port", free_port(), cwd=elsewhere, **from_wheel
    )  # Its status says whether the answer was complete.
    version = run(*python, "-m", "cli.main", "--version", cwd=elsewhere, **from_wheel)

    assert "One answer through the whole path" in sample.stdout
    assert version.stdout.split()[-1] == VERSION


@pytest.mark.long
def test_it_installs_into_an_empty_environment_and_streams_an_answer(dist: Path, tmp_path: Path):
    venv.create(tmp_path / "empty", with_pip=True)
    commands = tmp_path / "empty" / "bin"
    run(commands / "pip", "install", "--constraint", ROOT / "constraints.txt", f"{dist / WHEEL}[embedded]", cwd=tmp_path)

    for command in ("sluice", "sluice-gateway"):
        sample = run(commands / command, "dev", "--once", "--port", free_port(), cwd=tmp_path)

        assert "One answer through the whole path" in sample.stdout


def test_a_release_moves_the_changelog_sets_the_version_builds_and_tags(copy: Path):
    git = ("git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
    (copy / ".venv").symlink_to(sys.prefix)
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", ".", cwd=copy)
    run(*git, "commit", "--quiet", "--message", "all", cwd=copy)
    env = {f"GIT_{who}_{what}": "somebody@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    run(copy / ".ci" / "release", "98.7.6", cwd=copy, **env)

    changelog = (copy / "CHANGELOG.md").read_text()
    assert changelog.index("## Unreleased") < changelog.index("## 98.7.6 (20") < changelog.index("\n- ")
    assert 'VERSION = "98.7.6"' in (copy / "common" / "version.py").read_text()
    assert (copy / "dist" / "sluice_gateway-98.7.6-py3-none-any.whl").exists()
    assert run("git", "describe", cwd=copy).stdout.strip() == "v98.7.6"
    assert run("git", "status", "--porcelain", cwd=copy).stdout == ""

    for version, reason in (("98.7.6", "already"), ("99", "Name the version"), ("99.0.0", "nothing under 'Unreleased'")):
        refused = subprocess.run([copy / ".ci" / "release", version], cwd=copy, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert reason in refused.stderr


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").iterdir()), ids=lambda path: path.name)
def test_a_workflow_is_valid_and_may_only_read_the_repository(workflow: Path):
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", workflow, cwd=ROOT)

    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}


def test_workflows_run_what_developers_run():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    makefile = (ROOT / "Makefile").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]

    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert all(f"\n{hook['entry'].removeprefix('make ')}:" in makefile for hook in hooks)
