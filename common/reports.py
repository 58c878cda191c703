"""Who used how much, and what did it cost?

Sums over the ledger, by one or more of: key, tenant, model, provider, end user, day, hour. A generation counts for when it
ended, in UTC. Money is summed as whole nano-dollars. Where a price or a usage is not known it counts for nothing, and the
report says of how many generations that is so.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, distinct, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from common.database.engine import database_errors
from common.database.tables import LedgerRow, ManagedKey
from common.key_records import managed_id
from common.usage_report import TIMES, TOKENS, Line, Question, Report

_HOUR_MS = 3_600_000
_NAMES_AT_A_TIME = 500  # A statement of SQLite's has a bound on its variables.
_LENGTH_MS = {"day": 24 * _HOUR_MS, "hour": _HOUR_MS}

_COLUMNS = {
    "key": LedgerRow.owner,
    "tenant": LedgerRow.tenant,
    "model": LedgerRow.model,
    "provider": LedgerRow.provider,
    "end_user": LedgerRow.end_user,
}


def day_begins_ms(now_ms: int) -> int:
    return now_ms - now_ms % _LENGTH_MS["day"]


def month_begins_ms(now_ms: int) -> int:
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    return int(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


async def usage(engine: AsyncEngine, question: Question) -> Report:
    """Answer a question.

    Raises:
        DatabaseUnavailable
    """
    with database_errors():
        async with engine.connect() as connection:
            found = (await connection.execute(_query(question))).all()
            lines = [_line(question.by, row) for row in found[: question.lines_max]]
            owners = {line.group.get("key") for line in lines} | {question.only.get("key")}
            names = await _key_names(connection, [owner for owner in owners if owner])
    return Report(question, lines, len(found) > question.lines_max, names)


async def _key_names(connection: AsyncConnection, owners: list[str]) -> dict[str, str]:
    """Return the names of those keys that are managed ones and have one, by their ids in reports."""
    ids = {id_: owner for owner in owners if (id_ := managed_id(owner))}
    found: dict[str, str] = {}
    for start in range(0, len(ids), _NAMES_AT_A_TIME):
        some = list(ids)[start : start + _NAMES_AT_A_TIME]
        query = select(ManagedKey.id, ManagedKey.name).where(ManagedKey.id.in_(some), ManagedKey.name != "")
        found |= {ids[id_]: name for id_, name in await connection.execute(query)}
    return found


def _query(question: Question) -> Select[Any]:
    row = LedgerRow
    groups = [_group(name) for name in question.by]
    # Two tenants may have a user of the same name, and a key that names no users is one itself.
    user = case((row.end_user.is_not(None), row.tenant + "/" + row.end_user), else_=row.owner)
    cost = func.coalesce(func.sum(row.cost_nano_usd), 0)
    query = (
        select(
            *groups,
            func.count(),
            *(func.coalesce(func.sum(getattr(row, name)), 0) for name in TOKENS),
            cost,
            _count_where(row.is_estimated),
            _count_where(row.input_tokens.is_not(None) & row.cost_nano_usd.is_(None)),
            func.count(distinct(user)),
        )
        .where(row.ended_ms >= question.since_ms, row.ended_ms < question.until_ms)
        .group_by(*groups)
        .limit(question.lines_max + 1)
    )
    for name, value in question.only.items():
        query = query.where(_COLUMNS[name] == value)
    times = [group for name, group in zip(question.by, groups, strict=True) if name in TIMES]
    return query.order_by(*times, cost.desc(), func.count().desc(), *groups)


def _group(name: str) -> ColumnElement[Any]:
    if name in TIMES:
        return (LedgerRow.ended_ms - LedgerRow.ended_ms % _LENGTH_MS[name]).label(name)
    return _COLUMNS[name].label(name)


def _count_where(condition: Any) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _line(by: Sequence[str], row: Any) -> Line:
    values = list(row)
    group = {name: _shown(name, values.pop(0)) for name in by}
    # PostgreSQL sums whole numbers to decimal ones.
    requests, *tokens, cost, estimated, unpriced, users = (int(value) for value in values)
    return Line(group, requests, dict(zip(TOKENS, tokens, strict=True)), cost, estimated, unpriced, users)


def _shown(name: str, value: Any) -> str | None:
    if name not in TIMES:
        return None if value is None else str(value)
    return datetime.fromtimestamp(int(value) / 1000, UTC).strftime("%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:00Z")


async def spent(engine: AsyncEngine, since_ms: int, before_ms: int) -> dict[tuple[str, str], int]:
    """Return what was spent between two moments, in nano-dollars, by the scope and name of a budget's counter.

    Raises:
        DatabaseUnavailable
    """
    found: dict[tuple[str, str], int] = {}
    with database_errors():
        async with engine.connect() as connection:
            for scope in ("key", "tenant", "provider"):
                name, cost = _COLUMNS[scope], func.sum(LedgerRow.cost_nano_usd)
                query = (
                    select(name, cost)
                    .where(LedgerRow.ended_ms >= since_ms, LedgerRow.ended_ms < before_ms, name.is_not(None))
                    .where(LedgerRow.has_brought_key.is_(False))
                    .group_by(name)
                    .having(cost > 0)
                )
                found |= {(scope, str(who)): int(nano or 0) for who, nano in await connection.execute(query)}
    return found
