"""Does every fault in docs/lessons.md name tests that are there?"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line.strip("|").split(" | ")
    for line in (ROOT / "docs" / "lessons.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| ---") and not line.endswith("| held by |")
]


def test_the_lessons_are_read():
    assert len(ROWS) >= 35


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_a_fault_is_held_by_tests_that_exist(row):
    holders = re.findall(r"`(tests/\S+\.py)::(\w+)`", row[-1])

    assert holders
    for path, name in holders:
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"
