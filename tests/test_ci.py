"""Does CI name the tests that needed a second run, and fail where that did not help?"""

import itertools
import os
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
