"""Do the documents say what the code does?"""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from api.metrics import ApiMetrics
from cli import models_page, settings_page
from cli.env_example import render
from common.canonical.errors import ErrorKind
from workers.metrics import Metrics as WorkerMetrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()


def test_env_example_is_what_the_settings_say():
    assert (ROOT / ".env.example").read_text() == render(), "run `make env`"


def test_the_page_of_settings_is_what_the_settings_say():
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page.render(), "run `make env`"
    assert (ROOT / "docs" / "models.md").read_text() == models_page.render(), "run `make env`"


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_of_error_is_explained(kind):
    assert f"`{kind}`" in ERRORS


def test_every_make_verb_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(r"(?:^    |`)make ([a-z-]+(?: [a-z-]+)*)", README, re.MULTILINE)
    verbs = {verb for line in lines for verb in line.split()}

    assert {"demo", "test", "help"} <= verbs
    assert all(f"\n{verb}:" in makefile for verb in verbs)


@pytest.mark.parametrize("metrics", [ApiMetrics, WorkerMetrics])
def test_every_metric_is_explained(metrics):
    registry = CollectorRegistry()
    metrics(registry)

    for family in registry.collect():
        assert family.name.removesuffix("_max") in OPERATING


def test_every_link_between_documents_leads_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
