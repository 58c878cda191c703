"""Who used how much, and what did it cost?

These are sums over the ledger, by one or more of: key, tenant, model, provider, end user, cache, day, hour. A generation counts
at the time of its end, in UTC. If several providers worked on it, it counts for each of them with that provider's share. Money
is summed as whole nano-dollars. No sum fails, whatever a row contains. An unknown price or usage counts as 0, and the report
says for how many generations the price is unknown.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, distinct, func, outerjoin, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.access.key_records import managed_id
from common.database.engine import database_errors
from common.database.tables import LedgerAttempt, LedgerRow, ManagedKey
from common.ledger.usage_report import TIMES, TOKENS, Line, Report, UsageQuestion

_HOUR_MS = 3_600_000
_NAMES_AT_A_TIME = 500  # SQLite limits the variables of a statement.
_HALF = 10**9
_LENGTH_MS = {"day": 24 * _HOUR_MS, "hour": _HOUR_MS}

_COLUMNS = {
    "key": LedgerRow.owner,
    "tenant": LedgerRow.tenant,
    "model": LedgerRow.model,
    "provider": LedgerRow.provider,
    "end_user": LedgerRow.end_user,
    "cache": LedgerRow.cache,
}


def day_begins_ms(now_ms: int) -> int:
    return now_ms - now_ms % _LENGTH_MS["day"]


def month_begins_ms(now_ms: int) -> int:
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    return int(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


async def usage(engine: AsyncEngine, question: UsageQuestion) -> Report:
    """Answer a question about usage.

    Raises:
        DatabaseUnavailable
    """
    with database_errors():
        async with engine.connect() as connection:
            rows = (await connection.execute(_query(question))).all()
            lines = [_line(question.by, row) for row in rows[: question.lines_max]]
            owners = {line.group.get("key") for line in lines} | {question.only.get("key")}
            names = await _key_names(connection, [owner for owner in owners if owner])
    return Report(question, lines, len(rows) > question.lines_max, names)


async def _key_names(connection: AsyncConnection, owners: list[str]) -> dict[str, str]:
    """Return the names of managed keys (those that have a name), by their ids in reports."""
    ids = {id_: owner for owner in owners if (id_ := managed_id(owner))}
    names: dict[str, str] = {}
    for start in range(0, len(ids), _NAMES_AT_A_TIME):
        chunk = list(ids)[start : start + _NAMES_AT_A_TIME]
        query = select(ManagedKey.id, ManagedKey.name).where(ManagedKey.id.in_(chunk), ManagedKey.name != "")
        names |= {ids[id_]: name for id_, name in await connection.execute(query)}
    return names


def _query(question: UsageQuestion) -> Select[Any]:
    row = LedgerRow
    by_provider = "provider" in (*question.by, *question.only)
    columns, source = _columns(by_provider=by_provider)
    count = _count_once if by_provider else _count
    groups = [_group(name, columns) for name in question.by]
    # Two tenants may have users of the same name. A key without end users counts as one user.
    user = case((row.end_user.is_not(None), row.tenant + "/" + row.end_user), else_=row.owner)
    cost = columns["cost_nano_usd"]
    query = (
        select(
            *groups,
            count(row.id.is_not(None)),
            *(half for name in TOKENS for half in _halves(columns[name])),
            *_halves(cost),
            *_halves(LedgerRow.saved_nano_usd),
            count(columns["is_estimated"]),
            count(columns["input_tokens"].is_not(None) & cost.is_(None)),
            func.count(distinct(user)),
        )
        .select_from(source)
        .where(row.ended_ms >= question.since_ms, row.ended_ms < question.until_ms)
        .group_by(*groups)
        .limit(question.lines_max + 1)
    )
    for name, value in question.only.items():
        query = query.where(columns[name] == value)
    times = [group for name, group in zip(question.by, groups, strict=True) if name in TIMES]
    approximate_cost = func.coalesce(func.sum(cost * 1.0), 0)  # A float cannot overflow. It is used for sorting only.
    return query.order_by(*times, approximate_cost.desc(), count(row.id.is_not(None)).desc(), *groups)


def _columns(*, by_provider: bool) -> tuple[dict[str, Any], Any]:
    """Return the columns to sum and group by, and the table or join that has them.

    ``by_provider``: a generation with several attempts counts for each provider with that provider's attempts.
    """
    names = (*TOKENS, "cost_nano_usd", "is_estimated", "has_brought_key")
    columns: dict[str, Any] = {**_COLUMNS, **{name: getattr(LedgerRow, name) for name in names}}
    if not by_provider:
        return columns, LedgerRow
    part, is_part = LedgerAttempt, LedgerAttempt.generation_id.is_not(None)
    for name in ("provider", *names):
        columns[name] = case((is_part, getattr(part, name)), else_=getattr(LedgerRow, name))
    return columns, outerjoin(LedgerRow, part, part.generation_id == LedgerRow.id)


def _group(name: str, columns: Mapping[str, Any]) -> ColumnElement[Any]:
    if name in TIMES:
        return (LedgerRow.ended_ms - LedgerRow.ended_ms % _LENGTH_MS[name]).label(name)
    column: ColumnElement[Any] = columns[name].label(name)
    return column


def _halves(column: Any) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return the sum of a column in two parts, so that neither overflows: SQLite sums whole numbers in 64 bits."""
    quotient = func.coalesce(func.sum(column // _HALF), 0)
    return quotient, func.coalesce(func.sum(column % _HALF), 0)


def _joined(halves: Sequence[Any]) -> list[int]:
    return [int(quotient) * _HALF + int(remainder) for quotient, remainder in zip(halves[::2], halves[1::2], strict=True)]


def _count(condition: Any) -> ColumnElement[int]:
    return func.count(case((condition, 1)))


def _count_once(condition: Any) -> ColumnElement[int]:
    """Count generations, where each has a row per attempt."""
    return func.count(distinct(case((condition, LedgerRow.id))))


def _line(by: Sequence[str], row: Any) -> Line:
    values = list(row)
    group = {name: _shown(name, values.pop(0)) for name in by}
    # PostgreSQL returns sums of whole numbers as decimals.
    requests, *halves, estimated, unpriced, users = (int(value) for value in values)
    *tokens, cost, saved = _joined(halves)
    return Line(group, requests, dict(zip(TOKENS, tokens, strict=True)), cost, saved, estimated, unpriced, users)


def _shown(name: str, value: Any) -> str | None:
    if name not in TIMES:
        return None if value is None else str(value)
    return datetime.fromtimestamp(int(value) / 1000, UTC).strftime("%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:00Z")


async def spent(engine: AsyncEngine, since_ms: int, before_ms: int) -> dict[tuple[str, str], int]:
    """Return what was spent between two times, in nano-dollars, by scope and name of the budget's counter.

    Raises:
        DatabaseUnavailable
    """
    sums: dict[tuple[str, str], int] = {}
    with database_errors():
        async with engine.connect() as connection:
            columns, source = _columns(by_provider=True)
            for scope in ("key", "tenant", "provider"):
                name, cost = columns[scope], columns["cost_nano_usd"]
                query = (
                    select(name, *_halves(cost))
                    .select_from(source)
                    .where(LedgerRow.ended_ms >= since_ms, LedgerRow.ended_ms < before_ms)
                    .where(name.is_not(None), columns["has_brought_key"].is_(False), cost > 0)
                    .group_by(name)
                )
                sums |= {(scope, str(owner)): _joined(halves)[0] for owner, *halves in await connection.execute(query)}
    return sums
