"""Can a text stall an expression that it is matched with? Every one in the code is tried."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import expressions

ROOT = Path(__file__).parents[2]
SOURCES = {
    path: path.read_text()
    for package in expressions.PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "migrations" not in path.parts
}
# Expressions that are written where they are used, so that nothing can look them up. They meet settings, a page and Lua of our
# own, a piece of text that is cut to a few hundred characters before, or (in the first) a path of which they drop repeated
# slashes.
WRITTEN_IN_PLACE = {
    "api/server/http_errors.py": 1,
    "api/server/answer_headers.py": 1,
    "common/access/principal.py": 1,
    "common/guardrails/injection.py": 1,
    "common/guardrails/expressions.py": 1,
    "common/config/proxies.py": 1,
    "common/config/setting_doubts.py": 2,
    "common/config/setting_values.py": 1,
    "common/config/groups/models.py": 1,
    "common/redis/scripts.py": 1,
    "workers/providers/shared/errors.py": 1,
}


@pytest.mark.timeout(3600)  # A minute or two of CPU time, which is what is bounded; a busy machine takes long over it.
def test_no_text_stalls_an_expression():
    tried = subprocess.run(
        [sys.executable, "-m", "tests.support.sources.expressions"],
        cwd=ROOT,
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )

    names = tried.stdout.splitlines()
    assert tried.returncode != -signal.SIGXCPU, f"{names[-1]} took more than {expressions.CPU_S} s of CPU time"
    assert tried.returncode == 0, tried.stderr
    assert len(names) > 30


@pytest.mark.parametrize("bad", [r"(a+)+$", r"(?:a|a)*b", r"\s*\S*\s*x", r"a*a*b", r"/v\d+\w*$"])
def test_one_that_can_be_stalled_is_found(bad: str):
    """The probe of the probe: without it, a passing test would say nothing."""
    lines = [
        "import re",
        "from tests.support.sources import expressions",
        "expressions.CPU_S = 1",
        f"expressions.try_one('bad', re.compile({bad!r}))",
    ]

    tried = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=False, timeout=120)

    assert tried.returncode == -signal.SIGXCPU


def test_every_expression_that_meets_others_text_is_one_that_is_tried():
    in_place = {
        str(path.relative_to(ROOT)): len(found)
        for path, source in SOURCES.items()
        if (found := re.findall(r"\bre(?:gex)?\.(?:match|search|fullmatch|sub|subn|split|findall|finditer)\(", source))
    }

    assert in_place == WRITTEN_IN_PLACE


def test_those_that_are_used_from_the_start_alone_are():
    for name in expressions.ONLY_FROM_THE_START:
        used = rf"{re.escape(name)}\.(?:search|sub|subn|split|findall|finditer)\("
        assert not [path for path, source in SOURCES.items() if re.search(used, source)]
