"""Where are jobs and records of ended generations kept that could not be processed?

They are in a list of JSON objects in Redis, newest first, bounded in number and time: ``format``, ``kind`` ("job" or "record"),
``id`` of the generation, ``reason``, ``at_ms`` (UTC; None from the previous version, which kept records only), ``record`` (the
fields of the original hash), ``sharers`` (of a log that several requests shared: the ids of their generations, which have no
rows in the ledger either). They contain no prompt and no answer. The ledger's collector and the queue's scripts write the
list; `sluice records` and `sluice doctor` read it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

FORMAT = 1
ENTRIES_MAX = 10_000  # About a kilobyte each. The queue's scripts have the same figures.
RETENTION_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class SetAsideEntry:
    kind: Literal["job", "record"]
    id: str
    reason: str
    at_ms: int | None
    record: dict[str, Any]
    sharers: list[str] = field(default_factory=list)
    raw: bytes = field(default=b"", repr=False, compare=False)  # The item of the list.


def pack(generation_id: str, reason: str, at_ms: int, record: Mapping[bytes, bytes], sharers: Sequence[str] = ()) -> bytes:
    """Return the list item for a record of an ended generation."""
    fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in record.items()}
    entry = {"format": FORMAT, "kind": "record", "id": generation_id, "reason": reason, "at_ms": at_ms, "record": fields}
    return orjson.dumps(entry | ({"sharers": sharers} if sharers else {}))


def unpack(raw: bytes) -> SetAsideEntry:
    """Parse a list item. Never fails: the item may be as broken as what was set aside."""
    try:
        entry = json.loads(raw.decode(errors="replace"))  # Not orjson: a script writes a job's bytes as they are.
        record, at_ms, sharers = entry.get("record"), entry.get("at_ms"), entry.get("sharers")
        return SetAsideEntry(
            "job" if entry.get("kind") == "job" else "record",
            str(entry.get("id")),
            str(entry.get("reason")),
            int(at_ms) if isinstance(at_ms, int | float) else None,
            record if isinstance(record, dict) else {},
            [str(id_) for id_ in sharers] if isinstance(sharers, list) else [],
            raw,
        )
    except (ValueError, AttributeError, OverflowError):
        return SetAsideEntry("record", "?", "the entry itself cannot be read", None, {}, raw=raw)
