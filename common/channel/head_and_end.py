"""What do the first and the last frame of an answer say?

A worker writes both: ``Head`` at each commit point (the first is the client's; the others tell the next claim what an answer
has cost that went on), ``End`` once. An API that ends a log which no worker will end writes nothing but the error. Relays,
records, the next claim and the ledger's collector read them.

Both are one JSON object. Readers pass over fields that they do not know, and take what is missing or no longer makes sense for
nothing: the version before wrote no ``format`` and, in a head, only the sum of the attempts before it (``spent``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import COUNTS, Usage
from common.metering.attempts import Attempt, attempts_in
from common.metering.pricing import Cost

FORMAT = 2
COUNT_MAX = 2**63 - 1  # What a column of the ledger holds.


@dataclass(slots=True)
class Head:
    """The data of a ``head`` frame. ``attempts`` are those before the one that answers now, ``spent`` is the usage of those
    whose output the client has. Times are whole milliseconds since the request was enqueued."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # The client's.
    provider: str = ""
    upstream_model: str = ""
    tries: int = 0
    queue_wait_ms: int | None = None
    ttft_ms: int | None = None
    continuations: int = 0
    spent: Usage | None = None
    attempts: list[Attempt] = field(default_factory=list)
    upstream_id: str = ""

    def pack(self) -> bytes:
        return orjson.dumps(
            {
                "format": FORMAT,
                "status": self.status,
                "headers": self.headers,
                "provider": self.provider,
                "upstream_model": self.upstream_model,
                "tries": self.tries,
                "queue_wait_ms": self.queue_wait_ms,
                "ttft_ms": self.ttft_ms,
                "continuations": self.continuations,
                # For a reader of the version before, which knows these figures and no others.
                "spent": {name: getattr(self.spent, name) for name in COUNTS} if self.spent else None,
                "attempts": [attempt.to_dict() for attempt in self.attempts],
                "upstream_id": self.upstream_id,
            }
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "Head":
        """Return what was packed.

        Raises:
            ValueError: it is no JSON object.
        """
        told = _object(packed)
        headers = told.get("headers")
        return cls(
            count_of(told.get("status")) or 200,
            headers if isinstance(headers, dict) else {},
            _text(told, "provider"),
            _text(told, "upstream_model"),
            count_of(told.get("tries")) or 0,
            count_of(told.get("queue_wait_ms")),
            count_of(told.get("ttft_ms")),
            count_of(told.get("continuations")) or 0,
            _usage(told.get("spent")),
            attempts_in(told),
            _text(told, "upstream_id"),
        )


@dataclass(slots=True)
class End:
    """The data of an ``end`` frame. ``error`` is ``Failed.to_dict()``, None for a completed answer. ``usage`` and ``cost`` are
    those of all attempts together. ``duration_ms`` None: no worker wrote it."""

    error: dict[str, Any] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    is_estimated: bool = False
    provider: str = ""
    upstream_model: str = ""
    has_brought_key: bool = False
    continuations: int = 0
    tries: int = 0
    queue_wait_ms: int | None = None
    ttft_ms: int | None = None
    duration_ms: int | None = None
    cost: Cost | None = None
    attempts: list[Attempt] = field(default_factory=list)
    has_attempts: bool = True  # Two versions ago a worker that found Redis away left it to others to count what an answer took.

    @property
    def failed(self) -> Failed | None:
        return Failed.from_dict(self.error) if self.error else None

    def pack(self) -> bytes:
        return orjson.dumps(
            {
                "format": FORMAT,
                "error": self.error,
                "finish_reason": self.finish_reason,
                "usage": self.usage.to_dict() if self.usage else None,
                "estimated": self.is_estimated,
                "provider": self.provider or None,
                "upstream_model": self.upstream_model or None,
                "brought_key": self.has_brought_key,
                "continuations": self.continuations,
                "tries": self.tries,
                "queue_wait_ms": self.queue_wait_ms,
                "ttft_ms": self.ttft_ms,
                "duration_ms": self.duration_ms,
                "cost": self.cost.to_dict() if self.cost else None,
                "attempts": [attempt.to_dict() for attempt in self.attempts],
            }
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "End":
        """Return what was packed.

        Raises:
            ValueError: it is no JSON object.
        """
        told = _object(packed)
        error = told.get("error")
        return cls(
            error if isinstance(error, dict) and error else None,
            _text(told, "finish_reason") or None,
            _usage(told.get("usage")),
            bool(told.get("estimated")),
            _text(told, "provider"),
            _text(told, "upstream_model"),
            bool(told.get("brought_key")),
            count_of(told.get("continuations")) or 0,
            count_of(told.get("tries")) or 0,
            count_of(told.get("queue_wait_ms")),
            count_of(told.get("ttft_ms")),
            count_of(told.get("duration_ms")),
            Cost.from_dict(told.get("cost")),
            attempts_in(told),
            "attempts" in told,
        )


def ended_by(failed: Failed) -> bytes:
    """Return the data of an ``end`` frame that somebody else than a worker writes."""
    return orjson.dumps({"format": FORMAT, "error": failed.to_dict()})


def failed_in(end: bytes) -> Failed | None:
    """Return the failure that the data of an ``end`` frame tells, None for a completed answer. Hot path: once per answer."""
    error = orjson.loads(end)["error"]
    return Failed.from_dict(error) if error else None


def _object(packed: bytes) -> dict[str, Any]:
    told = orjson.loads(packed)
    if not isinstance(told, dict):
        raise ValueError("a head or an end is a JSON object")  # noqa: TRY004 - One kind of failure for whatever cannot be read.
    return told


def _text(told: Mapping[str, Any], name: str) -> str:
    found = told.get(name)
    return "" if found is None else str(found)


def _usage(told: Any) -> Usage | None:
    return Usage.from_dict(told) if isinstance(told, dict) else None


def count_of(found: Any) -> int | None:
    """Return a whole number that is not negative, as far as it goes into a column: providers report all kinds of things."""
    if type(found) is int and 0 <= found <= COUNT_MAX:
        return found
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
        return None
    return int(min(max(found, 0), COUNT_MAX))
