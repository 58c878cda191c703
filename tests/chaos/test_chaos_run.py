"""Does a short run with a fault every second leave every stream complete, or ended by one explicit error?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

from chaos.fleet import missing

SEED = "7"


@pytest.mark.timeout(240)  # Twenty seconds of faults; the rest is starting, waiting for the last streams, and stopping.
def test_no_client_sees_what_none_may_see(tmp_path: Path):
    if reason := missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "chaos", "--seed", SEED, "--minutes", "0.33", "--streams", "15", "--every", "1"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "tests", "tests/e2e"])}

    # A process of its own, on a loop of its own kind, as `make chaos` has it.
    done = subprocess.run([*command, "--keep", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=220)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "resume, asked to answered: none" not in done.stdout  # Somebody was cut, and came back.
