"""How does an operator see what is in the cache, and remove it?"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.table import aligned, printable

if TYPE_CHECKING:
    from common.cache.inventory import Inventory
    from common.config.settings import Settings

Result = TypeVar("Result")

_KIB = 1024
_NOTHING = "–"  # noqa: RUF001 - Tables use a dash for a missing value.


@click.group()
def cache() -> None:
    """See what is in the cache, and remove answers from it.

    The commands use the cache's Redis directly: SLUICE_CACHE_REDIS_URL, or else SLUICE_REDIS_URL, with the same value as the
    APIs and the workers. `sluice dev` has a Redis of its own, and prints how to reach it. docs/caching.md explains the cache.

    \b
    sluice cache stats
    sluice cache clear --tenant acme --model openai/gpt-5
    """


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def stats(as_json: bool) -> None:
    """Show what is in the cache, by tenant and model, and what it saved in the last 24 hours.

    \b
    sluice cache stats
    sluice cache stats --json

    "model" is the name that clients use, "answered by" the provider and its model. "saved USD" is what the answers cost when
    they were made. The last day's figures come from the ledger (SLUICE_DATABASE_URL).
    """
    import asyncio  # Imported here, like everything that a help page does not need.
    import time

    import orjson

    from cli.settings import load_settings
    from cli.usage import fetch_report
    from common.database.errors import DatabaseUnavailable
    from common.ledger.cache_report import cache_report, last_day

    settings = load_settings()
    sizes = _with_inventory(settings, lambda inventory: inventory.count())
    problem = ""
    try:
        usage = asyncio.run(fetch_report(settings, last_day(time.time_ns() // 1_000_000)))
    except DatabaseUnavailable as error:
        usage, problem = None, f"The ledger cannot be read: {error}."
    report = cache_report(sizes, settings.cache_bytes_max, usage)
    click.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() if as_json else _as_text(report))
    if problem:
        click.echo(f"! {problem}", err=True)


@cache.command()
@click.option("--tenant", help="Only answers for this tenant. The tenant of clients without a key is `anonymous`.")
@click.option("--model", help="Only answers of this model, whoever asked for it by which name; * and ? are wildcards.")
@click.option("--yes", is_flag=True, help="Do not ask before all answers are removed.")
def clear(tenant: str | None, model: str | None, yes: bool) -> None:
    """Remove answers from the cache, and say how many. Without options it removes all of them.

    \b
    sluice cache clear --model openai/gpt-5      # also what clients got by an alias that leads there
    sluice cache clear --model fast              # all that the alias leads to
    sluice cache clear --tenant acme
    sluice cache clear --yes

    The next request calls the provider again. Requests that run at the moment store their answers when they end.
    """
    from cli.settings import load_settings
    from common.canonical.wording import counted

    settings = load_settings()
    if tenant == "" or model == "":
        raise click.UsageError("--tenant and --model must not be empty: a variable of your script may not be set.")
    if tenant is None and model is None and not yes:
        click.confirm("Remove all answers of all tenants?", abort=True)
    removed = _with_inventory(settings, lambda inventory: inventory.clear(tenant, model))
    click.echo(f"{counted(removed, 'answers')} removed.")


def _with_inventory(settings: "Settings", work: "Callable[[Inventory], Awaitable[Result]]") -> Result:
    import asyncio

    from common.cache.inventory import Inventory
    from common.canonical.errors import StoreUnavailable
    from common.process.redaction import shown_url
    from common.redis.client import connect

    url = settings.cache_redis_url or settings.redis_url

    async def run() -> Result:
        redis = connect(url)
        try:
            return await work(Inventory(redis, settings))
        finally:
            await redis.aclose()

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        variable = "SLUICE_CACHE_REDIS_URL" if settings.cache_redis_url else "SLUICE_REDIS_URL"
        raise click.ClickException(
            f"Redis cannot be used at {shown_url(url)}: {error}. Is {variable} right? `sluice doctor` tells more. "
            "(`sluice dev` has a private Redis, and prints its URL.)"
        ) from error


def _as_text(report: dict[str, Any]) -> str:
    lines = _groups(report["data"]) if report["data"] else []
    if report["has_more"]:
        lines.append("There are more lines than shown; the largest are first.")
    total = f"{_size(report['bytes'])} of {_size(report['bytes_max'])}"
    lines.append(f"Answers in the cache: {report['entries']}, {total} (SLUICE_CACHE_BYTES_MAX).")
    return "\n".join([*lines, "", *_last_day(report["last_day"])] if report["last_day"] else lines)


def _groups(groups: list[dict[str, Any]]) -> list[str]:
    names = ("tenant", "model", "target")
    rows = [[*(printable(group[name]) for name in names), str(group["entries"]), _size(group["bytes"])] for group in groups]
    return aligned([["tenant", "model", "answered by", "answers", "size"], *rows], len(names))


def _last_day(outcomes: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [name, str(line["requests"]), line["saved_usd"] if name in ("hit", "join") else _NOTHING]
        for name, line in outcomes.items()
    ]
    return aligned([["last 24 hours", "requests", "saved USD"], *rows], 1)


def _size(number: int) -> str:
    """Return a number of bytes in the largest unit in which it is at least 1."""
    size, units = float(number), ["bytes", "KiB", "MiB", "GiB"]
    while size >= _KIB and len(units) > 1:
        size, units = size / _KIB, units[1:]
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"
