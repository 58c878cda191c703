"""What does the last frame of an answer say, from which its record and its row in the ledger are made?

A worker writes an ``End`` once. An API that ends a log which no worker will end writes nothing but the error. Relays,
records of generations, the next claim and the ledger's collector read it. One JSON object; fields that a reader does not
know are passed over, and what is missing or makes no sense is taken for nothing: two versions ago an end named no attempts.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import Usage
from common.metering.attempt_cost import Attempt, attempts_from_record
from common.metering.pricing import Cost
from common.records.fields import FORMAT, count_of, object_in, text_in, usage_in


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
        told = object_in(packed)
        error = told.get("error")
        return cls(
            error if isinstance(error, dict) and error else None,
            text_in(told, "finish_reason") or None,
            usage_in(told.get("usage")),
            bool(told.get("estimated")),
            text_in(told, "provider"),
            text_in(told, "upstream_model"),
            bool(told.get("brought_key")),
            count_of(told.get("continuations")) or 0,
            count_of(told.get("tries")) or 0,
            count_of(told.get("queue_wait_ms")),
            count_of(told.get("ttft_ms")),
            count_of(told.get("duration_ms")),
            Cost.from_dict(told.get("cost")),
            attempts_from_record(told),
            "attempts" in told,
        )


def ended_by(failed: Failed) -> bytes:
    """Return the data of an ``end`` frame that somebody else than a worker writes."""
    return orjson.dumps({"format": FORMAT, "error": failed.to_dict()})


def failed_in(end: bytes) -> Failed | None:
    """Return the failure that the data of an ``end`` frame tells, None for a completed answer. Hot path: once per answer."""
    error = orjson.loads(end)["error"]
    return Failed.from_dict(error) if error else None
