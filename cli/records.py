"""How does an operator inspect what could not be processed, and delete it?"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click
import orjson

from cli.table import printable
from common.ledger import set_aside
from common.ledger.set_aside import SetAsideEntry
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, connect
from common.redis.errors import REDIS_ERRORS, error_text

Result = TypeVar("Result")


async def _with_redis(url: str, work: Callable[[Client], Awaitable[Result]]) -> Result:
    redis = connect(url)
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await work(redis)
    except REDIS_ERRORS as error:
        raise click.ClickException(f"Redis cannot be used: {error_text(error) or type(error).__name__}") from error
    finally:
        await redis.aclose()


def _entries(url: str) -> list[SetAsideEntry]:
    async def read(redis: Client) -> list[SetAsideEntry]:
        return [set_aside.unpack(raw) for raw in await redis.execute_command("LRANGE", keyspace.UNREADABLE, 0, -1)]

    return asyncio.run(_with_redis(url, read))


def list_all(url: str) -> None:
    """Print one line for each entry, newest first."""
    for entry in _entries(url):
        at = f"{datetime.fromtimestamp(entry.at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if entry.at_ms else "-" * 20
        click.echo(printable(f"{at}  {entry.kind:6}  {entry.id}  {entry.reason}"))


def show(url: str, generation_id: str) -> None:
    """Print everything that is kept of a generation as JSON, one object per entry."""
    entries = [entry for entry in _entries(url) if generation_id in (entry.id, *entry.sharers)]
    if not entries:
        raise click.ClickException(f"nothing of {generation_id!r} is set aside: see `sluice records list`")
    for entry in entries:
        fields = {name: getattr(entry, name) for name in ("kind", "id", "reason", "at_ms", "record", "sharers")}
        click.echo(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode())


def drop(url: str, generation_ids: tuple[str, ...], *, is_all: bool) -> None:
    """Delete what is kept of some generations, or of all."""
    if is_all == bool(generation_ids):
        raise click.UsageError("Name the ids to drop, or say --all.")
    entries = [entry for entry in _entries(url) if is_all or entry.id in generation_ids]

    async def remove(redis: Client) -> None:
        for entry in entries:
            await redis.execute_command("LREM", keyspace.UNREADABLE, 1, entry.raw)

    asyncio.run(_with_redis(url, remove))
    click.echo(f"{len(entries)} dropped.")
    if not entries:
        sys.exit(1)
