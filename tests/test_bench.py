"""Does `make bench-check` notice what became dearer? Its judge; what it measures is no test."""

import tomllib

from bench.check import BUDGETS, over_budget
from bench.run import LOADS

STORED = tomllib.loads(BUDGETS.read_text())


def test_each_workload_has_a_budget():
    assert STORED["references"].keys() == {*(load.name for load in LOADS), "request"}
    assert STORED["margin"] > 1


def test_only_what_is_over_its_budget_and_the_margin_is_named():
    budgets = {"cheap": 4.0, "dear": 4.0}

    assert over_budget({"cheap": 5.9, "dear": 6.1}, budgets, 1.5) == ["dear"]
    assert over_budget({"unknown": 0.1}, budgets, 1.5) == ["unknown"]
