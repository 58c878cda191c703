"""What is in the frame with which an answer begins or continues?

A worker writes a ``Head`` at each commit point. The first one is for the client. Later ones tell the next claim what a
continued answer has cost so far. It is one JSON object, read as ``common/records/end.py`` describes. The previous version
wrote no ``format``, and only the sum (``spent``) of the attempts before it.
"""

from dataclasses import dataclass, field

import orjson

from common.canonical.events import COUNTS, Usage
from common.metering.attempt_cost import Attempt, attempts_from_record
from common.records.fields import FORMAT, parse_object, read_count, read_text, read_usage


@dataclass(slots=True)
class Head:
    """The data of a ``head`` frame. ``attempts`` are those before the attempt that answers now. ``spent`` is the usage of
    those whose output the client has. Times are whole milliseconds since the request was enqueued."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # Response headers for the client.
    provider: str = ""
    upstream_model: str = ""
    attempt_count: int = 0
    queue_wait_ms: int | None = None
    ttft_ms: int | None = None
    continuations: int = 0
    spent: Usage | None = None
    attempts: list[Attempt] = field(default_factory=list)
    upstream_id: str = ""
    route_reason: str = ""

    def pack(self) -> bytes:
        return orjson.dumps(
            {
                "format": FORMAT,
                "status": self.status,
                "headers": self.headers,
                "provider": self.provider,
                "upstream_model": self.upstream_model,
                "tries": self.attempt_count,
                "queue_wait_ms": self.queue_wait_ms,
                "ttft_ms": self.ttft_ms,
                "continuations": self.continuations,
                # For readers of the previous version, which know only these figures.
                "spent": {name: getattr(self.spent, name) for name in COUNTS} if self.spent else None,
                "attempts": [attempt.to_dict() for attempt in self.attempts],
                "upstream_id": self.upstream_id,
                "route_reason": self.route_reason or None,
            }
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "Head":
        """Unpack the data of a ``head`` frame.

        Raises:
            ValueError: it is not a JSON object.
        """
        stored = parse_object(packed)
        headers = stored.get("headers")
        return cls(
            read_count(stored.get("status")) or 200,
            headers if isinstance(headers, dict) else {},
            read_text(stored, "provider"),
            read_text(stored, "upstream_model"),
            read_count(stored.get("tries")) or 0,
            read_count(stored.get("queue_wait_ms")),
            read_count(stored.get("ttft_ms")),
            read_count(stored.get("continuations")) or 0,
            read_usage(stored.get("spent")),
            attempts_from_record(stored),
            read_text(stored, "upstream_id"),
            read_text(stored, "route_reason"),
        )
