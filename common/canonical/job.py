"""What does a worker need to know of a request?

Stored under the generation's ``request`` key: one line of JSON, then the client's body as it came. Neither holds a
gateway key; headers are only those that a same-family upstream is meant to get.
"""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

import orjson

FORMAT = 1  # A reader accepts this one and the one before.


class Policy(StrEnum):
    """What happens when the last viewer leaves."""

    STOP = "stop"
    GRACE = "grace"
    DETACH = "detach"


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
    provider: str | None = None  # Where the request itself names one beside its model.
    targets: list[str] | None = None  # Those of the route that whoever asks may use, as ``provider/model``; None: all.
    brought_key: str | None = field(default=None, repr=False)  # The provider key that the request brought, encrypted.
    guardrails: dict[str, str] = field(default_factory=dict)  # Of the answer: name to mode, those that are on.
    tenant: str = ""  # Whom an operator's own guardrail is told of.

    def pack(self) -> bytes:
        return self.pack_head() + self.body

    def pack_head(self) -> bytes:
        """Return what is stored before the body, which may be too large to be copied."""
        stored = {name: getattr(self, name) for name in _STORED}
        return orjson.dumps({"format": FORMAT, **stored}) + b"\n"

    @classmethod
    def unpack(cls, packed: bytes) -> "Job":
        """Return the job.

        Raises:
            ValueError: not a job of a known format.
        """
        line, _, body = packed.partition(b"\n")
        found: dict[str, Any] = orjson.loads(line)
        if found.pop("format", None) not in (FORMAT - 1, FORMAT):
            raise ValueError("the job has an unknown format: it was written by another version of Sluice")
        return cls(**{**found, "policy": Policy(found["policy"])}, body=body)


_STORED = [each.name for each in fields(Job) if each.name != "body"]
