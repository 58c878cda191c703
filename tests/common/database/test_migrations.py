"""Do the migrations make the tables that the code means, whoever runs them, and however many at once?"""

import asyncio
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from common.database.engine import database_url as to_url
from common.database.engine import is_sqlite, open_database
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase
from common.database.migrate import FOLDER, HEAD, ensure_current, is_current, migrate, revision
from common.database.tables import Base
from common.ledger.reports import usage
from common.ledger.usage_report import UsageQuestion

ROOT = Path(__file__).parents[3]


async def test_an_empty_database_gets_all_tables(database_url: str):
    assert not await is_current(database_url)

    done = await migrate(database_url)

    assert (done.before, done.after) == (None, HEAD)
    assert await is_current(database_url)


async def test_migrations_and_models_agree(database_url: str):
    await migrate(database_url)
    engine = open_database(database_url)
    try:
        async with engine.connect() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), Base.metadata)
            )
    finally:
        await engine.dispose()

    assert differences == []


async def test_rows_of_the_version_before_are_kept_and_it_may_go_on_writing(database_url: str):
    engine = open_database(database_url)
    try:
        await migrate_to(engine, "0001")
        await write_as_0001(engine, "gen_before")

        await migrate(database_url)
        await write_as_0001(engine, "gen_after")

        lines = (await usage(engine, UsageQuestion(["provider"], 0, 10, {}))).lines
        assert [(line.requests, line.cost_nano_usd, line.tokens["input_tokens"]) for line in lines] == [(2, 14, 20)]
    finally:
        await engine.dispose()


async def migrate_to(engine: AsyncEngine, target: str) -> None:
    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, target)

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


async def write_as_0001(engine: AsyncEngine, generation_id: str) -> None:
    """Write a row with the columns of the first revision, as a worker of the version before does."""
    words = dict.fromkeys(("owner", "tenant", "request_id", "dialect", "operation", "model", "provider", "cache"), "x")
    counts = dict.fromkeys(("input_tokens", "output_tokens", "tries"), 10)
    row = {"id": generation_id, "outcome": "completed", "created_ms": 1, "ended_ms": 2, "cost_nano_usd": 7, "continuations": 0}
    marks = dict.fromkeys(("stream", "is_estimated", "is_partial", "has_brought_key"), False)
    row |= {**words, **counts, **marks}
    names = ", ".join(row)
    async with engine.begin() as connection:
        await connection.execute(text(f"INSERT INTO ledger ({names}) VALUES ({', '.join(':' + name for name in row)})"), row)


async def test_a_second_migration_does_nothing(database_url: str):
    await migrate(database_url)

    done = await migrate(database_url)

    assert (done.before, done.after) == (HEAD, HEAD)


async def test_many_may_migrate_at_once(database_url: str):
    done = await asyncio.gather(*(migrate(database_url) for _ in range(8)))

    assert sorted(each.before or "none" for each in done) == [HEAD] * 7 + ["none"]


async def test_a_failed_migration_leaves_nothing_behind(database_url: str):
    engine = open_database(database_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE audit (id int)"))  # What the first migration stumbles over.

        with pytest.raises(DatabaseUnavailable, match="audit"):
            await migrate(database_url)

        assert await revision(engine) is None
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE audit"))
    finally:
        await engine.dispose()
    assert (await migrate(database_url)).before is None


async def test_whoever_opens_sqlite_first_migrates_it_and_postgresql_names_the_command(database_url: str):
    engine = open_database(database_url)
    try:
        if is_sqlite(engine):
            await ensure_current(engine)
            assert await revision(engine) == HEAD
        else:
            with pytest.raises(DatabaseUnavailable, match="run `sluice migrate`"):
                await ensure_current(engine)
            await migrate(database_url)
            await ensure_current(engine)
    finally:
        await engine.dispose()


async def test_a_database_that_is_ahead_serves_this_version_too(database_url: str):
    await migrate(database_url)
    engine = open_database(database_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

        await ensure_current(engine)

        assert (await migrate(database_url)).after == "9999"
    finally:
        await engine.dispose()


async def test_two_processes_may_open_a_new_sqlite_at_once(tmp_path: Path):
    code = "import asyncio, sys; from common.database.migrate import migrate; print(asyncio.run(migrate(sys.argv[1])).before)"
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new.db"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]

    told = [process.communicate(timeout=120) for process in both]

    assert sorted(out.strip() for out, _ in told) == [HEAD, "None"], told


async def test_a_lazy_database_is_imported_when_it_is_used():
    code = (
        "import sys; import common.database.lazy, common.database.errors; "
        "common.database.lazy.LazyDatabase('sqlite:///x.db'); print('sqlalchemy' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "False"


async def test_a_lazy_database_is_ready_once_it_is_given_and_after_a_failure_too(tmp_path: Path):
    folder = tmp_path / "not there yet"
    lazy = LazyDatabase(f"sqlite:///{folder}/sluice.db")
    with pytest.raises(DatabaseUnavailable):
        await lazy.engine()
    folder.mkdir()

    assert await revision(await lazy.engine()) == HEAD

    await lazy.close()


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgres://u@h/n", "postgresql+asyncpg"),
        ("postgresql://u@h/n", "postgresql+asyncpg"),
        ("postgresql+asyncpg://u@h/n", "postgresql+asyncpg"),
    ],
)
def test_a_url_gets_our_driver(given: str, driver: str):
    assert to_url(given).drivername == driver


@pytest.mark.parametrize("given", ["mysql://h/n", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_a_url_that_will_not_do_names_the_setting(given: str):
    with pytest.raises(ValueError, match="SLUICE_DATABASE_URL"):
        to_url(given)


def test_an_installed_package_has_the_migrations():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "common" / "database" / "migrations"

    assert "common*" in packages["packages"]["find"]["include"]
    # Nothing but modules of packages that setuptools finds.
    assert {path.suffix for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts} == {".py"}
    assert (folder / "__init__.py").exists()
    assert (folder / "versions" / "__init__.py").exists()
