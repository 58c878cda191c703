"""Do the documents say what the code does?"""

from pathlib import Path

import pytest

from cli.env_example import render
from common.errors import ErrorKind

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()


def test_env_example_is_what_the_settings_say():
    assert (ROOT / ".env.example").read_text() == render(), "run `make env`"


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_of_error_is_explained(kind):
    assert f"`{kind}`" in ERRORS


def test_every_make_verb_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    verbs = {word for line in README.splitlines() for word in line.replace("`", " ").split() if False}
    verbs |= {
        line.split("make ")[1].split()[0].strip("`.,;") for line in README.splitlines() if "make " in line and "`make" in line
    }

    assert verbs
    assert all(f"\n{verb}:" in makefile for verb in verbs)


def test_every_link_between_documents_leads_somewhere():
    import re

    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
