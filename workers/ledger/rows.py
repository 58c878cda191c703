"""Which row of the ledger does a generation's record become?

Pure, and made for anything: names come from clients and providers, so a row is cut to what both databases take. A record
that says nothing that can be read raises, and is set aside by the collector.
"""

from typing import Any

import orjson

from common.canonical.errors import ErrorKind, one_word
from common.canonical.events import COUNTS, Usage
from common.ledger.record import Asked
from common.metering.attempts import Attempt, attempts_in, nano_usd, total_cost, total_usage
from common.metering.pricing import Cost

_INT_MAX = 2**63 - 1

Row = dict[str, Any]  # By the columns' names, and ``attempts``: rows of their own. See ``common/database/tables.py``.


def row_of(generation_id: str, asked: Asked, end: bytes, ended_ms: int) -> Row:
    """Return the row of a generation; ``end`` is the data of its ``end`` frame.

    Raises:
        ValueError: the record is not one of ours.
    """
    told = orjson.loads(end)
    if not 0 <= ended_ms <= _INT_MAX:
        raise ValueError("an end has a moment")
    if not isinstance(told, dict):
        raise ValueError("an end is a JSON object")  # noqa: TRY004 - One kind of failure for whatever cannot be read.
    error = _object(told.get("error"))
    ttft_ms = _count(told.get("ttft_ms"))
    return {
        "id": _text(generation_id, 64),
        "owner": _text(asked.owner, 64),
        "tenant": _text(asked.tenant, 255),
        "end_user": _text(asked.end_user, 255) if asked.end_user else None,
        "request_id": _text(asked.request_id, 128),
        "dialect": _text(asked.dialect, 64),
        "operation": _text(asked.operation, 64),
        "stream": bool(asked.stream),
        "model": _text(asked.model, 255),
        "provider": _optional(told.get("provider"), 64),
        "upstream_model": _optional(told.get("upstream_model"), 255),
        "created_ms": _count(asked.created_ms) or 0,
        "ended_ms": ended_ms,
        "outcome": _outcome(error),
        "error_kind": _optional(error.get("kind"), 64),
        "error_code": one_word(error.get("code")),
        "finish_reason": _optional(told.get("finish_reason"), 64),
        **_taken(generation_id, attempts_in(told)),
        # A failure behind the commit point: the client has the beginning of an answer.
        "is_partial": bool(error) and ttft_ms is not None,
        "has_brought_key": bool(told.get("brought_key")),
        "cache": _text(asked.cache, 64),
        "answered_by": _optional(asked.answered_by, 64),
        "tries": _count(told.get("tries")) or 0,
        "continuations": _count(told.get("continuations")) or 0,
        "queue_wait_ms": _count(told.get("queue_wait_ms")),
        "ttft_ms": ttft_ms,
        "duration_ms": _count(told.get("duration_ms")),
    }


def is_unmeasured(row: Row, end: bytes) -> bool:
    """Whether nobody has counted how far an answer came: an API ended it, since its worker was lost.

    A worker of the version before left that to us where Redis was away.
    """
    by_worker = row["duration_ms"] is not None  # Only a worker tells how long it took.
    is_counted = b'"attempts"' in end or row["is_estimated"] or row["ttft_ms"] is None
    return row["outcome"] != "completed" and row["operation"] == "generate" and not (by_worker and is_counted)


def with_attempts(row: Row, head: dict[str, Any], attempts: list[Attempt]) -> Row:
    """Return a row with what is known of an answer that broke off; ``head`` is the data of its log's last head, or nothing."""
    last = attempts[-1]
    filled = {**row, **_taken(row["id"], attempts)}
    filled["is_partial"] = row["is_partial"] or bool(head)
    filled["provider"] = row["provider"] or _optional(last.provider, 64)
    filled["upstream_model"] = row["upstream_model"] or _optional(last.model, 255)
    filled["tries"] = row["tries"] or _count(head.get("tries")) or len(attempts)
    filled["continuations"] = row["continuations"] or _count(head.get("continuations")) or 0
    for name in ("queue_wait_ms", "ttft_ms"):
        filled[name] = _count(head.get(name)) if row[name] is None else row[name]
    return filled


def _taken(generation_id: str, attempts: list[Attempt]) -> Row:
    """Return the columns that tell what a generation took; its attempts have rows of their own where there are several."""
    usage, cost = total_usage(attempts), total_cost(attempts)
    only = attempts[0] if len(attempts) == 1 else None
    return {
        **_counts(usage),
        **_cost(cost),
        "is_estimated": any(attempt.is_estimated for attempt in attempts),
        "details": _details(only) if only else None,
        "attempts": [] if only else [_attempt(generation_id, n, each) for n, each in enumerate(attempts, 1) if each.usage],
    }


def _attempt(generation_id: str, number: int, attempt: Attempt) -> Row:
    return {
        "generation_id": _text(generation_id, 64),
        "number": number,
        "provider": _optional(attempt.provider, 64),
        "upstream_model": _optional(attempt.model, 255),
        **_counts(attempt.usage),
        **_cost(attempt.cost),
        "is_estimated": attempt.is_estimated,
        "has_brought_key": attempt.has_brought_key,
        "details": _details(attempt),
    }


def _counts(usage: Usage | None) -> Row:
    return {name: getattr(usage, name) if usage else None for name in COUNTS}


def _cost(cost: Cost | None) -> Row:
    return {
        "cost_nano_usd": nano_usd(cost.total_usd) if cost else None,
        "input_cost_nano_usd": nano_usd(cost.input_usd) if cost else None,
    }


def _details(attempt: Attempt) -> dict[str, Any] | None:
    usage = attempt.usage or Usage()
    names = {"answered_by": usage.model if usage.model != attempt.model else "", "service_tier": usage.service_tier}
    found = {name: _text(value, 255) for name, value in names.items() if value} | usage.details
    return found or None


def _outcome(error: dict[str, Any]) -> str:
    if not error:
        return "completed"
    return "cancelled" if error.get("kind") == ErrorKind.CANCELLED else "failed"


def _object(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(found: Any, length: int) -> str:
    """Text that both databases store: PostgreSQL has no NUL, and neither has halves of surrogate pairs."""
    return str(found).replace("\0", "").encode(errors="replace").decode()[:length]


def _optional(found: Any, length: int) -> str | None:
    return None if found is None or found == "" else _text(found, length)


def _count(found: Any) -> int | None:
    """A whole number that is not negative, as far as it goes into a column; providers report all kinds of things."""
    if type(found) is int and 0 <= found <= _INT_MAX:
        return found
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        return None
    return int(min(max(found, 0), _INT_MAX))
