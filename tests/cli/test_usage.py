"""What do ``sluice usage``, ``migrate`` and ``doctor`` say of the ledger?"""

import asyncio
import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.doctor.command import examine_database, unknown_prices
from cli.main import main
from cli.usage import as_csv, as_table
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.database.engine import open_database
from common.database.migrate import HEAD, migrate
from common.database.store import add
from common.ledger.usage_report import Line, Report, UsageQuestion
from common.metering.pricing import Price

NOON = 1_795_262_400_000  # 2026-11-21T12:00Z


NAMES = {"key_1": "shop"}


def line(group: dict[str, str | None], **more: Any) -> Line:
    tokens = dict.fromkeys(
        ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), 1_000
    )
    fields: dict[str, Any] = {
        "requests": 4,
        "cost_nano_usd": 1_500_000,
        "saved_nano_usd": 9,
        "estimated": 1,
        "unpriced": 0,
        "users": 3,
    }
    return Line(group, tokens=tokens, **{**fields, **more})


def report(*lines: Line, by: tuple[str, ...] = ("key",), has_more: bool = False, names: dict[str, str] | None = None) -> Report:
    return Report(UsageQuestion(by, NOON, NOON), list(lines), has_more, names or {})


def row(generation_id: str, **fields: Any) -> dict[str, Any]:
    names = ("id", "owner", "tenant", "request_id", "dialect", "operation", "model", "outcome", "cache")
    numbers = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_nano_usd")
    empty = ("end_user", "provider", "upstream_model", "error_kind", "error_code", "finish_reason", "answered_by")
    none = ("input_cost_nano_usd", "queue_wait_ms", "ttft_ms", "duration_ms")
    moments = {"created_ms": NOON, "ended_ms": NOON, "tries": 1, "continuations": 0}
    flags = {"stream": True, "is_estimated": False, "is_partial": False, "has_brought_key": False}
    known = dict.fromkeys(names, "x") | dict.fromkeys(numbers, 7) | dict.fromkeys((*empty, *none))
    return {**known, **moments, **flags, "id": generation_id, **fields}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/sluice.db"
    monkeypatch.setenv("SLUICE_DATABASE_URL", url)
    return url


def fill(url: str, *rows: dict[str, Any]) -> None:
    async def work() -> None:
        await migrate(url)
        engine = open_database(url)
        try:
            await add(engine, rows)
        finally:
            await engine.dispose()

    asyncio.run(work())


def sluice(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_a_table_is_aligned_and_says_what_is_not_in_it():
    said = as_table(report(line({"key": "key_1"}), line({"key": None}, unpriced=2, requests=1_200), has_more=True, names=NAMES))

    heading, first, second, *notes = said.splitlines()
    money = "cost USD saved USD estimated users tokens/request USD/user"
    words = f"key name requests input output cache read cache write reasoning {money}"
    assert " ".join(heading.split()) == words
    assert first.split()[:3] == ["key_1", "shop", "4"]
    assert " 0.0015 " in first
    assert " 25% " in first
    assert second.split()[:3] == ["–", "–", "1,200"]
    assert first.index("0.0015") + len("0.0015") == heading.index("cost USD") + len("cost USD")
    assert "The price of 2 generations is not known" in notes[0]
    assert "There are more lines than shown" in notes[1]


def test_no_name_steers_the_terminal():
    assert "\x1b" not in as_table(report(line({"model": "\x1b[2Jm"}), by=("model",)))


def test_no_name_is_a_formula_to_a_spreadsheet():
    told = list(csv.DictReader(io.StringIO(as_csv(report(line({"model": '=HYPERLINK("http://x")'}), by=("model",))))))

    assert told[0]["model"] == '\'=HYPERLINK("http://x")'
    assert told[0]["cost_usd"] == "0.0015"


def test_an_empty_report_is_said_in_words_and_keeps_its_heading_as_csv():
    assert as_table(report()) == "Nothing was used in this time.\n"
    assert as_csv(report()).startswith("key,key_name,requests,input_tokens")


def test_the_command_groups_and_filters(url: str):
    fill(url, row("gen_1", owner="key_a"), row("gen_2", owner="key_b"), row("gen_3", owner="key_b", tenant="acme"))

    by_key = sluice("usage", "--since", "2026-11-21", "--until", "2026-11-22", "--format", "json")
    of_one = sluice(
        "usage", "--key", "key_b", "--by", "tenant", "--since", "2026-11-01", "--until", "2026-12-01", "--format", "json"
    )
    earlier = sluice("usage", "--since", "2026-11-20", "--until", "2026-11-21")

    told = json.loads(by_key.output)
    assert {each["key"]: each["requests"] for each in told["data"]} == {"key_a": 1, "key_b": 2}
    assert (told["since"], told["until"]) == ("2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z")
    assert {each["tenant"] for each in json.loads(of_one.output)["data"]} == {"x", "acme"}
    assert earlier.output == "Nothing was used in this time.\n"


@pytest.mark.parametrize("command", [["usage"], ["audit", "show", "gen_1"]])
def test_no_database_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]):
    file = tmp_path / "typing_error.db"
    monkeypatch.setenv("SLUICE_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("SLUICE_SECRET", "0" * 32)

    result = sluice(*command)

    assert result.exit_code == 1
    assert f"there is no file {file}" in result.output
    assert not file.exists()


@pytest.mark.parametrize("args", [["--since", "soon"], ["--by", "secret"], ["--format", "xml"], ["--limit", "0"]])
def test_a_wrong_option_is_explained(url: str, args: list[str]):
    result = sluice("usage", *args)

    assert result.exit_code == 2
    assert "Error" in result.output


def test_a_database_that_is_not_there_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://somebody:geheim@127.0.0.1:9/sluice")

    results = [sluice("usage"), sluice("migrate"), sluice("migrate", "--check")]

    assert [result.exit_code for result in results] == [1, 1, 1]
    for result in results:
        assert "cannot be used" in result.output
        assert "geheim" not in result.output


def test_migrate_says_what_it_did(url: str):
    check, first, second, after = (
        sluice(*args) for args in (["migrate", "--check"], ["migrate"], ["migrate"], ["migrate", "--check"])
    )

    assert (check.exit_code, first.exit_code, second.exit_code, after.exit_code) == (1, 0, 0, 0)
    assert "Run `sluice migrate`" in check.output
    assert f"went from empty to revision {HEAD}" in first.output
    assert f"was at revision {HEAD} already" in second.output
    assert "nothing to do" in after.output


def test_a_url_of_another_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_DATABASE_URL", "mysql://h/n")

    result = sluice("usage")

    assert result.exit_code == 2
    assert "SLUICE_DATABASE_URL" in result.output


async def test_the_doctor_tells_the_databases_state(database_url: str):
    settings = Settings(database_url=database_url)
    is_sqlite = database_url.startswith("sqlite")

    before = await examine_database(settings)
    await migrate(database_url)
    after = await examine_database(settings)

    assert (before.level, after.level) == ("note" if is_sqlite else "wrong", "ok")
    assert is_sqlite or before.fix == "Run `sluice migrate`."


def test_the_doctor_tells_which_prices_are_missing():
    lab = ProviderSettings(base_url="http://lab/v1")
    price = Price(input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1))
    settings = Settings(
        providers={"lab": lab},
        prices={"lab/known": price},
        aliases={"fast": ["lab/known"], "own": ["lab/unknown"]},
    )

    found = {finding.summary.partition(" in ")[0]: finding.level for finding in unknown_prices(settings)}

    assert found == {
        "The price of lab/unknown (alias own) is not known: budgets count its cost as nothing.": "note",
    }


async def test_to_look_at_a_sqlite_that_is_not_there_does_not_make_it(tmp_path: Path):
    found = await examine_database(Settings(database_url=f"sqlite:///{tmp_path}/sluice.db"))
    nowhere = await examine_database(Settings(database_url=f"sqlite:///{tmp_path}/no folder/sluice.db"))

    assert (found.level, nowhere.level) == ("note", "wrong")
    assert list(tmp_path.iterdir()) == []


async def test_the_doctor_keeps_the_password_to_itself():
    found = await examine_database(Settings(database_url="postgresql://somebody:geheim@127.0.0.1:9/sluice"))

    assert found.level == "wrong"
    assert "geheim" not in found.summary
    assert "nothing is lost" in found.fix


def test_without_a_secret_no_entry_can_be_read(url: str):
    result = sluice("audit", "show", "gen_1")

    assert result.exit_code == 1
    assert "SLUICE_SECRET" in result.output
