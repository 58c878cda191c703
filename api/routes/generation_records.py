"""What does the record of a generation say, for a client that asks about it rather than for its answer?

The record is read from the channel: the state, the head, and the end, in which the worker reports durations, usage and cost. So
the record exists for as long as the log does.
"""

from typing import Any

from common.canonical.errors import ErrorKind
from common.channel.base import START, State
from common.records.end import End
from common.records.head import Head


def status_of(state: State) -> str:
    """
    Returns:
        ``queued``, ``running``, ``completed``, ``failed`` or ``cancelled``.
    """
    if not state.has_ended:
        return "queued" if state.last == START else "running"
    failed = state.end.failed if state.end else None
    if failed is None:
        return "completed"
    return "cancelled" if failed.kind is ErrorKind.CANCELLED else "failed"


def short_record(generation_id: str, state: State) -> dict[str, Any]:
    return {
        "id": generation_id,
        "object": "generation",
        "status": status_of(state),
        "dialect": state.dialect,
        "model": state.model,
        "created_at": state.created_s,
        "url": url_of(generation_id),
    }


def record(generation_id: str, state: State) -> dict[str, Any]:
    """Return everything except the text. Amounts of money are text in US dollars, null if a price is not known."""
    head, end = state.head or Head(), state.end or End()
    failed = end.failed
    return {
        **short_record(generation_id, state),
        "class": state.job_class,
        "stream": state.stream,
        "provider": end.provider or head.provider or None,
        **({"route_reason": reason} if (reason := end.route_reason or head.route_reason) else {}),
        "tries": end.attempt_count or head.attempt_count,
        "takeovers": max(0, state.claims - 1),
        "usage": end.usage.to_dict() if end.usage else None,
        **({"estimated": True} if end.is_estimated else {}),
        "cost": end.cost.to_dict() if end.cost else None,
        "timings": {
            "queue_wait_ms": head.queue_wait_ms if end.queue_wait_ms is None else end.queue_wait_ms,
            "ttft_ms": head.ttft_ms if end.ttft_ms is None else end.ttft_ms,
            "duration_ms": end.duration_ms,
        },
        "finish_reason": end.finish_reason,
        **({"left_out": end.left_out} if end.left_out else {}),
        "error": {"kind": failed.kind, "message": failed.message, "code": failed.code} if failed else None,
    }


def url_of(generation_id: str) -> str:
    return f"/v1/generations/{generation_id}"
