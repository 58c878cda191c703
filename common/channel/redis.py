"""How is a channel stored in Redis?

The log is a stream, the state is a hash, live delivery is pub/sub: see ``common/redis/keyspace.py``. The Lua files in this
folder say what each step does. Every method is one round trip; a large request needs one more.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from common.canonical.errors import Failed, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import (
    NOBODY,
    Append,
    Claim,
    Fenced,
    Frame,
    FrameId,
    FrameKind,
    Opening,
    Record,
    State,
    Stop,
    WriteResult,
    WriteStatus,
    expired_generation_error,
    unknown_generation_error,
)
from common.channel.redis_feed import RedisFeed
from common.channel.redis_log import LogReader
from common.config.settings import MIB
from common.process.loop_lag import lag_aware_timeout
from common.records.end import End, pack_failure
from common.records.head import Head
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, ms
from common.redis.errors import redis_errors
from common.redis.scripts import Call, Scripts

log = structlog.get_logger()

__all__ = ["RedisChannel", "RedisFeed"]

# Lua that the queue's claim uses too. Its Redis is never a cluster, and holds the logs.
STEPS = tuple(Path(__file__).parent / name for name in ("_prelude.lua", "_steps.lua"))

LARGE_BYTES = MIB  # A larger request is sent without a script. The state then holds its size.
LARGE_RATE = 4 * MIB  # Bytes per second that even a busy machine can move.

_new_tuple = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_END = FrameKind.END  # Looked up once: an enum member costs a lookup each time.


class RedisChannel:
    def __init__(self, redis: Client, tombstone_s: float) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._logs = LogReader(redis)
        self._tombstone_ms = ms(tombstone_s)

    async def open(self, generation_id: str, opening: Opening, replica: str) -> None:
        fields = self._fields(opening) | {"asked": opening.request_summary, "audited": int(opening.is_audited)}
        names = [keyspace.state(generation_id), keyspace.viewers(generation_id), keyspace.request(generation_id)]
        request, size = b"", len(opening.request) + len(opening.body)
        if size > LARGE_BYTES:
            await self._set_large(names[2], (opening.request, opening.body), size, ms(opening.expiry_s))
            fields["large"] = size
        else:
            request = opening.request + opening.body
        flat = [item for pair in fields.items() for item in pair]
        await self._scripts.run("open", names, [replica, ms(opening.expiry_s), request, *flat])

    def _fields(self, opening: Opening) -> dict[str, Any]:
        return {
            "format": 1,
            "owner": opening.owner,
            "dialect": opening.dialect,
            "stream": int(opening.stream),
            "model": opening.model,
            "created_s": opening.created_s,
            "policy": opening.policy.value,
            "grace_ms": ms(opening.grace_s),
            "retention_ms": ms(opening.retention_s),
            "tombstone_ms": self._tombstone_ms,
            "class": opening.job_class,
        }

    async def follow(self, generation_id: str, source: str, opening: Opening) -> None:
        fields = self._fields(opening) | {"source": source}
        flat = [item for pair in fields.items() for item in pair]
        await self._scripts.run("follow", [keyspace.state(generation_id)], [ms(opening.expiry_s), *flat])

    async def part(self, generation_id: str, source: str, failed: Failed, *, is_readable: bool) -> tuple[WriteStatus, bool]:
        own, shared = _log_keys(generation_id), _log_keys(source)
        names = [own[0], own[1], own[5], *shared[:3], shared[7]]
        args = [generation_id, pack_failure(failed), int(is_readable)]
        status, must_stop = await self._scripts.run("part", names, args)
        return WriteStatus(status.decode()), bool(must_stop)

    async def discard(self, generation_id: str) -> None:
        await self._scripts.run("discard", _log_keys(generation_id), [])

    async def fence(self, claim: Claim, *, is_handover: bool, was_postponed: bool = False) -> Fenced:
        args = [claim.epoch, claim.token, 2 if was_postponed else int(is_handover)]
        state, log_key, live, _, request_key, *_ = _log_keys(claim.generation_id)
        names = [state, log_key, live, request_key]
        fenced = parse_fenced(await self._scripts.run("fence", names, args))
        if isinstance(fenced.request, int):
            fenced.request = await self._get_large(request_key, fenced.request)
        return fenced

    async def append(self, appends: list[Append]) -> list[WriteResult]:
        # Hot path: once per flush.
        calls: list[Call] = []
        for item in appends:
            claim = item.claim
            names, names_to_end, owner = _append_keys(claim.generation_id, claim.epoch, claim.token)
            args: list[Any] = [owner, b"%d-%d" % item.previous]
            for frame in item.frames:
                args += (b"%d-%d" % frame.id, frame.kind, frame.data)
            calls.append(("append", names_to_end if frame.kind is _END else names, args))
        ok, not_stopped = WriteStatus.OK, Stop.NO
        return [
            # The script returned only the number of listeners: the usual case, all is well.
            _new_tuple(WriteResult, (ok, item.frames[-1].id, not_stopped, result))
            if type(result) is int
            else _write_result(result)
            for item, result in zip(appends, await self._scripts.run_many(calls), strict=True)
        ]

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[WriteResult]:
        calls: list[Call] = []
        for claim, note in zip(claims, notes or [b""] * len(claims), strict=True):
            names = [keyspace.state(claim.generation_id), keyspace.live(claim.generation_id)]
            calls.append(("heartbeat", names, [claim.epoch, claim.token, note]))
        results = await self._scripts.run_many(calls)
        return [_write_result(result) for result in results]

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        return await self._logs.read(generation_id, after, count)

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        answer = await self._scripts.run("enter", _entered_keys(generation_id), [replica, owner])
        if answer[0] == b"follows":
            source = await self._scripts.run("enter", _entered_keys(answer[1].decode()), [replica, NOBODY])
            state = _parse_followed(generation_id, owner, answer, source)
        else:
            state = _parse_state(generation_id, owner, answer)
        if isinstance(state, GatewayError):
            raise state
        return state

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        calls: list[Call] = [("enter", _entered_keys(generation_id), ["", owner]) for generation_id in generation_ids]
        answers = await self._scripts.run_many(calls) if calls else []
        _raise_unavailable(answers)
        followed = [answer[1].decode() for answer in answers if _follows(answer)]
        calls = [("enter", _entered_keys(source), ["", NOBODY]) for source in followed]
        sources = await self._scripts.run_many(calls) if calls else []
        _raise_unavailable(sources)
        states: list[State | GatewayError] = []
        for generation_id, answer in zip(generation_ids, answers, strict=True):
            if isinstance(answer, Exception):  # Bad keys of one generation do not affect the others.
                states.append(unknown_generation_error(generation_id))
            elif _follows(answer):
                states.append(_parse_followed(generation_id, owner, answer, sources.pop(0)))
            else:
                states.append(_parse_state(generation_id, owner, answer))
        return states

    async def leave(self, generation_id: str, replica: str, reason: Stop = Stop.LEFT) -> Stop:
        names = [keyspace.state(generation_id), keyspace.viewers(generation_id)]
        return Stop((await self._scripts.run("leave", names, [replica, reason])).decode())

    async def stop(self, generation_id: str) -> WriteStatus:
        return WriteStatus((await self._scripts.run("stop", [keyspace.state(generation_id)], [])).decode())

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> WriteStatus:
        data = pack_failure(failed)
        return WriteStatus((await self._scripts.run("end_unowned", _log_keys(generation_id), [token, data])).decode())

    async def evict(self, generation_id: str) -> bool:
        return bool(await self._scripts.run("evict", _log_keys(generation_id), []))

    async def last_ids(self, generation_ids: list[str]) -> list[FrameId | None]:
        ids = await self._scripts.run_many(
            [("last_id", [keyspace.state(generation_id)], []) for generation_id in generation_ids]
        )
        _raise_unavailable(ids)
        return [FrameId.from_text(last_id) if isinstance(last_id, bytes) else None for last_id in ids]

    async def record(self, generation_id: str) -> Record | None:
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                fields = await self._redis.hgetall(keyspace.record(generation_id))  # type: ignore[misc]  # redis-py's stubs.
        return Record(fields[b"asked"], fields[b"end"], int(fields[b"ended_ms"])) if fields else None

    # Large requests use plain commands on a connection of their own. A script makes two more copies of its arguments and
    # results, and for 20 MB takes Redis five times as long. On the shared connection all other callers would wait for it.

    async def _set_large(self, name: str, pieces: Sequence[bytes | bytearray], size: int, expiry_ms: int) -> None:
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S + size / LARGE_RATE):
                await self._redis.set_large(name, pieces, size, expiry_ms)

    async def _get_large(self, name: str, size: int) -> bytes | None:
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S + size / LARGE_RATE):
                value: bytes | None = await self._redis.get(name)
                return value


def _log_keys(generation_id: str) -> list[str]:
    tag = f"{{{generation_id}}}:"
    return [tag + name for name in ("state", "log", "live", "viewers", "request", "tombstone", "record", "followers")]


# An entry is 1.4 kB and stays after its claim has ended. The maximum is twice a worker's default number of slots.
@lru_cache(maxsize=4_096)
def _append_keys(generation_id: str, epoch: int, token: str) -> tuple[list[str], list[str], str]:
    """Return what all appends of a claim share: its keys, the keys of its last append, and the prefix of its position."""
    names = _log_keys(generation_id)
    return names[:3], names, f"{epoch} {token} "


def parse_fenced(answer: list[Any]) -> Fenced:
    """Parse what ``fence_log`` returned. ``request`` is its size where it is a large one."""
    result, has_head, empty_claims, request, note = answer
    return Fenced(_write_result(result), bool(has_head), empty_claims, request, note)


def _entered_keys(generation_id: str) -> list[str]:
    state, log_key, _, viewers, _, tombstone, *_ = _log_keys(generation_id)
    return [state, viewers, tombstone, log_key]


def _parse_state(generation_id: str, owner: str, answer: list[bytes]) -> State | GatewayError:
    if answer[0] != b"ok":
        return expired_generation_error(generation_id) if answer[0] == b"expired" else unknown_generation_error(generation_id)
    dialect, stream, model, created_s, policy, last, ended, has_left = (field.decode() for field in answer[1:9])
    return State(
        owner,
        dialect,
        stream == "1",
        model,
        int(created_s),
        Policy(policy),
        FrameId.from_text(last),
        has_ended=ended == "1",
        has_left=has_left == "1",
        end=End.unpack(answer[9]) if answer[9] else None,
        head=Head.unpack(answer[10]) if answer[10] else None,
        claims=int(answer[11]),
        job_class=answer[12].decode(),
    )


def _follows(answer: Any) -> bool:
    return isinstance(answer, list) and answer[0] == b"follows"


def _parse_followed(generation_id: str, owner: str, answer: list[bytes], source: Any) -> State | GatewayError:
    """Return the state of a generation that reads another one's log. ``source`` is the answer about that one."""
    state = expired_generation_error(generation_id) if isinstance(source, Exception) else _parse_state("", owner, source)
    if isinstance(state, GatewayError):
        return expired_generation_error(generation_id)
    _, source_id, dialect, stream, model, created_s, policy, job_class = (field.decode() for field in answer)
    return replace(
        state,
        dialect=dialect,
        stream=stream == "1",
        model=model,
        created_s=int(created_s),
        policy=Policy(policy),
        has_left=False,
        job_class=job_class,
        source=source_id,
    )


def _raise_unavailable(answers: list[Any]) -> None:
    """Raise an error that concerns the whole batch. Errors of one generation stay in their places."""
    for answer in answers:
        if isinstance(answer, StoreUnavailable):
            raise answer


def _write_result(answer: Any) -> WriteResult:
    if isinstance(answer, StoreUnavailable):
        raise answer
    if isinstance(answer, Exception):
        # A key of this generation has a wrong type or value. Its owner gives up; the rest of the batch is not affected.
        log.error("channel_script_failed", error=str(answer))
        return WriteResult(WriteStatus.GONE, FrameId(0, 0), Stop.NO, 0)
    status, last, stop, listeners = answer
    return WriteResult(_STATUSES[status], FrameId.from_text(last), _STOPS[stop], listeners)


_STATUSES = {status.value.encode(): status for status in WriteStatus}
_STOPS = {stop.value.encode(): stop for stop in Stop}
