"""How does an operator see who used how much? As a table, or as JSON or CSV for other programs."""

from typing import TYPE_CHECKING

import click

from cli.table import aligned, printable
from common.canonical.wording import counted
from common.ledger.usage_report import GROUPS, LINES_MAX, SINCE_DEFAULT, TOKENS, Report, UsageQuestion, moment_ms

if TYPE_CHECKING:
    from common.config.settings import Settings

# The table's headings, in this order. The groups come first. JSON and CSV have all names, unchanged.
_HEADINGS = {
    "key_name": "name",
    "requests": "requests",
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_tokens": "cache read",
    "cache_write_tokens": "cache write",
    "reasoning_tokens": "reasoning",
    "cost_usd": "cost USD",
    "saved_usd": "saved USD",
    "estimated_share": "estimated",
    "active_users": "users",
    "tokens_per_request": "tokens/request",
    "cost_per_user_usd": "USD/user",
}
ID_CHARS = 12  # Of a managed key.
_NOTHING = "–"  # noqa: RUF001 - Tables use a dash for a missing value.


@click.command()
@click.option(
    "--by", multiple=True, type=click.Choice(GROUPS), default=["key"], show_default="key", help="Group by this. Repeatable."
)
@click.option("--since", default=SINCE_DEFAULT, show_default=True, help="2026-11-01, 2026-11-01T09:00 (UTC), 7d or 12h ago.")
@click.option("--until", default=None, help="In the same form; excluded. Default: now.")
@click.option("--key", default=None, help="Only this key: its id, as `sluice keys list` and reports show it.")
@click.option("--tenant", default=None, help="Only this tenant.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="Output format."
)
@click.option("--limit", type=click.IntRange(1, LINES_MAX), default=1_000, show_default=True, help="The most lines.")
def usage(
    by: tuple[str, ...], since: str, until: str | None, key: str | None, tenant: str | None, form: str, limit: int
) -> None:
    """Report who used how much, and what it cost.

    \b
    sluice usage --by tenant --since 2026-11-01
    sluice usage --by day --by model --since 7d --format csv

    A generation belongs to the time at which it ended, in UTC. Costs are in US dollars, exact sums of exact prices. If a price
    is not known, nothing is added, and the report says so. "input" includes both cache figures, "output" includes reasoning.
    "estimated" is the share of generations whose tokens Sluice counted itself, because their provider did not report them.
    """
    import asyncio  # Imported here, like everything that a help page does not need.
    from datetime import UTC, datetime

    from cli.settings import load_settings, where_settings_are
    from common.database.errors import DatabaseUnavailable

    settings = load_settings()
    now = datetime.now(UTC)
    try:
        until_ms = moment_ms(until, now) if until else int(now.timestamp() * 1000)
        since_ms = moment_ms(since, now)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    owner = f"key_{key}" if key and len(key) == ID_CHARS else key  # `sluice keys` shows ids without the prefix of owners.
    filters = {name: value for name, value in (("key", owner), ("tenant", tenant)) if value}
    question = UsageQuestion(tuple(dict.fromkeys(by)), since_ms, until_ms, filters, limit)
    try:
        report = asyncio.run(fetch_report(settings, question))
    except DatabaseUnavailable as error:
        raise click.ClickException(
            f"{where_settings_are()}The database cannot be used: {error}. `sluice doctor` may tell more."
        ) from error
    click.echo({"table": as_table, "json": as_json, "csv": as_csv}[form](report), nl=False)


async def fetch_report(settings: "Settings", question: UsageQuestion) -> Report:
    from common.database.lazy import LazyDatabase

    database = LazyDatabase(settings.database_url, must_exist=True)
    try:
        engine = await database.engine()
        from common.ledger import reports  # Imported here: no other command should have to load SQLAlchemy.

        return await reports.usage(engine, question)
    finally:
        await database.close()


def as_json(report: Report) -> str:
    import orjson

    return orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2).decode() + "\n"


def as_csv(report: Report) -> str:
    """Return the lines with a heading. Clients choose names, so a value that a spreadsheet would run as a formula is quoted."""
    import csv
    import io

    out = io.StringIO()
    lines = report.to_dict()["data"]
    names = list(lines[0]) if lines else report.columns([*report.question.by, "requests", *TOKENS])
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _disarmed(value) for name, value in line.items()})
    return out.getvalue()


def _disarmed(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def as_table(report: Report) -> str:
    """Return the lines with aligned columns, and below them what the sums do not contain."""
    groups, lines = report.columns(report.question.by), report.to_dict()["data"]
    if not lines:
        return "Nothing was used in this time.\n"
    names = [*groups, *(name for name in _HEADINGS if name != "key_name")]
    rows = [[_HEADINGS.get(name, name.replace("_", " ")) for name in names]]
    rows += [[_cell(name, line[name]) for name in names] for line in lines]
    text_lines = aligned(rows, len(groups))
    if unpriced := sum(line["unpriced_requests"] for line in lines):
        text_lines.append(
            f"The price of {counted(unpriced, 'generations')} is not known, and counts as nothing: set SLUICE_PRICES."
        )
    if report.has_more:
        text_lines.append("There are more lines than shown: raise --limit, or choose a shorter time.")
    return "\n".join(text_lines) + "\n"


def _cell(name: str, value: object) -> str:
    if value is None:
        return _NOTHING
    if name == "estimated_share":
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int | float) else printable(str(value))
