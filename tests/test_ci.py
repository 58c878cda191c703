"""Does CI name the tests that needed a second run, fail where that did not help, and start an engine for containers?"""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources.private_parts import ROOT

MAKE = """#!/usr/bin/env bash
# Fails so many times, as pytest does: with the names of what failed in its cache.
echo "$*" >>"$CALLS"
mkdir -p .pytest_cache/v/cache
[ -z "$FAILED" ] || echo "$FAILED" >.pytest_cache/v/cache/lastfailed
[ "$(wc -l <"$CALLS")" -gt "$FAILURES" ]
"""


def run_tests_twice(folder: Path, failures: int, failed: str) -> subprocess.CompletedProcess[str]:
    """What CI says of a `make test` that fails so many times."""
    (folder / "make").write_text(MAKE)
    (folder / "make").chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    env = {"CALLS": str(folder / "calls"), "FAILURES": str(failures), "FAILED": failed}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f". {ROOT}/.ci/lib.sh; test_twice; print_flaky"],
        cwd=folder,
        env={**os.environ, **env, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("failures", "failed", "status", "last"),
    [
        (0, "", 0, "0 flaky"),
        (1, '{"tests/a.py::test_a": true}', 0, "1 flaky: tests/a.py::test_a"),
        (
            1,
            '{"tests/a.py::test_a": true, "tests/b.py::test_b[x y]": true}',
            0,
            "2 flaky: tests/a.py::test_a tests/b.py::test_b[x y]",
        ),
        (2, '{"tests/a.py::test_a": true}', 1, "exit status 1: make test WORKERS=0"),
        (9, "", 1, "exit status 1: make test WORKERS=0"),
    ],
)
def test_a_flaky_test_is_named_and_one_that_fails_twice_fails(tmp_path, failures, failed, status, last):
    done = run_tests_twice(tmp_path, failures, failed)

    assert done.returncode == status, done.stderr
    assert last in done.stdout.splitlines()[-1]
    assert ("failed at first: tests/a.py::test_a" in done.stdout) == bool(failed)


ENGINE = {  # They stand for a machine: `up` is there while its engine runs, and `runs` names what was run.
    "id": "echo ${USER_ID:-0}",
    "docker": "test -e up",
    "dockerd": """
        echo $$ >runs; trap 'rm -f up; exit' TERM; [ -n "${BROKEN:-}" ] && echo "no right to mount" && exit 1
        touch up; while :; do sleep 0.05; done""",
    "apt-get": "echo apt >>runs; exit 100",  # Its archives are away.
    "debootstrap": "",
    "iptables": "",
    "apparmor_parser": "",
    "build": "echo made the images; test -e up",
}


def start_engine(folder: Path, *, missing: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "stand-ins").mkdir()
    (folder / "lib.sh").symlink_to(ROOT / ".ci" / "lib.sh")
    for name, text in ENGINE.items():
        if name != missing:
            path = folder / ("stand-ins/build" if name == "build" else name)
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
    for name in ("bash", "sh", "dirname", "mktemp", "rm", "touch", "sleep", "tail"):
        (folder / name).symlink_to(shutil.which(name) or "")
    return subprocess.run(
        [shutil.which("bash") or "", "-euo", "pipefail", "-c", ". ./lib.sh; start_engine; echo then what comes"],
        cwd=folder,
        env={"PATH": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_ci_starts_an_engine_where_none_runs_and_ends_it(tmp_path):
    done = start_engine(tmp_path)

    assert (done.returncode, done.stdout) == (0, "made the images\nthen what comes\n"), done.stderr
    assert not (tmp_path / "up").exists()
    assert not Path(f"/proc/{(tmp_path / 'runs').read_text().strip()}").exists()


def test_ci_uses_an_engine_that_runs_and_leaves_it_running_also_where_packages_cannot_be_had(tmp_path):
    (tmp_path / "up").touch()

    done = start_engine(tmp_path, missing="iptables")

    assert (done.returncode, done.stdout) == (0, "made the images\nthen what comes\n"), done.stderr
    assert (tmp_path / "runs").read_text() == "apt\n"
    assert (tmp_path / "up").exists()


@pytest.mark.parametrize(
    ("missing", "variables", "reason"),
    [
        ("dockerd", {}, "No container engine starts here"),
        ("", {"BROKEN": "yes"}, "no right to mount"),
        ("", {"USER_ID": "1000"}, "only root may start one"),
    ],
)
def test_ci_goes_on_without_an_engine_where_there_can_be_none_and_says_so(tmp_path, missing, variables, reason):
    done = start_engine(tmp_path, missing=missing, **variables)

    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert "tests are skipped" in done.stdout
    assert done.stdout.endswith("then what comes\n")


def test_ci_calls_what_the_readme_calls_and_both_depths_name_verbs_that_there_are():
    verbs = {
        line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line and line[0].isalpha()
    }
    for script in ("run", "check-all", "lib.sh"):
        words = (ROOT / ".ci" / script).read_text().split()
        called = {after for word, after in itertools.pairwise(words) if word == "make" and after.isalpha()}
        assert called <= verbs
    assert "test_twice" in (ROOT / ".ci" / "run").read_text()
    assert "step make test" in (ROOT / ".ci" / "lib.sh").read_text()
