"""Does one slow start fail one test, or all of those that share what was to be started?"""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

counts = {{"setups": 0, "teardowns": 0}}

@pytest.fixture(scope="module")
def below():
    return 1

@pytest.fixture(scope="module")
def shared(below):
    counts["setups"] += 1
    if counts["setups"] <= {failing}:
        raise {error}
    yield counts["setups"]
    counts["teardowns"] += 1

@pytest.mark.parametrize("count", range(6))
def test_it(shared, count):
    assert shared == {failing} + 1

def test_the_fixture_was_set_up_no_more_than_needed():
    assert counts == {{"setups": {setups}, "teardowns": 0}}
"""


def outcome(folder: Path, **words: object) -> str:
    (folder / "test_shared.py").write_text(TESTS.format(**words))
    plugins = ["-p", "no:cacheprovider", "-p", "tests.support.retried_fixtures"]
    options = [*plugins, "-q", "-c", "/dev/null", "--rootdir", str(folder)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "test_shared.py")],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.splitlines()[-1].rpartition(" in ")[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"failing": 0, "setups": 1}, "7 passed"),
        ({"failing": 1, "setups": 2}, "6 passed, 1 error"),
        ({"failing": 2, "setups": 3}, "5 passed, 2 errors"),
        ({"failing": 9, "setups": 3}, "1 passed, 6 errors"),
        ({"failing": 9, "setups": 1, "error": "pytest.skip.Exception('no server')"}, "1 passed, 6 skipped"),
    ],
)
def test_a_shared_fixture_that_failed_is_set_up_again_for_the_next_test(tmp_path, words, told):
    assert outcome(tmp_path, **{"error": "AssertionError('not in time')", **words}) == told
