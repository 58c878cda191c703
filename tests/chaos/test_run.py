"""Does a short run with a fault every second leave every stream complete, or ended by one explicit error?"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fleet import missing
from tests.support.fleet import ROOT

# Each has the faults of Redis among its first: it is killed and frozen, or fails over.
SEEDS = {"one": "7", "sentinel": "34"}


@pytest.mark.parametrize("redis", SEEDS)
@pytest.mark.long  # CI calls `make chaos` instead.
@pytest.mark.timeout(600)  # Twenty seconds of faults; the rest is starting, waiting for the last streams, and stopping.
def test_no_client_sees_what_none_may_see(tmp_path: Path, redis: str):
    if reason := missing():
        pytest.skip(reason)
    length = ["--minutes", "0.33", "--streams", "15", "--every", "1"]
    command = [sys.executable, "-m", "tests.chaos", "--redis", redis, "--seed", SEEDS[redis], *length, "--keep", str(tmp_path)]

    # A process of its own, on a loop of its own kind, as `make chaos` has it.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "resume, asked to answered: none" not in done.stdout  # Somebody was cut, and came back.
