"""Which row of the ledger does a generation's record become?

Pure. Names come from clients and providers and may be anything, so values are cut to what both databases accept. A record that
cannot be read raises, and the collector sets it aside.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common.canonical.errors import ErrorKind, single_word_code
from common.canonical.events import COUNTS, Usage
from common.metering.attempt_cost import Attempt, nano_usd, total_cost, total_usage
from common.metering.pricing import NO_COST, Cost
from common.records.end import End
from common.records.fields import COUNT_MAX, read_count
from common.records.head import Head
from common.records.request_summary import RequestSummary

LEFT = b"left:"  # Before an id in the hash of a log's followers: when and how that one ended.
FREE = ("hit", "join")  # How the cache serves requests that cost nothing.

Row = dict[str, Any]  # Values by column, and ``attempts``: a list of such rows. See ``common/database/tables.py``.


def build_row(generation_id: str, summary: RequestSummary, end: End, ended_ms: int) -> Row:
    """Return the row of a generation.

    Raises:
        ValueError: it is not one of our records.
    """
    if not 0 <= ended_ms <= COUNT_MAX:
        raise ValueError("an end has a moment")
    error = end.error or {}
    return {
        "id": _text(generation_id, 64),
        "owner": _text(summary.owner, 64),
        "tenant": _text(summary.tenant, 255),
        "end_user": _text(summary.end_user, 255) if summary.end_user else None,
        "request_id": _text(summary.request_id, 128),
        "dialect": _text(summary.dialect, 64),
        "operation": _text(summary.operation, 64),
        "stream": bool(summary.stream),
        "model": _text(summary.model, 255),
        "provider": _optional(end.provider, 64),
        "upstream_model": _optional(end.upstream_model, 255),
        "created_ms": read_count(summary.created_ms) or 0,
        "ended_ms": ended_ms,
        "outcome": _outcome(error),
        "error_kind": _optional(error.get("kind"), 64),
        "error_code": single_word_code(error.get("code")),
        "finish_reason": _optional(end.finish_reason, 64),
        **_usage_columns(generation_id, end.attempts),
        **(_cost(NO_COST) if summary.cache in FREE else {}),  # It had no call of its own, and so no attempt.
        # A failure after the commit point: the client has the beginning of an answer.
        "is_partial": bool(error) and end.ttft_ms is not None,
        "has_brought_key": end.has_byok_key,
        "cache": _text(summary.cache, 64),
        "answered_by": _optional(summary.answered_by, 64),
        "saved_nano_usd": nano_usd(end.saved.total_usd) if end.saved else None,
        "tries": end.attempt_count,
        "continuations": end.continuations,
        "queue_wait_ms": end.queue_wait_ms,
        "ttft_ms": end.ttft_ms,
        "duration_ms": end.duration_ms,
    }


def sharing_rows(
    generation_id: str, summary: RequestSummary, end: End, ended_ms: int, followers: Mapping[bytes, bytes]
) -> list[Row]:
    """Return the rows of all generations that shared a log. The first one pays for the answer; the others get it for nothing.

    Args:
        generation_id: the one that pays, with its own ``summary``.
        followers: by id, the summary of each generation; by ``left:`` and its id, when and how it ended before the log did.
    Raises:
        ValueError: one of them is not a record of ours.
    """
    free = replace(end, attempts=[], attempt_count=0, cost=NO_COST, saved=end.cost)
    rows = []
    for id_ in {generation_id: None, **{key.decode(): None for key in followers if not key.startswith(LEFT)}}:
        is_payer = id_ == generation_id
        own = summary if is_payer else replace(RequestSummary.unpack(followers[id_.encode()]), answered_by=generation_id)
        own_end, own_ended_ms = end if is_payer else free, ended_ms
        if left := followers.get(LEFT + id_.encode()):
            when, _, how = left.partition(b" ")
            own_end, own_ended_ms = replace(own_end, error=End.unpack(how).error, finish_reason=None), int(when)
        if own_end.error and own_end.saved:
            own_end = replace(own_end, saved=NO_COST)  # Who got no answer saved nothing.
        rows.append(build_row(id_, own, own_end, own_ended_ms))
    return rows


def is_unmeasured(row: Row, end: End) -> bool:
    """Whether nobody has measured the answer's usage: an API process ended it, because its worker was lost.

    A worker of the previous version also left it to us if Redis was away.
    """
    by_worker = end.duration_ms is not None  # Only a worker reports the duration.
    is_counted = end.has_attempts or row["is_estimated"] or row["ttft_ms"] is None
    return row["outcome"] != "completed" and row["operation"] == "generate" and not (by_worker and is_counted)


def with_attempts(row: Row, head: Head | None, attempts: list[Attempt]) -> Row:
    """Return the row with what is known about an answer that broke off. ``head``: the last head of its log, if there is one."""
    last = attempts[-1]
    filled = {**row, **_usage_columns(row["id"], attempts)}
    filled["is_partial"] = row["is_partial"] or head is not None
    filled["provider"] = row["provider"] or _optional(last.provider, 64)
    filled["upstream_model"] = row["upstream_model"] or _optional(last.model, 255)
    head = head or Head()
    filled["tries"] = row["tries"] or head.attempt_count or len(attempts)
    filled["continuations"] = row["continuations"] or head.continuations
    for name in ("queue_wait_ms", "ttft_ms"):
        filled[name] = getattr(head, name) if row[name] is None else row[name]
    return filled


def _usage_columns(generation_id: str, attempts: list[Attempt]) -> Row:
    """Return the columns of usage and cost. If there are several attempts, each has its own row."""
    usage, cost = total_usage(attempts), total_cost(attempts)
    only = attempts[0] if len(attempts) == 1 else None
    return {
        **_counts(usage),
        **_cost(cost),
        "is_estimated": any(attempt.is_estimated for attempt in attempts),
        "details": _details(only) if only else None,
        "attempts": []
        if only
        else [_attempt(generation_id, number, attempt) for number, attempt in enumerate(attempts, 1) if attempt.usage],
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
    details = {name: _text(value, 255) for name, value in names.items() if value} | usage.details
    return details or None


def _outcome(error: dict[str, Any]) -> str:
    if not error:
        return "completed"
    return "cancelled" if error.get("kind") == ErrorKind.CANCELLED else "failed"


def _text(value: Any, length: int) -> str:
    """Return text that both databases can store: PostgreSQL accepts no NUL, and neither accepts lone surrogates."""
    return str(value).replace("\0", "").encode(errors="replace").decode()[:length]


def _optional(value: Any, length: int) -> str | None:
    return None if value is None or value == "" else _text(value, length)
