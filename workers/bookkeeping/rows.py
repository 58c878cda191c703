"""Which row of the ledger does a generation's record become?

Pure, and made for anything: names come from clients and providers, so a row is cut to what both databases take. A record
that says nothing that can be read raises, and is set aside by the collector.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from common.admission import NANO_USD
from common.errors import ErrorKind, one_word
from common.events import Usage
from common.ledger import Asked
from common.pricing import Cost

_INT_MAX = 2**63 - 1
_TOKENS = Usage.__slots__

Row = dict[str, Any]  # By the columns' names; see ``common/database/tables.py``.


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
    ttft_ms, usage, cost = _count(told.get("ttft_ms")), _object(told.get("usage")), _object(told.get("cost"))
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
        **{name: _count(usage.get(name)) for name in _TOKENS},
        "is_estimated": bool(told.get("estimated")),
        # A failure behind the commit point: the client has the beginning of an answer.
        "is_partial": bool(error) and ttft_ms is not None,
        "has_brought_key": bool(told.get("brought_key")),
        "cost_nano_usd": _nano(cost.get("total_usd")),
        "input_cost_nano_usd": _nano(cost.get("input_usd")),
        "cache": _text(asked.cache, 64),
        "answered_by": _optional(asked.answered_by, 64),
        "tries": _count(told.get("tries")) or 0,
        "continuations": _count(told.get("continuations")) or 0,
        "queue_wait_ms": _count(told.get("queue_wait_ms")),
        "ttft_ms": ttft_ms,
        "duration_ms": _count(told.get("duration_ms")),
    }


def is_unmeasured(row: Row) -> bool:
    """Whether an answer may have begun of which nobody has counted how far it came: an API ended it, its worker was lost."""
    has_begun = row["ttft_ms"] is not None or row["duration_ms"] is None  # Only a worker tells how long it took.
    return row["outcome"] != "completed" and row["operation"] == "generate" and has_begun and not row["is_estimated"]


def usage_in(row: Row) -> Usage | None:
    return Usage(*(row[name] or 0 for name in _TOKENS)) if row["input_tokens"] is not None else None


def with_estimate(row: Row, head: dict[str, Any], usage: Usage, cost: Cost | None) -> Row:
    """Return a row with what the log tells of an answer that broke off; ``head`` is the data of its last head frame."""
    filled = {**row, **{name: getattr(usage, name) for name in _TOKENS}, "is_estimated": True, "is_partial": True}
    filled["provider"] = row["provider"] or _optional(head.get("provider"), 64)
    filled["upstream_model"] = row["upstream_model"] or _optional(head.get("upstream_model"), 255)
    filled["tries"] = row["tries"] or _count(head.get("tries")) or 0
    filled["continuations"] = row["continuations"] or _count(head.get("continuations")) or 0
    for name in ("queue_wait_ms", "ttft_ms"):
        filled[name] = _count(head.get(name)) if row[name] is None else row[name]
    filled["cost_nano_usd"] = _nano(cost.total_usd) if cost else None
    filled["input_cost_nano_usd"] = _nano(cost.input_usd) if cost else None
    return filled


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
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        return None
    return int(min(max(found, 0), _INT_MAX))


def _nano(usd: Any) -> int | None:
    """US dollars as whole nano-dollars, the nearest."""
    if usd is None:
        return None
    try:
        nano = round(Decimal(usd) * NANO_USD)
    except (InvalidOperation, TypeError, ValueError, OverflowError):
        return None
    return min(max(nano, 0), _INT_MAX)
