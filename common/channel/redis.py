"""How does a channel live in Redis?

The log is a stream, the state a hash, live delivery pub/sub: see ``common/keys.py``, and the Lua files beside this one for
what each step does. Every method is one round trip.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import hiredis
import orjson
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from common import keys
from common.channel.base import (
    Answer,
    Append,
    ChannelUnavailable,
    Claim,
    Fenced,
    Frame,
    FrameId,
    FrameKind,
    Message,
    Opening,
    Policy,
    Record,
    State,
    Stop,
    Verdict,
    expired,
    unknown,
)
from common.errors import Failed, GatewayError
from common.process import in_background
from common.redis_client import COMMAND_TIMEOUT_S, Call, Client, RedisUnavailable, Scripts, as_unavailable, ms
from common.redis_pipe import Pipe

log = structlog.get_logger()

_new = tuple.__new__  # A named tuple's own constructor is a Python function, and too slow for every frame.
_END = FrameKind.END  # An enum's member costs a look-up of its own.
FEED_PING_S = 1.0
# A subscriber that falls behind by more is cut: 256 MiB at once, or 64 MiB for a minute. Ours repairs the gap from the log.
OUTPUT_LIMIT = "pubsub 268435456 67108864 60"
FEED_SILENCE_MAX_S = 3.0  # Pings are answered at once; three seconds of nothing is a dead connection.


class RedisChannel:
    def __init__(self, redis: Client, tombstone_s: float) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)
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
            "asked": opening.asked,
            "audited": int(opening.is_audited),
        }
        flat = [item for pair in fields.items() for item in pair]
        names = [keys.state(generation_id), keys.viewers(generation_id), keys.request(generation_id)]
        await self._run("open", names, [replica, ms(opening.expiry_s), opening.request, *flat])

    async def discard(self, generation_id: str) -> None:
        await self._run("discard", _log_keys(generation_id), [])

    async def fence(self, claim: Claim, *, is_handover: bool) -> Fenced:
        args = [claim.epoch, claim.token, int(is_handover)]
        state, log_key, live, _, request_key, *_ = _log_keys(claim.generation_id)
        names = [state, log_key, live, request_key]
        answer, has_head, barren, request, note = await self._run("fence", names, args)
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
            for item, found in zip(appends, await self._run_many(calls), strict=True)
        ]

    async def heartbeat(self, claims: list[Claim], notes: Sequence[bytes] = ()) -> list[Answer]:
        calls: list[Call] = []
        for claim, note in zip(claims, notes or [b""] * len(claims), strict=True):
            names = [keys.state(claim.generation_id), keys.live(claim.generation_id)]
            calls.append(("heartbeat", names, [claim.epoch, claim.token, note]))
        found = await self._run_many(calls)
        return [_answer(answer) for answer in found]

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                entries = await self._redis.xrange(keys.log(generation_id), min=f"({after}", count=count)
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error
        return [Frame(FrameId.of(entry_id), FrameKind(fields[b"k"].decode()), fields[b"d"]) for entry_id, fields in entries]

    async def enter(self, generation_id: str, replica: str, owner: str) -> State:
        found = _state(generation_id, owner, await self._run("enter", _entered_keys(generation_id), [replica, owner]))
        if isinstance(found, GatewayError):
            raise found
        return found

    async def describe(self, generation_ids: list[str], owner: str) -> list[State | GatewayError]:
        calls: list[Call] = [("enter", _entered_keys(generation_id), ["", owner]) for generation_id in generation_ids]
        answers = await self._run_many(calls) if calls else []
        if broken := next((answer for answer in answers if isinstance(answer, Exception)), None):
            raise ChannelUnavailable(str(broken))
        return [_state(generation_id, owner, answer) for generation_id, answer in zip(generation_ids, answers, strict=True)]

    async def leave(self, generation_id: str, replica: str) -> Stop:
        names = [keys.state(generation_id), keys.viewers(generation_id)]
        return Stop((await self._run("leave", names, [replica])).decode())

    async def stop(self, generation_id: str) -> Verdict:
        return Verdict((await self._run("stop", [keys.state(generation_id)], [])).decode())

    async def end_unowned(self, generation_id: str, token: str, failed: Failed) -> Verdict:
        data = orjson.dumps({"error": failed.to_dict()})
        return Verdict((await self._run("end_unowned", _log_keys(generation_id), [token, data])).decode())

    async def look(self, generation_ids: list[str]) -> list[FrameId | None]:
        found = await self._run_many([("look", [keys.state(generation_id)], []) for generation_id in generation_ids])
        if broken := next((last for last in found if isinstance(last, Exception)), None):
            raise ChannelUnavailable(str(broken))
        return [FrameId.of(last) if last else None for last in found]

    async def record(self, generation_id: str) -> Record | None:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                found = await self._redis.hgetall(keys.record(generation_id))  # type: ignore[misc]  # redis-py's stubs.
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error
        return Record(found[b"asked"], found[b"end"], int(found[b"ended_ms"])) if found else None

    async def _run(self, name: str, names: list[str], args: list[Any]) -> Any:
        try:
            return await self._scripts.run(name, names, args)
        except RedisUnavailable as error:
            raise ChannelUnavailable(str(error)) from error

    async def _run_many(self, calls: list[Call]) -> list[Any]:
        try:
            return await self._scripts.run_many(calls)
        except RedisUnavailable as error:
            raise ChannelUnavailable(str(error)) from error


@lru_cache(maxsize=16_384)
def _log_keys(generation_id: str) -> list[str]:
    tag = f"{{{generation_id}}}:"
    return [tag + name for name in ("state", "log", "live", "viewers", "request", "tombstone", "record")]


@lru_cache(maxsize=16_384)
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
        end=answer[9],
        head=answer[10],
        claims=int(answer[11]),
    )


def _answer(found: Any) -> Answer:
    if isinstance(found, RedisUnavailable):
        raise ChannelUnavailable(str(found))
    if isinstance(found, Exception):
        # A key of this one generation is not what it must be. Its owner gives up; the others of the batch go on.
        log.error("channel_script_failed", error=str(found))
        return Answer(Verdict.GONE, FrameId(0, 0), Stop.NO, 0)
    verdict, last, stop, listeners = found
    return Answer(_VERDICTS[verdict], FrameId.of(last), _STOPS[stop], listeners)


_VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}
_STOPS = {stop.value.encode(): stop for stop in Stop}
_KINDS = {kind.value.encode(): kind for kind in FrameKind}


def _unavailable(error: Exception) -> Exception:
    found = as_unavailable(error)
    return ChannelUnavailable(str(found)) if found else error


# Ids are small numbers that all generations share, and each is read twice: as a message's own, then as the next one's previous.
_frame_id = lru_cache(maxsize=65_536)(FrameId.of)


def read_message(raw: bytes) -> Message:
    """Return what one published message says: ``<kind> <previous id> <id>\\n<data>``; the kind ``beat`` has no frame."""
    # Hot path: once per message.
    header, _, data = raw.partition(b"\n")
    kind, previous, frame_id = header.split(b" ")
    if kind == b"beat":
        return Message(_frame_id(previous), None)
    return _new(Message, (_frame_id(previous), _new(Frame, (_frame_id(frame_id), _KINDS[kind], data))))


class RedisFeed:
    """One pub/sub connection for all the generations that a process listens to."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._sinks: dict[bytes, Callable[[Message], None]] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._resubscribed: list[Callable[[], None]] = []
        self._pipe: Pipe | None = None
        self._ponged: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.is_connected = False

    async def start(self) -> None:
        self._task = in_background(self._run(), "feed")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_resubscribed(self, callback: Callable[[], None]) -> None:
        self._resubscribed.append(callback)

    async def subscribe(self, generation_id: str, sink: Callable[[Message], None]) -> None:
        channel = keys.live(generation_id).encode()
        self._sinks[channel] = sink
        confirmed = self._waiting[channel] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(2):
                # Where the connection is down, the reconnection subscribes to all sinks and confirms this one too.
                if self.is_connected:
                    self._send("SUBSCRIBE", channel)
                await confirmed
        except TimeoutError as error:
            await self.unsubscribe(generation_id)
            raise ChannelUnavailable("no confirmation of a subscription") from error
        except asyncio.CancelledError:
            await self.unsubscribe(generation_id)
            raise
        finally:
            self._waiting.pop(channel, None)

    async def unsubscribe(self, generation_id: str) -> None:
        channel = keys.live(generation_id).encode()
        if self._sinks.pop(channel, None) and self.is_connected:
            self._send("UNSUBSCRIBE", channel)

    @property
    def subscriptions(self) -> int:
        return len(self._sinks)

    def _send(self, *command: Any) -> None:
        if self._pipe:
            self._pipe.send(hiredis.pack_command(command))

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if self.is_connected:
                    log.warning("feed_lost", error=f"{type(error).__name__}: {error}")
            finally:
                self.is_connected = False
            await asyncio.sleep(0.2)

    async def _listen(self) -> None:
        """Be connected, until the connection is lost."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(3):
                self._pipe = await self._redis.open_pipe(self._take, lambda: _settle(lost))
                await self._resubscribe()
            self.is_connected = True
            for callback in self._resubscribed:
                callback()
            while not lost.done():
                self._send("PING")
                await asyncio.wait([lost], timeout=FEED_PING_S)
                if self._pipe and asyncio.get_running_loop().time() - self._pipe.heard_at > FEED_SILENCE_MAX_S:
                    self._pipe.close()
            raise RedisConnectionError("the connection was lost")
        finally:
            if self._pipe:
                self._pipe.close()
                self._pipe = None

    async def _resubscribe(self) -> None:
        """Subscribe to all sinks; returns once the server has, so that a log read from now on leaves no gap."""
        with contextlib.suppress(ResponseError):  # Not every hosted Redis lets us; `sluice doctor` tells.
            await self._redis.config_set("client-output-buffer-limit", OUTPUT_LIMIT)  # Anew after each of its restarts.
        asked: set[bytes] = set()
        while new := self._sinks.keys() - asked:  # More may come while we wait.
            asked |= new
            self._ponged = asyncio.get_running_loop().create_future()
            self._send("SUBSCRIBE", *new)
            self._send("PING")
            await self._ponged

    def _take(self, answer: Any) -> None:
        # Hot path: once per message.
        if not isinstance(answer, list):
            self._pong()  # Before the first subscription a PING is answered with a string.
            return
        kind, channel = answer[0], answer[1]
        if kind == b"message":
            sink = self._sinks.get(channel)
            if sink:
                sink(read_message(answer[2]))
        elif kind == b"subscribe":
            waiting = self._waiting.get(channel)
            if waiting:
                _settle(waiting)
        elif kind == b"pong":
            self._pong()

    def _pong(self) -> None:
        if self._ponged:
            _settle(self._ponged)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
