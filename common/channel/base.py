"""What is a channel?

A channel is the ordered log of one generation's frames, plus their live delivery. Only the log decides what happened: live
messages may be lost, doubled or late. Every live message names its predecessor, so a reader notices a gap and repairs it
from the log. Epoch and token identify a writer (see ``Claim``): several processes may believe that they own a generation,
but the log accepts frames only from the one that fenced it last.

This file holds what both tiers must agree on. It does not decide who may read (``enter`` checks the owner) and when to give
up (``api.relay.viewer`` and ``workers.publish.publisher`` have the timeouts).
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
    """The position of a frame: its epoch, then its number in that epoch. ``(0, 0)`` is before all frames."""

    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"

    def before(self) -> "FrameId":
        """Return the largest id that is less than this one."""
        return FrameId(self.epoch, self.n - 1) if self.n else FrameId(self.epoch - 1, 2**40)

    @classmethod
    def from_text(cls, text: str | bytes) -> "FrameId":
        epoch, _, n = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(epoch), int(n))


START = FrameId(0, 0)
NOBODY = ""  # The owner of a log that several generations share. Each of them has an owner.
_CURSOR = re.compile(r"([1-9][0-9]{0,8})-([0-9]{1,12})\.([0-9]{1,9})")


class Cursor(NamedTuple):
    """A reader's position: it has read all frames before ``frame``, and the first ``k`` events of ``frame``."""

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
                "The cursor in Last-Event-ID must be the id of an event of this generation, such as 1-2.3. "
                "Leave the header out to read from the start.",
                code="invalid_cursor",
                param="last-event-id",
            )
        epoch, n, k = map(int, match.groups())
        return cls(FrameId(epoch, n), k)


class FrameKind(StrEnum):
    FENCE = "fence"  # A new claim begins. The data is the id of the last frame before it.
    HEAD = "head"  # The commit point. The data is a ``Head``: status, headers and more.
    DATA = "data"  # Whole SSE events, or a piece of a JSON body.
    END = "end"  # Nothing follows. The data is an ``End``: error (or null), usage, finish_reason and more.
    PART = "part"  # Only a live message: a generation that shared this log has parted from it. The data is its id.


class Frame(NamedTuple):
    id: FrameId
    kind: FrameKind
    data: bytes


class Message(NamedTuple):
    """One live message: a frame with the id of its predecessor. ``frame`` None: a heartbeat, ``previous`` is the last id."""

    previous: FrameId
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a generation's job. The token distinguishes two claims of one epoch (Redis may lose a raised epoch)."""

    generation_id: str
    epoch: int
    token: str


class WriteStatus(StrEnum):
    OK = "ok"
    ENDED = "ended"
    FENCED = "fenced"  # Another claim owns the log now: write no more.
    BEHIND = "behind"  # The log ends before ``previous``: acknowledged frames were lost. Append again after ``last``.
    GONE = "gone"  # The log does not exist, or no longer exists.


class Stop(StrEnum):
    NO = "no"
    CANCELLED = "cancelled"  # A client stopped the generation.
    LEFT = "left"  # The last viewer left, and the grace time of the policy is over.
    API_ENDED = "api_ended"  # The same, but it did not leave: its API process stopped or died.


class WriteResult(NamedTuple):
    """The log's answer to a writer. ``listeners`` is the number of API processes that received the message, -1 if unknown."""

    status: WriteStatus
    last: FrameId
    stop: Stop
    listeners: int


@dataclass(slots=True)
class Append:
    """Consecutive frames of one claim. ``previous`` is the id before the first."""

    claim: Claim
    previous: FrameId
    frames: list[Frame]


@dataclass(slots=True)
class Fenced:
    """The result of a fence. ``empty_claims`` counts the latest claims in a row, this one included, without any other frame.

    ``note`` is the last note that an earlier claim left with a heartbeat.
    """

    answer: WriteResult
    has_head: bool = False
    empty_claims: int = 0
    request: bytes | None = None
    note: bytes | None = None


@dataclass(slots=True)
class Opening:
    """The data of a generation that does not change after it is opened. Times are in seconds."""

    owner: str
    dialect: str
    stream: bool
    model: str
    created_s: int
    policy: Policy
    grace_s: float
    retention_s: float
    expiry_s: float  # Safety net: a log without an end is removed after this time.
    request: bytes = field(repr=False)
    request_summary: bytes = b""  # For the ledger; see ``common.records.request_summary``.
    is_audited: bool = False
    job_class: str = "interactive"
    body: bytes | bytearray = field(default=b"", repr=False)  # The rest of the request, stored after it. It may be large.


@dataclass(slots=True)
class State:
    """The state of a generation, for readers. ``head`` is the first one. ``end`` may be None after a failover that lost it.

    ``has_left``: the last viewer has left, and none came back before the end.
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
    claims: int = 0  # Without claims after the generation waited for its upstream.
    head: Head | None = field(default=None, repr=False)
    end: End | None = field(default=None, repr=False)
    job_class: str = "interactive"
    source: str = ""  # The generation whose log it reads, if that is another one.


class Record(NamedTuple):
    """What the script that appends ``end`` leaves for the ledger. ``end`` is that frame's data."""

    request_summary: bytes
    end: bytes
    ended_ms: int


class Channel(Protocol):
    """Every method may raise ``StoreUnavailable``. Other exceptions are named where they occur."""

    async def open(self, generation_id: str, opening: Opening, replica: str) -> None:
        """Create the state of a new generation, with ``replica`` as its first viewer (empty: no viewer)."""
        ...

    async def follow(self, generation_id: str, source: str, opening: Opening) -> None:
        """Create the state of a new generation that reads the log of ``source``, which need not exist yet.

        Where it is not known yet which log that is (``source`` is empty), the enqueue script fills it in.
        Its readers see that log as its own. ``opening``'s request and its class of viewers are not used.
        """
        ...

    async def part(self, generation_id: str, source: str, failed: Failed, *, is_readable: bool) -> tuple[WriteStatus, bool]:
        """End one of the generations that read the log of ``source``, with a failure of its own. The others go on.

        ``is_readable``: it gets a log of its own, with what the shared log has so far, and ``source`` must stop if nobody else
        reads its log. Otherwise only the ledger learns of it: the client has left for good.
        Returns OK, ENDED (``source`` has ended, and so did this generation) or GONE; and whether ``source`` must stop.
        """
        ...

    async def discard(self, generation_id: str) -> None:
        """Remove a generation that was opened but never enqueued."""
        ...

    async def fence(self, claim: Claim, *, is_handover: bool, was_postponed: bool = False) -> Fenced:
        """Append the frame ``<epoch>-0`` and fence all earlier claims. Repeating the call returns the same answer.

        ``was_postponed``: the generation waited for its upstream. This claim counts neither as an empty one nor as a new one.
        """
        ...

    async def append(self, appends: list[Append]) -> list[WriteResult]:
        """Append and publish frames for many generations at once. A refusal for one does not affect the others."""
        ...

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[WriteResult]:
        """Publish each log's last id without logging it, and keep each claim's note (if not empty) for the next claim."""
        ...

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        """Return up to ``count`` frames that follow ``after``."""
        ...

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        """Add a replica to the viewers and clear a dated stop flag.

        Raises:
            GatewayError: NOT_FOUND (unknown, or of another owner), EXPIRED.
        """
        ...

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        """Return the states of generations without entering. Where ``enter`` would refuse one, its error is in its place."""
        ...

    async def leave(self, generation_id: str, replica: str, reason: Stop = Stop.LEFT) -> Stop:
        """Remove a replica. If it was the last, set the stop flag as the policy says. Returns the flag's present state.

        ``reason``: what the flag says then, LEFT or API_ENDED.
        """
        ...

    async def stop(self, generation_id: str) -> WriteStatus:
        """Set the permanent stop flag. Returns OK, ENDED or GONE."""
        ...

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> WriteStatus:
        """Append ``end`` with the next epoch to a log that no worker will end. Returns OK (also if it has ended) or GONE."""
        ...

    async def evict(self, generation_id: str) -> bool:
        """Remove an ended log before it expires. Returns whether it is gone; it stays while it runs or the ledger needs it."""
        ...

    async def last_ids(self, generation_ids: list[str]) -> list[FrameId | None]:
        """Return each log's last id; None where there is no state."""
        ...

    async def record(self, generation_id: str) -> Record | None:
        """Return the ledger's record of an ended generation. None: it has not ended, or the ledger has stored the record."""
        ...


class Feed(Protocol):
    """Live messages of the generations that one process listens to."""

    async def subscribe(self, generation_id: str, sink: "Callable[[Message], None]") -> None:
        """Call ``sink`` for each message from now on. Returns once no further message can be missed."""
        ...

    async def unsubscribe(self, generation_id: str) -> None: ...

    def on_resubscribed(self, callback: "Callable[[], None]") -> None:
        """Call ``callback`` after each reconnection. Messages may have been lost, so every log must be read again."""
        ...


_STOPPED = {
    Stop.CANCELLED: "The generation was stopped.",
    Stop.LEFT: "The generation was stopped: its client left.",
    Stop.API_ENDED: "The generation was stopped: the gateway process that served its client ended.",
}


def stop_failure(stop: Stop) -> Failed:
    """Return what a generation ends with that a stop flag stopped."""
    return Failed(ErrorKind.CANCELLED, _STOPPED[stop], code="cancelled")


def unknown_generation_error(generation_id: str) -> GatewayError:
    return GatewayError(
        ErrorKind.NOT_FOUND,
        f"You have no generation {generation_id!r}. Check the id, and use the key that started it.",
        code="generation_not_found",
    )


def expired_generation_error(generation_id: str) -> GatewayError:
    return GatewayError(
        ErrorKind.EXPIRED,
        f"The generation {generation_id!r} ended and its log has expired. Send the request again to start a new one.",
        code="generation_expired",
    )
