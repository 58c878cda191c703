"""How does a channel live in Redis?

The log is a stream, the state a hash, live delivery pub/sub: see ``common/redis/keyspace.py``, and the Lua files beside
this one for what each step does. Every method is one round trip.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from common.canonical.errors import Failed, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import (
    Answer,
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
    Verdict,
    expired,
    unknown,
)
from common.channel.redis_feed import RedisFeed
from common.channel.redis_log import LogReader
from common.config.settings import MIB
from common.process.loop_lag import able_timeout
from common.records.end import End, pack_failure
from common.records.head import Head
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, ms
from common.redis.errors import redis_errors
from common.redis.scripts import Call, Scripts

log = structlog.get_logger()

__all__ = ["RedisChannel", "RedisFeed"]

LARGE_BYTES = MIB  # A request above goes past the scripts, and the state has its size.
LARGE_RATE = 4 * MIB  # Bytes a second that even a busy machine moves.

_new = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_END = FrameKind.END  # An enum's member costs a look-up of its own.


class RedisChannel:
    def __init__(self, redis: Client, tombstone_s: float) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._logs = LogReader(redis)
        self._tombstone_ms = ms(tombstone_s)

    async def open(self, generation_id: str, opening: Opening, replica: str) -> None:
        fields = {
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
            "asked": opening.request_summary,
            "audited": int(opening.is_audited),
            "class": opening.job_class,
        }
        names = [keyspace.state(generation_id), keyspace.viewers(generation_id), keyspace.request(generation_id)]
        request, size = b"", len(opening.request) + len(opening.body)
        if size > LARGE_BYTES:
            await self._set_large(names[2], (opening.request, opening.body), size, ms(opening.expiry_s))
            fields["large"] = size
        else:
            request = opening.request + opening.body
        flat = [item for pair in fields.items() for item in pair]
        await self._scripts.run("open", names, [replica, ms(opening.expiry_s), request, *flat])

    async def discard(self, generation_id: str) -> None:
        await self._scripts.run("discard", _log_keys(generation_id), [])

    async def fence(self, claim: Claim, *, is_handover: bool, was_postponed: bool = False) -> Fenced:
        args = [claim.epoch, claim.token, 2 if was_postponed else int(is_handover)]
        state, log_key, live, _, request_key, *_ = _log_keys(claim.generation_id)
        names = [state, log_key, live, request_key]
        answer, has_head, barren, request, note = await self._scripts.run("fence", names, args)
        if isinstance(request, int):
            request = await self._get_large(request_key, request)
        return Fenced(_answer(answer), bool(has_head), barren, request, note)

    async def append(self, appends: list[Append]) -> list[Answer]:
        # Hot path: once per flush.
        calls: list[Call] = []
        for item in appends:
            claim = item.claim
            names, names_to_end, owner = _own(claim.generation_id, claim.epoch, claim.token)
            args: list[Any] = [owner, b"%d-%d" % item.previous]
            for frame in item.frames:
                args += (b"%d-%d" % frame.id, frame.kind, frame.data)
            calls.append(("append", names_to_end if frame.kind is _END else names, args))
        ok, no = Verdict.OK, Stop.NO
        return [
            # Only the number of listeners: all went as it nearly always does.
            _new(Answer, (ok, item.frames[-1].id, no, found)) if type(found) is int else _answer(found)
            for item, found in zip(appends, await self._scripts.run_many(calls), strict=True)
        ]

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[Answer]:
        calls: list[Call] = []
        for claim, note in zip(claims, notes or [b""] * len(claims), strict=True):
            names = [keyspace.state(claim.generation_id), keyspace.live(claim.generation_id)]
            calls.append(("heartbeat", names, [claim.epoch, claim.token, note]))
        found = await self._scripts.run_many(calls)
        return [_answer(answer) for answer in found]

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        return await self._logs.read(generation_id, after, count)

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        found = _state(generation_id, owner, await self._scripts.run("enter", _entered_keys(generation_id), [replica, owner]))
        if isinstance(found, GatewayError):
            raise found
        return found

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        calls: list[Call] = [("enter", _entered_keys(generation_id), ["", owner]) for generation_id in generation_ids]
        answers = await self._scripts.run_many(calls) if calls else []
        _check(answers)
        # What is wrong with one generation's keys is nothing to the others.
        return [
            unknown(generation_id) if isinstance(answer, Exception) else _state(generation_id, owner, answer)
            for generation_id, answer in zip(generation_ids, answers, strict=True)
        ]

    async def leave(self, generation_id: str, replica: str) -> Stop:
        names = [keyspace.state(generation_id), keyspace.viewers(generation_id)]
        return Stop((await self._scripts.run("leave", names, [replica])).decode())

    async def stop(self, generation_id: str) -> Verdict:
        return Verdict((await self._scripts.run("stop", [keyspace.state(generation_id)], [])).decode())

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> Verdict:
        data = pack_failure(failed)
        return Verdict((await self._scripts.run("end_unowned", _log_keys(generation_id), [token, data])).decode())

    async def evict(self, generation_id: str) -> bool:
        return bool(await self._scripts.run("evict", _log_keys(generation_id), []))

    async def look(self, generation_ids: list[str]) -> list[FrameId | None]:
        found = await self._scripts.run_many(
            [("look", [keyspace.state(generation_id)], []) for generation_id in generation_ids]
        )
        _check(found)
        return [FrameId.of(last) if isinstance(last, bytes) else None for last in found]

    async def record(self, generation_id: str) -> Record | None:
        with redis_errors():
            async with able_timeout(COMMAND_TIMEOUT_S):
                found = await self._redis.hgetall(keyspace.record(generation_id))  # type: ignore[misc]  # redis-py's stubs.
        return Record(found[b"asked"], found[b"end"], int(found[b"ended_ms"])) if found else None

    # A script makes two more copies of what it is given or returns, and for 20 MB takes Redis five times as long; and on the
    # connection that all share, everybody else would wait behind it.

    async def _set_large(self, name: str, pieces: Sequence[bytes | bytearray], size: int, expiry_ms: int) -> None:
        with redis_errors():
            async with able_timeout(COMMAND_TIMEOUT_S + size / LARGE_RATE):
                await self._redis.set_large(name, pieces, size, expiry_ms)

    async def _get_large(self, name: str, size: int) -> bytes | None:
        with redis_errors():
            async with able_timeout(COMMAND_TIMEOUT_S + size / LARGE_RATE):
                found: bytes | None = await self._redis.get(name)
                return found


def _log_keys(generation_id: str) -> list[str]:
    tag = f"{{{generation_id}}}:"
    return [tag + name for name in ("state", "log", "live", "viewers", "request", "tombstone", "record")]


# A claim's is 1.4 kB, and is left here when the claim is over: what is kept is that of twice a worker's usual slots.
@lru_cache(maxsize=4_096)
def _own(generation_id: str, epoch: int, token: str) -> tuple[list[str], list[str], str]:
    """What stays the same in all appends of a claim: its keys, those of its last append, and whose it is."""
    names = _log_keys(generation_id)
    return names[:3], names, f"{epoch} {token} "


def _entered_keys(generation_id: str) -> list[str]:
    state, log_key, _, viewers, _, tombstone, _ = _log_keys(generation_id)
    return [state, viewers, tombstone, log_key]


def _state(generation_id: str, owner: str, answer: list[bytes]) -> State | GatewayError:
    if answer[0] != b"ok":
        return expired(generation_id) if answer[0] == b"expired" else unknown(generation_id)
    dialect, stream, model, created_s, policy, last, ended, has_left = (field.decode() for field in answer[1:9])
    return State(
        owner,
        dialect,
        stream == "1",
        model,
        int(created_s),
        Policy(policy),
        FrameId.of(last),
        has_ended=ended == "1",
        has_left=has_left == "1",
        end=End.unpack(answer[9]) if answer[9] else None,
        head=Head.unpack(answer[10]) if answer[10] else None,
        claims=int(answer[11]),
        job_class=answer[12].decode(),
    )


def _check(answers: list[Any]) -> None:
    """Raise what holds for all of a batch; what is wrong with one generation is left in its place."""
    for answer in answers:
        if isinstance(answer, StoreUnavailable):
            raise answer


def _answer(found: Any) -> Answer:
    if isinstance(found, StoreUnavailable):
        raise found
    if isinstance(found, Exception):
        # A key of this one generation is not what it must be. Its owner gives up; the others of the batch go on.
        log.error("channel_script_failed", error=str(found))
        return Answer(Verdict.GONE, FrameId(0, 0), Stop.NO, 0)
    verdict, last, stop, listeners = found
    return Answer(_VERDICTS[verdict], FrameId.of(last), _STOPS[stop], listeners)


_VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}
_STOPS = {stop.value.encode(): stop for stop in Stop}
