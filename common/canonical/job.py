"""What does a worker need to know about a request?

Stored under the generation's ``request`` key: one line of JSON, then the client's body unchanged. Neither contains a
gateway key. The headers are only those that an upstream of the same family should get.
"""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

import orjson

FORMAT = 1  # A reader accepts this format and the previous one.


class Policy(StrEnum):
    """What happens when the last viewer leaves."""

    STOP = "stop"
    GRACE = "grace"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class CacheOrder:
    """How a complete answer is cached: under which key, and for how long. ``generation_id`` is the generation of the client for
    which the answer is made; it has another id than the job if others share the job's log. ``has_limit``: the client limits the
    answer's tokens, so an answer that ends there is what it asked for.
    """

    key: str
    ttl_ms: int
    generation_id: str
    has_limit: bool = False


@dataclass(slots=True)
class Job:
    generation_id: str
    request_id: str
    dialect: str
    model: str
    stream: bool
    policy: Policy
    grace_s: float
    created_s: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | bytearray = field(default=b"", repr=False)
    operation: Literal["generate", "count_tokens"] = "generate"
    provider: str | None = None  # Set if the request names the provider separately from its model.
    targets: list[str] | None = None  # The route's targets that the principal may use, as ``provider/model``; None: all.
    brought_key: str | None = field(default=None, repr=False)  # The client's own provider key (bring-your-own-key), encrypted.
    guardrails: dict[str, str] = field(default_factory=dict)  # The answer's active guardrails: name to mode.
    tenant: str = ""  # Passed to an operator's own guardrail.
    cache: "CacheOrder | None" = None  # How the answer is cached, if it is.
    conversation: str = ""  # Names the conversation, for a route with affinity. It does not reveal what it is made of.

    def pack(self) -> bytes:
        return self.pack_head() + self.body

    def pack_head(self) -> bytes:
        """Return what is stored before the body. Separate from it because the body may be too large to copy."""
        stored = {name: getattr(self, name) for name in _STORED}
        for name in ("cache", "conversation"):  # The previous version cannot read them.
            if not stored[name]:
                del stored[name]
        return orjson.dumps({"format": FORMAT, **stored}) + b"\n"

    @classmethod
    def unpack(cls, packed: bytes) -> "Job":
        """Return the job.

        Raises:
            ValueError: not a job of a known format.
        """
        line, _, body = packed.partition(b"\n")
        stored: dict[str, Any] = orjson.loads(line)
        if stored.pop("format", None) not in (FORMAT - 1, FORMAT):
            raise ValueError("the job has an unknown format: it was written by another version of Sluice")
        cache = CacheOrder(**stored["cache"]) if stored.get("cache") else None
        return cls(**{**stored, "policy": Policy(stored["policy"]), "cache": cache}, body=body)


_STORED = [item.name for item in fields(Job) if item.name != "body"]
