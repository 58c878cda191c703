"""What does Redis keep of an ended generation until the database has it, and which part is known when it starts?

The script that appends ``end`` writes ``{gen_…}:record`` in the same step. So there is a record for every generation that
ended, whoever ended it and whatever crashed. It is a hash of

- ``asked``: JSON of ``RequestSummary`` below, written when the generation was opened;
- ``end``: the data of the ``end`` frame, see ``common/records/end.py``;
- ``ended_ms``: when it ended, by Redis' clock;
- ``note``: for a generation that no worker ended, the attempts that its worker last reported.

It has no expiry. The queue's scripts that remove the job also push its id to the list ``sluice:q:ended``, at least once.
"""

from dataclasses import dataclass, fields
from typing import Any

import orjson

FORMAT = 2  # The previous version wrote no format number, and the same fields.


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """Who requested what, and when. With ``is_audited`` the request and the log stay until the collector has read them."""

    owner: str
    tenant: str
    end_user: str | None
    request_id: str
    dialect: str
    operation: str
    stream: bool
    model: str
    created_ms: int
    is_audited: bool = False
    cache: str = "miss"  # off, bypass, miss, hit or join; see docs/caching.md.
    answered_by: str | None = None  # The generation whose answer it got, if that is another one.
    row_id: str | None = None  # The generation that the ledger's row is for, if several share the log.

    def pack(self) -> bytes:
        return orjson.dumps({"format": FORMAT} | {name: getattr(self, name) for name in _NAMES})

    @classmethod
    def unpack(cls, packed: bytes) -> "RequestSummary":
        """Unpack a summary. Fields of a newer version are ignored.

        Raises:
            ValueError: it is not a summary.
        """
        stored: dict[str, Any] = orjson.loads(packed)
        try:
            return cls(**{name: value for name, value in stored.items() if name in _NAMES})
        except TypeError as error:
            raise ValueError(str(error)) from error


_NAMES = tuple(field_info.name for field_info in fields(RequestSummary))
