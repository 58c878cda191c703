"""What is stored of an answer, so that it can answer another request?

An entry is one line of JSON (its fields, with a format number), then the answer's bytes as its client got them: the events of a
stream, or a JSON body. A worker writes it when the answer is complete; an API reads it. Readers ignore unknown fields.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from common.canonical.events import Usage
from common.metering.pricing import Cost

FORMAT = 1


@dataclass(slots=True)
class Entry:
    """``key`` is made by ``api.cache.key``. ``generation_id`` is the generation that made the answer, ``log_id`` the one whose
    id the answer's bytes contain. ``headers`` are those of the client's response. ``usage`` and ``cost`` are the original's.
    """

    key: str
    generation_id: str
    log_id: str
    tenant: str
    model: str
    dialect: str
    is_stream: bool
    stored_ms: int
    ttl_ms: int
    data: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    provider: str = ""
    upstream_model: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    cost: Cost | None = None

    @property
    def target(self) -> str:
        """What answered, as ``provider/model``."""
        return f"{self.provider}/{self.upstream_model}"

    def pack(self) -> bytes:
        stored = {name: getattr(self, name) for name in _PLAIN}
        stored["usage"] = self.usage.to_dict() if self.usage else None
        stored["cost"] = self.cost.to_dict() if self.cost else None
        return orjson.dumps({"format": FORMAT, **stored}) + b"\n" + self.data

    @classmethod
    def unpack(cls, packed: bytes) -> "Entry":
        """Unpack an entry.

        Raises:
            ValueError: it is not an entry of this format.
        """
        line, _, data = packed.partition(b"\n")
        stored: dict[str, Any] = orjson.loads(line)
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise ValueError("a cached answer has an unknown format: it was written by another version of Sluice")
        plain = {name: stored[name] for name in _PLAIN if name in stored}
        usage = Usage.from_dict(stored["usage"]) if isinstance(stored.get("usage"), dict) else None
        try:
            return cls(**plain, data=data, usage=usage, cost=Cost.from_dict(stored.get("cost")))
        except TypeError as error:
            raise ValueError(str(error)) from error


_PLAIN = [item.name for item in fields(Entry) if item.name not in ("data", "usage", "cost")]
