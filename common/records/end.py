"""What is in the last frame of an answer, from which its record and its row in the ledger are made?

A worker writes an ``End`` once. An API that ends a log which no worker will end writes the error only. Relays, records of
generations, the next claim and the ledger's collector read it. It is one JSON object. Readers ignore unknown fields, and
treat missing or invalid fields as empty: two versions ago an end had no attempts.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import Usage
from common.metering.attempt_cost import Attempt, attempts_from_record
from common.metering.pricing import Cost
from common.records.fields import FORMAT, parse_object, read_count, read_text, read_usage, read_words


@dataclass(slots=True)
class End:
    """The data of an ``end`` frame. ``error`` is ``Failed.to_dict()``, None for a completed answer. ``usage`` and ``cost``
    are the sums of all attempts. ``duration_ms`` None: no worker wrote this end."""

    error: dict[str, Any] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    is_estimated: bool = False
    provider: str = ""
    upstream_model: str = ""
    has_byok_key: bool = False
    continuations: int = 0
    attempt_count: int = 0
    queue_wait_ms: int | None = None
    ttft_ms: int | None = None
    duration_ms: int | None = None
    cost: Cost | None = None
    saved: Cost | None = None  # What the answer cost the generation that made it, if this one got it for nothing.
    attempts: list[Attempt] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # Parts of the answer that the client's format does not carry.
    route_reason: str = ""  # Why its route chose the deployment that answered; see ``workers/routing``.
    has_attempts: bool = True  # False: two versions ago a worker that lost Redis left the counting of usage to others.

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
                "brought_key": self.has_byok_key,
                "continuations": self.continuations,
                "tries": self.attempt_count,
                "queue_wait_ms": self.queue_wait_ms,
                "ttft_ms": self.ttft_ms,
                "duration_ms": self.duration_ms,
                "cost": self.cost.to_dict() if self.cost else None,
                "saved": self.saved.to_dict() if self.saved else None,
                "attempts": [attempt.to_dict() for attempt in self.attempts],
                "left_out": self.left_out,
                "route_reason": self.route_reason or None,
            }
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "End":
        """Unpack the data of an ``end`` frame.

        Raises:
            ValueError: it is not a JSON object.
        """
        stored = parse_object(packed)
        error = stored.get("error")
        return cls(
            error if isinstance(error, dict) and error else None,
            read_text(stored, "finish_reason") or None,
            read_usage(stored.get("usage")),
            bool(stored.get("estimated")),
            read_text(stored, "provider"),
            read_text(stored, "upstream_model"),
            bool(stored.get("brought_key")),
            read_count(stored.get("continuations")) or 0,
            read_count(stored.get("tries")) or 0,
            read_count(stored.get("queue_wait_ms")),
            read_count(stored.get("ttft_ms")),
            read_count(stored.get("duration_ms")),
            Cost.from_dict(stored.get("cost")),
            Cost.from_dict(stored.get("saved")),
            attempts_from_record(stored),
            read_words(stored.get("left_out")),
            read_text(stored, "route_reason"),
            "attempts" in stored,
        )


def pack_failure(failed: Failed) -> bytes:
    """Return the data of an ``end`` frame that is not written by a worker."""
    return orjson.dumps({"format": FORMAT, "error": failed.to_dict()})


def unpack_failure(end: bytes) -> Failed | None:
    """Return the failure in the data of an ``end`` frame, None for a completed answer. Hot path: once per answer."""
    error = orjson.loads(end)["error"]
    return Failed.from_dict(error) if error else None
