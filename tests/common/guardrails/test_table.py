"""A guardrail is one file and one row: all else follows from the table."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.access.principal import Access, GuardrailPolicy
from common.config.settings import Settings
from common.guardrails.table import GUARDRAILS, Block, Mode, guardrails_for_side
from tests.support.fleet import ROOT

# All that somebody writes who adds one: a word that must not be said, and what is said instead.
SHOUT = '''"""Which words are shouted?"""

from common.guardrails.finding import Finder, Match
from common.guardrails.search import Search
from common.guardrails.table import Side


class ShoutFinder(Finder):
    def find(self, text: str, start: int) -> Match | None:
        at = text.find("HELLO", start)
        return Match(at, at + 5, "shout", "hello") if at >= 0 else None

    def find_possible_start(self, text: str, start: int) -> int | None:
        sizes = [size for size in range(1, 6) if len(text) - size >= start and "HELLO".startswith(text[-size:])]
        whole = text.find("HELLO", start)
        return min([len(text) - size for size in sizes] + [whole] * (whole >= 0), default=None)


class ShoutSearch(Search):
    def finder(self, *, blocks: bool) -> ShoutFinder:
        return ShoutFinder()


def prepare(settings: object, side: Side) -> Search:
    return ShoutSearch()
'''
ROW = '    Guardrail("shout", ("input", "output"), Block.{block}, "Do not shout ({{detail}})."),\n'
ASK = """
import asyncio, sys
from prometheus_client import CollectorRegistry
import structlog.testing
import api.metrics, workers.metrics
from api.guardrails.input_guard import InputGuard
from common.access.principal import GuardrailPolicy
from common.canonical.errors import GatewayError
from common.canonical.events import Completed, Finished, FinishReason, TextDelta, Usage
from common.canonical.job import Job, Policy
from common.config.guardrail_policy import output_modes
from common.config.settings import Settings
from workers.transcode.output_guardrails import OutputGuards

mode = sys.argv[1]
settings = Settings(_env_file=None, guardrails={"shout": mode})
assert list(GuardrailPolicy.model_fields)[-2:] == ["shout", "custom"]
assert "common.guardrails.shout" not in sys.modules

with structlog.testing.capture_logs() as logs:
    body = {"model": "m", "messages": [{"role": "user", "content": "I say HELLO HELLO"}]}
    try:
        asyncio.run(InputGuard(settings, None, api.metrics.ApiMetrics(CollectorRegistry())).check(
            settings.guardrails, body, model="m", tenant="t"))
        print(body["messages"][0]["content"])
    except GatewayError as error:
        print(error.failed.code, error)

    job = Job("gen_1", "r", "openai-chat", "m", True, Policy.STOP, 0, 1,
              guardrails=dict(output_modes(settings.guardrails)), tenant="t", body=b"{}")
    guard = OutputGuards(settings, None, workers.metrics.Metrics(CollectorRegistry())).for_job(job)
    pieces = [TextDelta("I say HE"), TextDelta("LLO and "), TextDelta("go"), Finished(FinishReason.STOP), Completed(Usage())]
    passed = [out for piece in pieces for out in guard.feed([piece], Usage)]
    guard.report()
print("".join(event.text for event in passed if isinstance(event, TextDelta)), guard.blocked)
print(*[(line["guardrail"], str(line["mode"]), line["side"], line["found"]) for line in logs], sep="\\n")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both tiers with another file beside the guardrails."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("common", "api", "workers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "common/guardrails/shout.py").write_text(SHOUT)
    return copy


def asked(tree: Path, block: str, mode: str) -> list[str]:
    """Return what both sides print that have a row for that file."""
    table = (ROOT / "common/guardrails/table.py").read_text()
    assert table.count("    CUSTOM,\n") == 1
    (tree / "common/guardrails/table.py").write_text(table.replace("    CUSTOM,\n", ROW.format(block=block) + "    CUSTOM,\n"))
    found = subprocess.run(
        [sys.executable, "-B", "-c", ASK, mode], cwd=tree, capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def counts(mode: str, inputs: int) -> list[str]:
    return [f"('shout', '{mode}', 'input', {{'shout': {inputs}}})", f"('shout', '{mode}', 'output', {{'shout': 1}})"]


def test_one_file_and_one_row_are_a_guardrail_that_replaces_on_both_sides(tree):
    assert asked(tree, "REPLACE", "block") == ["I say hello hello", "I say hello and go None", *counts("block", 2)]


def test_one_file_and_one_row_are_a_guardrail_that_refuses_on_both_sides(tree):
    refused = "guardrail_shout Do not shout (shout)."

    assert asked(tree, "REFUSE", "block") == [refused, "I say  shout", *counts("block", 1)]


@pytest.mark.parametrize(("block", "inputs"), [("REPLACE", 2), ("REFUSE", 1)])
def test_in_mode_log_it_only_counts(tree, block, inputs):
    assert asked(tree, block, "log") == ["I say HELLO HELLO", "I say HELLO and go None", *counts("log", inputs)]


def test_the_order_is_the_one_that_the_page_promises():
    assert [row.name for row in guardrails_for_side("input")] == ["size", "sanitize", "injection", "patterns", "pii", "custom"]
    assert [row.name for row in guardrails_for_side("output")] == ["patterns", "pii", "custom"]


def test_the_page_s_table_has_every_row_with_its_sides():
    page = (ROOT / "docs/guardrails.md").read_text()
    lines = {name: columns for name, *columns in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)}

    sides = {row.name: ("input" in row.sides, "output" in row.sides) for row in GUARDRAILS}
    assert {name: tuple(column.strip() != "–" for column in columns) for name, columns in lines.items()} == sides


def test_a_policy_has_a_field_for_each_row_and_no_other():
    assert set(GuardrailPolicy.model_fields) == {row.name for row in GUARDRAILS}
    assert GuardrailPolicy(pii="log").mode("pii") is Mode.LOG
    schema = Access.model_json_schema()["$defs"]["GuardrailPolicy"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["pii"]["default"] == "off"


@pytest.mark.parametrize("row", GUARDRAILS, ids=lambda row: row.name)
def test_what_refuses_a_prompt_has_words_for_it(row):
    can_refuse = "input" in row.sides and row.block is not Block.REPLACE
    assert bool(row.refusal.format(detail="x")) is can_refuse


def test_what_a_row_needs_are_settings():
    needed = {name for row in GUARDRAILS for name in row.needs_one_of}

    assert needed <= set(Settings.model_fields)


def test_who_has_no_guardrails_has_nothing_of_them_in_memory():
    """Nor the engine that they need: to load it takes a command as long as all that it does."""
    names = [f"common.guardrails.{row.name}" for row in GUARDRAILS if row.block is not Block.VERDICT]
    names += ["common.guardrails.holding", "common.guardrails.json_filter", "common.guardrails.expressions"]
    code = f"import sys, api.main, workers.main; print(*set({names}) & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)

    assert found.stdout.split() == []
    light = "import sys, common.access.principal, common.config.settings; print('regex' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", light], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "False"
