"""Does docs/compatibility.md say what is so? Every cell and every field of it is tried anew."""

import importlib.metadata
import typing
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.beta import message_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

from common.dialects import DIALECTS
from common.vendors.table import Vendor
from tests.support.compatibility.cells import FEATURES, REMOTE
from tests.support.compatibility.page import fates_of, page, row_of
from tests.support.compatibility.request_fields import CHAT_VENDORS, FIELDS, dropped_by

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()


def rows_under(title: str) -> dict[str, list[str]]:
    """The rows of the table under a title, by their first cell; a number in a cell stands for its note."""
    section = PAGE.partition(f"\n{title}\n")[2].partition("\n#")[0]
    notes = dict(line.split(". No: ", 1) for line in section.split("\n") if ". No: " in line)
    lines = [line.strip("| ").split(" | ") for line in section.split("\n") if line.startswith("| `")]

    def meaning(cell: str) -> str:
        return notes[cell[4:-1]].removesuffix(".") if cell.startswith("no (") else cell

    return {name.strip("`"): [meaning(cell) for cell in cells] for name, *cells in lines}


@pytest.mark.parametrize("vendor", REMOTE, ids=lambda vendor: vendor.id)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_cell_is_so(dialect: str, vendor: Vendor) -> None:
    said = rows_under(f"## {dialect}")[vendor.id]

    assert dict(zip(names, said, strict=True)) == dict(zip(names, row_of(dialect, vendor), strict=True))


names = [feature.name for feature in FEATURES]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_has_the_fate_that_is_told(dialect: str) -> None:
    said = rows_under(f"### {dialect}")

    assert {name: [cell.replace("Sluice", "own") for cell in cells] for name, cells in said.items()} == fates_of(dialect)


def test_every_vendor_gets_what_is_told() -> None:
    said = rows_under("### Vendors of the openai-chat wire")

    assert {vendor: ", ".join(f"`{name}`" for name in dropped_by(vendor)) or "nothing" for vendor in CHAT_VENDORS} == {
        vendor: cells[0] for vendor, cells in said.items()
    }


TRIED_WITH = {
    "openai-chat": ("openai", "3.52."),
    "openai-responses": ("openai", "3.52."),
    "anthropic-messages": ("anthropic", "2.11."),
}
# What the tables of features are about, and headers that the SDKs take for fields.
ELSEWHERE = {"model", "messages", "input", "betas"}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("openai-chat", completion_create_params.CompletionCreateParamsBase),
        ("openai-responses", response_create_params.ResponseCreateParamsBase),
        ("anthropic-messages", message_create_params.MessageCreateParamsBase),
    ],
)
def test_every_field_that_the_sdks_know_is_tried(dialect: str, body: Any) -> None:
    package, version = TRIED_WITH[dialect]
    if not importlib.metadata.version(package).startswith(version):
        pytest.skip(f"the fields are those of {package} {version}")  # Each of its releases may bring new ones.
    tried = {name for each in FIELDS[dialect] for name in each.fields}

    assert typing.get_type_hints(body).keys() - ELSEWHERE <= tried


def test_the_page_is_current() -> None:
    assert page() == PAGE, "run `make compatibility`"
