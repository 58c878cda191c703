"""What does a frame say at which an answer begins, or goes on?

A worker writes a ``Head`` at each commit point: the first is the client's, the others tell the next claim what an answer
has cost that went on. One JSON object, read as ``common/records/end.py`` says; the version before wrote no ``format`` and,
of the attempts before it, only their sum (``spent``).
"""

from dataclasses import dataclass, field

import orjson

from common.canonical.events import COUNTS, Usage
from common.metering.attempt_cost import Attempt, attempts_from_record
from common.records.fields import FORMAT, count_of, object_in, text_in, usage_in


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
        told = object_in(packed)
        headers = told.get("headers")
        return cls(
            count_of(told.get("status")) or 200,
            headers if isinstance(headers, dict) else {},
            text_in(told, "provider"),
            text_in(told, "upstream_model"),
            count_of(told.get("tries")) or 0,
            count_of(told.get("queue_wait_ms")),
            count_of(told.get("ttft_ms")),
            count_of(told.get("continuations")) or 0,
            usage_in(told.get("spent")),
            attempts_from_record(told),
            text_in(told, "upstream_id"),
        )
