"""Does every promise in docs/security.md name tests that are there?"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
SECTIONS = ("Access", "Limits", "Budgets", "Cached and shared answers", "The ledger", "Guardrails", "Hardening")
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| ---") and "`tests/" in line
]


def test_every_part_makes_promises():
    for section in SECTIONS:
        text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        promises = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| promise"))]
        tables = [line for line in promises if line.count(" | ") == 1]
        assert len(tables) >= 3, section
        assert all("`tests/" in line for line in tables), section


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:60])
def test_a_promise_is_held_by_tests_that_exist(row: list[str]):
    holders = re.findall(r"`(tests/\S+\.py)::(\w+)`", row[-1])

    assert holders
    for path, name in holders:
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"
