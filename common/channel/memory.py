"""A channel inside one process, for unit tests. It passes the same contract tests as the Redis channel."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from common.canonical.errors import Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import (
    START,
    Append,
    Claim,
    Fenced,
    Frame,
    FrameId,
    FrameKind,
    Message,
    Opening,
    Record,
    State,
    Stop,
    WriteResult,
    WriteStatus,
    expired_generation_error,
    unknown_generation_error,
)
from common.records.end import End, pack_failure
from common.records.head import Head


@dataclass(slots=True)
class _Log:
    opening: Opening
    viewers: set[str]
    frames: list[Frame] = field(default_factory=list)
    epoch: int = 0
    token: str = ""
    empty_claims: int = 0
    claims: int = 0
    note: bytes | None = None
    has_ended: bool = False
    is_cancelled: bool = False
    left_due_s: float | None = None
    absence: Stop = Stop.LEFT
    dies_at_s: float | None = None

    @property
    def last(self) -> FrameId:
        return self.frames[-1].id if self.frames else START


class MemoryChannel:
    """Channel and feed in one. ``clock`` returns seconds; logs expire by this clock."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._logs: dict[str, _Log] = {}
        self._tombstones: dict[str, str] = {}
        self._records: dict[str, Record] = {}
        self._following: dict[str, tuple[str, Opening]] = {}
        self._followers: dict[str, dict[str, bool]] = {}  # By log: each reader, and whether it is still one.
        self._sinks: dict[str, Callable[[Message], None]] = {}

    async def open(self, generation_id: str, opening: Opening, replica: str) -> None:
        self._logs[generation_id] = _Log(copy.copy(opening), {replica} - {""})

    async def follow(self, generation_id: str, source: str, opening: Opening) -> None:
        self._following[generation_id] = (source, copy.copy(opening))
        self._followers.setdefault(source, {})[generation_id] = True

    async def part(self, generation_id: str, source: str, failed: Failed, *, is_readable: bool) -> tuple[WriteStatus, bool]:
        shared, following = self._log(source), self._following.get(generation_id)
        if generation_id in self._logs or (shared and shared.has_ended):
            return WriteStatus.ENDED, False
        if shared is None or following is None:
            return WriteStatus.GONE, False
        self._followers[source][generation_id] = False
        if not is_readable:
            return WriteStatus.OK, False
        del self._following[generation_id]
        end = Frame(FrameId(shared.last.epoch + 1, 0), FrameKind.END, pack_failure(failed))
        log = _Log(following[1], set(), [*shared.frames, end], claims=shared.claims, has_ended=True, is_cancelled=True)
        log.dies_at_s = self._clock() + following[1].retention_s
        self._logs[generation_id] = log
        if sink := self._sinks.get(source):
            sink(Message(shared.last, Frame(shared.last, FrameKind.PART, generation_id.encode())))
        must_stop = not any(self._followers[source].values())
        shared.is_cancelled = shared.is_cancelled or must_stop
        return WriteStatus.OK, must_stop

    async def discard(self, generation_id: str) -> None:
        self._logs.pop(generation_id, None)
        self._following.pop(generation_id, None)

    async def fence(self, claim: Claim, *, is_handover: bool, was_postponed: bool = False) -> Fenced:
        log = self._log(claim.generation_id)
        if log is None:
            return Fenced(WriteResult(WriteStatus.GONE, START, Stop.NO, 0))
        if log.has_ended:
            return Fenced(self._answer(log, WriteStatus.ENDED))
        is_resend = (log.epoch, log.token) == (claim.epoch, claim.token)
        if not is_resend and log.epoch >= claim.epoch:
            return Fenced(self._answer(log, WriteStatus.FENCED))
        built_on = log.last
        if is_resend:
            built_on = next(FrameId.from_text(frame.data) for frame in log.frames if frame.id == FrameId(claim.epoch, 0))
        else:
            log.empty_claims += 0 if is_handover or was_postponed else 1
            log.claims += 0 if was_postponed else 1
            log.epoch, log.token = claim.epoch, claim.token
            frame = Frame(FrameId(claim.epoch, 0), FrameKind.FENCE, str(log.last).encode())
            self._add(claim.generation_id, log, frame)
        has_head = any(frame.kind is FrameKind.HEAD for frame in log.frames)
        answer = self._answer(log, WriteStatus.OK)._replace(last=built_on)
        return Fenced(answer, has_head, log.empty_claims, log.opening.request + log.opening.body, log.note)

    async def append(self, appends: list[Append]) -> list[WriteResult]:
        return [self._append(item) for item in appends]

    def _append(self, item: Append) -> WriteResult:
        claim, log = item.claim, self._log(item.claim.generation_id)
        if log is None:
            return WriteResult(WriteStatus.GONE, START, Stop.NO, 0)
        is_owner = (log.epoch, log.token) == (claim.epoch, claim.token)
        previous, frames = item.previous, item.frames
        if is_owner:  # Skip frames that the log has: this is a resend after a lost answer.
            while frames and log.last.epoch == claim.epoch and frames[0].id <= log.last:
                previous, frames = frames[0].id, frames[1:]
            if not frames:
                return self._answer(log, WriteStatus.OK)
        if log.has_ended:
            return self._answer(log, WriteStatus.ENDED)
        if not is_owner and log.epoch >= claim.epoch:
            return self._answer(log, WriteStatus.FENCED)
        if previous != log.last or (not is_owner and frames[0].kind is not FrameKind.FENCE):
            return self._answer(log, WriteStatus.BEHIND)
        log.epoch, log.token = claim.epoch, claim.token
        for frame in frames:
            log.claims += frame.kind is FrameKind.FENCE
            self._add(claim.generation_id, log, frame)
        return self._answer(log, WriteStatus.OK)

    def _add(self, generation_id: str, log: _Log, frame: Frame) -> None:
        previous = log.last
        log.frames.append(frame)
        if frame.kind is not FrameKind.FENCE:
            log.empty_claims = 0
        if frame.kind is FrameKind.END:
            log.has_ended, ended_s = True, self._clock()
            log.dies_at_s = None if log.opening.is_audited else ended_s + log.opening.retention_s
            self._records[generation_id] = Record(log.opening.request_summary, frame.data, int(ended_s * 1000))
        if sink := self._sinks.get(generation_id):
            sink(Message(previous, frame))

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[WriteResult]:
        return [self._heartbeat(claim, note) for claim, note in zip(claims, notes or [b""] * len(claims), strict=True)]

    def _heartbeat(self, claim: Claim, note: bytes) -> WriteResult:
        log = self._log(claim.generation_id)
        if log is None:
            return WriteResult(WriteStatus.GONE, START, Stop.NO, 0)
        if log.has_ended:
            return self._answer(log, WriteStatus.ENDED)
        if (log.epoch, log.token) != (claim.epoch, claim.token):
            return self._answer(log, WriteStatus.BEHIND if log.epoch < claim.epoch else WriteStatus.FENCED)
        log.note = note or log.note
        if sink := self._sinks.get(claim.generation_id):
            sink(Message(log.last, None))
        return self._answer(log, WriteStatus.OK)

    def log_frames(self, generation_id: str) -> list[Frame]:
        """Return the log itself. A test that removes frames from it simulates a failover."""
        return self._logs[generation_id].frames

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        log = self._log(generation_id)
        return [frame for frame in log.frames if frame.id > after][:count] if log else []

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        log = self._log(generation_id)
        state = self._state(generation_id, owner)
        if isinstance(state, GatewayError):
            raise state
        log = self._log(state.source) if state.source else log
        if log and not log.has_ended and replica:
            log.viewers.add(replica)
            log.left_due_s = None
        return state

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        return [self._state(generation_id, owner) for generation_id in generation_ids]

    def _state(self, generation_id: str, owner: str) -> State | GatewayError:
        if generation_id in self._following:
            return self._followed_state(generation_id, owner)
        log = self._log(generation_id)
        if log is None and self._tombstones.get(generation_id) == owner:
            return expired_generation_error(generation_id)
        if log is None or log.opening.owner != owner:
            return unknown_generation_error(generation_id)
        o = log.opening
        return State(
            owner,
            o.dialect,
            o.stream,
            o.model,
            o.created_s,
            o.policy,
            log.last,
            log.has_ended,
            has_left=log.left_due_s is not None and not log.is_cancelled,
            head=next((Head.unpack(frame.data) for frame in log.frames if frame.kind is FrameKind.HEAD), None),
            end=End.unpack(log.frames[-1].data) if log.has_ended else None,
            claims=log.claims,
            job_class=o.job_class,
        )

    def _followed_state(self, generation_id: str, owner: str) -> State | GatewayError:
        source, o = self._following[generation_id]
        if o.owner != owner:
            return unknown_generation_error(generation_id)
        state = self._state(source, "")
        if isinstance(state, GatewayError):
            return expired_generation_error(generation_id)
        return replace(
            state,
            owner=owner,
            dialect=o.dialect,
            stream=o.stream,
            model=o.model,
            created_s=o.created_s,
            policy=o.policy,
            has_left=False,
            job_class=o.job_class,
            source=source,
        )

    async def leave(self, generation_id: str, replica: str, reason: Stop = Stop.LEFT) -> Stop:
        log = self._log(generation_id)
        if log is None:
            return Stop.NO
        log.viewers.discard(replica)
        if log.has_ended or log.viewers:
            return Stop.NO
        if log.left_due_s is None and log.opening.policy is not Policy.DETACH:
            grace_s = log.opening.grace_s if log.opening.policy is Policy.GRACE else 0
            log.left_due_s, log.absence = self._clock() + grace_s, reason
        return self._stop(log)

    async def stop(self, generation_id: str) -> WriteStatus:
        log = self._log(generation_id)
        if log is None:
            return WriteStatus.GONE
        if log.has_ended:
            return WriteStatus.ENDED
        log.is_cancelled = True
        return WriteStatus.OK

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> WriteStatus:
        log = self._log(generation_id)
        if log is None:
            return WriteStatus.GONE
        if not log.has_ended:
            log.epoch, log.token = log.epoch + 1, token
            data = pack_failure(failed)
            self._add(generation_id, log, Frame(FrameId(log.epoch, 0), FrameKind.END, data))
        return WriteStatus.OK

    async def evict(self, generation_id: str) -> bool:
        log = self._log(generation_id)
        if log is not None:
            if not log.has_ended or log.dies_at_s is None:
                return False
            log.dies_at_s = self._clock()
        return True

    async def last_ids(self, generation_ids: list[str]) -> list[FrameId | None]:
        logs = [self._log(generation_id) for generation_id in generation_ids]
        return [log.last if log else None for log in logs]

    async def record(self, generation_id: str) -> Record | None:
        return self._records.get(generation_id)

    async def subscribe(self, generation_id: str, sink: Callable[[Message], None]) -> None:
        self._sinks[generation_id] = sink

    async def unsubscribe(self, generation_id: str) -> None:
        self._sinks.pop(generation_id, None)

    def on_resubscribed(self, callback: Callable[[], None]) -> None:
        """Do nothing: this feed never loses its connection."""

    def _log(self, generation_id: str) -> _Log | None:
        log = self._logs.get(generation_id)
        if log and log.dies_at_s is not None and log.dies_at_s <= self._clock():
            del self._logs[generation_id]
            self._tombstones[generation_id] = log.opening.owner
            return None
        return log

    def _stop(self, log: _Log) -> Stop:
        if log.is_cancelled:
            return Stop.CANCELLED
        if log.left_due_s is not None and log.left_due_s <= self._clock():
            return log.absence
        return Stop.NO

    def _answer(self, log: _Log, status: WriteStatus) -> WriteResult:
        return WriteResult(status, log.last, self._stop(log), 1)
