"""What is a channel?

The ordered log of one generation's frames plus their live delivery. The log is the only judge of what happened: live
messages may be lost, doubled or late, and every one of them names its predecessor, so that a reader sees a gap and
repairs it from the log. Writers are told apart by epoch and token (see ``Claim``): of all the processes that ever
believe that they own a generation, the log obeys only the one that fenced it last.

What belongs here is what both tiers must agree on. Not solved here: who may read (the API checks the owner that ``enter``
returns) and when to give up (``api.relay.viewer`` and ``workers.publish.publisher`` hold the clocks).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.records.end import End
from common.records.head import Head


class FrameId(NamedTuple):
    """Where a frame stands: ordered by epoch, then by its place in it. ``(0, 0)`` is before all frames."""

    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"

    def before(self) -> "FrameId":
        """Return an id that is less than this one and not less than any other that is."""
        return FrameId(self.epoch, self.n - 1) if self.n else FrameId(self.epoch - 1, 2**40)

    @classmethod
    def of(cls, text: str | bytes) -> "FrameId":
        epoch, _, n = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(epoch), int(n))


START = FrameId(0, 0)
_CURSOR = re.compile(r"([1-9][0-9]{0,8})-([0-9]{1,12})\.([0-9]{1,9})")


class Cursor(NamedTuple):
    """A reader's position: it has read the first ``k`` events of ``frame``, and all before."""

    frame: FrameId
    k: int

    def __str__(self) -> str:
        return f"{self.frame}.{self.k}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that a client sent.

        Raises:
            GatewayError: INVALID_REQUEST.
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise GatewayError(
                ErrorKind.INVALID_REQUEST,
                "The cursor in Last-Event-ID must be an id of this generation's events, such as 1-2.3. "
                "Leave it out to read from the start.",
                code="invalid_cursor",
                param="last-event-id",
            )
        epoch, n, k = map(int, match.groups())
        return cls(FrameId(epoch, n), k)


class FrameKind(StrEnum):
    FENCE = "fence"  # A new claim begins; the data is the id of the last frame that it builds on.
    HEAD = "head"  # The commit point; the data is a JSON object: status and headers.
    DATA = "data"  # Whole SSE events, or a piece of a JSON body.
    END = "end"  # Nothing follows; the data is a JSON object: error (or null), usage, finish_reason.


class Frame(NamedTuple):
    id: FrameId
    kind: FrameKind
    data: bytes


class Message(NamedTuple):
    """One live message: a frame with the id of its predecessor, or (``frame`` None) a heartbeat with the log's last id."""

    previous: FrameId
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a generation's job. The token tells two claims of one epoch apart (Redis may lose a raised epoch)."""

    generation_id: str
    epoch: int
    token: str


class Verdict(StrEnum):
    OK = "ok"
    ENDED = "ended"
    FENCED = "fenced"  # Somebody else owns it now: stop, and write no more.
    BEHIND = "behind"  # The log ends before ``previous``: acknowledged frames were lost, append again from ``last``.
    GONE = "gone"  # The log does not exist (any more).


class Stop(StrEnum):
    NO = "no"
    CANCELLED = "cancelled"  # Somebody said stop.
    LEFT = "left"  # The last viewer left, and the policy's time is over.


class Answer(NamedTuple):
    """What the log says to a writer. ``listeners`` is the number of API processes that took the message."""

    verdict: Verdict
    last: FrameId
    stop: Stop
    listeners: int


@dataclass(slots=True)
class Append:
    """Frames of one claim that follow each other; ``previous`` is the id before the first."""

    claim: Claim
    previous: FrameId
    frames: list[Frame]


@dataclass(slots=True)
class Fenced:
    """What a fence found. ``barren`` counts the claims in a row, this one included, that appended nothing but a fence.

    ``note`` is the last that a claim before left with a heartbeat.
    """

    answer: Answer
    has_head: bool = False
    barren: int = 0
    request: bytes | None = None
    note: bytes | None = None


@dataclass(slots=True)
class Opening:
    """What is fixed when a generation is opened. Times in seconds."""

    owner: str
    dialect: str
    stream: bool
    model: str
    created_s: int
    policy: Policy
    grace_s: float
    retention_s: float
    expiry_s: float  # Safety net: no log outlives this.
    request: bytes = field(repr=False)
    request_summary: bytes = b""  # For the ledger; see ``common.records.request_summary``.
    is_audited: bool = False
    job_class: str = "interactive"
    body: bytes | bytearray = field(default=b"", repr=False)  # The rest of the request: stored behind it, and perhaps large.


@dataclass(slots=True)
class State:
    """What a reader learns on entering. ``head`` is the first one, ``end`` None also where Redis lost it in a failover.

    ``has_left``: the last viewer has left, and nobody came back before the end.
    """

    owner: str
    dialect: str
    stream: bool
    model: str
    created_s: int
    policy: Policy
    last: FrameId
    has_ended: bool
    has_left: bool = False
    claims: int = 0  # But for those of a generation that waited for its upstream.
    head: Head | None = field(default=None, repr=False)
    end: End | None = field(default=None, repr=False)
    job_class: str = "interactive"


class Record(NamedTuple):
    """What the script that appends ``end`` leaves to the ledger. ``end`` is that frame's data."""

    request_summary: bytes
    end: bytes
    ended_ms: int


class Channel(Protocol):
    """Every method may raise ``StoreUnavailable``; nothing else."""

    async def open(self, generation_id: str, opening: Opening, replica: str) -> None:
        """Create the state of a new generation, with ``replica`` among its viewers (the empty name: none)."""
        ...

    async def discard(self, generation_id: str) -> None:
        """Remove a generation that was opened but never enqueued."""
        ...

    async def fence(self, claim: Claim, *, is_handover: bool, was_postponed: bool = False) -> Fenced:
        """Append the frame ``<epoch>-0`` and fence all earlier claims. The same call again is answered as the first was.

        ``was_postponed``: the generation waited for its upstream, which is neither a barren claim nor another worker's.
        """
        ...

    async def append(self, appends: list[Append]) -> list[Answer]:
        """Append and publish, for many generations at once; one's refusal does not touch the others."""
        ...

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[Answer]:
        """Publish each log's last id, unlogged, and keep each claim's note, if it has one, for the claim that follows."""
        ...

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        """Return up to ``count`` frames that follow ``after``."""
        ...

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        """Add a replica to the viewers and clear a dated stop flag.

        Raises:
            GatewayError: NOT_FOUND (unknown, or a stranger's), EXPIRED.
        """
        ...

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        """Return how generations stand, without entering; in place of one that ``enter`` would refuse, its error."""
        ...

    async def leave(self, generation_id: str, replica: str) -> Stop:
        """Remove a replica; if it was the last, set the stop flag by policy. Returns the flag as it stands now."""
        ...

    async def stop(self, generation_id: str) -> Verdict:
        """Set the stop flag for good: OK, ENDED or GONE."""
        ...

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> Verdict:
        """Append ``end`` with the next epoch, where no worker will: OK (also if ended before) or GONE."""
        ...

    async def evict(self, generation_id: str) -> bool:
        """Remove an ended log before its time; returns whether it is gone: not while it runs, or the ledger has not read it."""
        ...

    async def look(self, generation_ids: list[str]) -> list[FrameId | None]:
        """Return each log's last id; None where there is no state."""
        ...

    async def record(self, generation_id: str) -> Record | None:
        """Return what the ledger is to have of an ended generation; None: it has not ended, or the ledger has it."""
        ...


class Feed(Protocol):
    """Live messages of the generations that one process listens to."""

    async def subscribe(self, generation_id: str, sink: "Callable[[Message], None]") -> None:
        """Call ``sink`` for each message from now on; returns once no message can be missed any more."""
        ...

    async def unsubscribe(self, generation_id: str) -> None: ...

    def on_resubscribed(self, callback: "Callable[[], None]") -> None:
        """Call back after each reconnection: messages may have been lost, so every log must be read again."""
        ...


def unknown(generation_id: str) -> GatewayError:
    return GatewayError(
        ErrorKind.NOT_FOUND,
        f"There is no generation {generation_id!r} of yours. Check the id, and use the key that started it.",
        code="generation_not_found",
    )


def expired(generation_id: str) -> GatewayError:
    return GatewayError(
        ErrorKind.EXPIRED,
        f"The generation {generation_id!r} ended and its log has expired. Send the request again to start a new one.",
        code="generation_expired",
    )
