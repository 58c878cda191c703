"""Do `make bench-check` and `make bench-peers` judge and report correctly? What they measure is no test."""

import tomllib

from bench.check import BUDGETS, over_budget
from bench.peers import Figures, page
from bench.run import LOADS

STORED = tomllib.loads(BUDGETS.read_text())


def test_each_workload_has_a_budget():
    assert STORED["references"].keys() == {*(load.name for load in LOADS), "request"}
    assert STORED["margin"] > 1


def test_only_what_is_over_its_budget_and_the_margin_is_named():
    budgets = {"cheap": 4.0, "dear": 4.0}

    assert over_budget({"cheap": 5.9, "dear": 6.1}, budgets, 1.5) == ["dear"]
    assert over_budget({"unknown": 0.1}, budgets, 1.5) == ["unknown"]


def test_the_page_has_each_gateway_s_medians_and_how_many_times_the_floor_they_are():
    ours = Figures({"paced": [60.0, 50.0, 70.0], "a request": [1.5, 1.0, 2.0]}, failed=1, sent=9)
    floor = Figures({"paced": [20.0, 20.0, 20.0], "a request": [0.05, 0.05, 0.05]}, sent=9)

    text = page({"Sluice": ours, "nginx": floor}, {"Sluice": "1.0", "nginx": "1.2"}, 3)

    assert "| | Sluice 1.0 | nginx 1.2 |" in text
    assert "| paced | 60 (3.0) | 20 |" in text
    assert "| a request | 1.5 (30.0) | 0.05 |" in text
    assert "| failed | 1 of 9 | 0 of 9 |" in text


def test_without_the_floor_the_page_has_no_ratios():
    assert "| paced | 60 |" in page({"Sluice": Figures({"paced": [60.0]})}, {"Sluice": "1.0"}, 1)
