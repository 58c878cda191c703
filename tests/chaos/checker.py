"""Was what a client saw what it must see? The judge over one client's history, and over its generation's log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.redis import keyspace
from demo_provider.script import answer
from tests.chaos.client import History, Outcome
from tests.chaos.faults import Happened
from tests.chaos.plan import APIS, CLIENTS_LINK, REDIS, Manner

POISON = "poison_job"
# Errors that a fault may end a stream or a request with, and what must have been broken for it: "" is anything.
EXPLICIT = {
    "worker_lost": ("worker", REDIS),
    POISON: ("worker", REDIS),
    "store_unavailable": ("worker", "api", REDIS),
    "gateway_unavailable": ("api",),
    "gateway_restarting": ("api",),
    "upstream_unavailable": ("worker", "target"),
    "upstream_timeout": ("worker", "target"),
    "overloaded": ("worker", "api", REDIS),  # An API that many come back to refuses what is new.
    "deadline_exceeded": ("",),
    # The upstream's own, where its next attempt would come later than its client's status may.
    "rate_limit_exceeded": ("",),
    "rate_limit_error": ("",),
    "upstream_rate_limited": ("",),  # The same, of an upstream that gave no code.
    "queue_full": ("",),
    # Types, of dialects that have no codes, or a list of their own.
    "api_error": ("",),
    "overloaded_error": ("",),
    "timeout_error": ("",),
    "server_error": ("",),
}
# Errors for which Redis must have lost what it had acknowledged, as it may in a failover.
LOST_WRITES = {
    "frames_lost",
    "log_lost",
    "generation_not_found",
    "generation_expired",
    "invalid_cursor",
    "not_found_error",  # The same as types.
    "invalid_request_error",
}
# What a reader gets who comes back after the end; 200 where the log's end is not there yet, though the last event is.
AFTER_END = {None, 200, 204, 503}
AFTER_LOST_WRITES = {400, 404, 410, 500}  # His cursor is ahead of what is left of the log, or nothing is.
BLAME_S = 20.0  # A fault that ended this long before a request is no reason any more.
CANCELLED = "cancelled"
CUT_MARGIN_S = 1.5  # Between a fault and the moment when a client notices it.
END_S = 130.0  # By then a generation whose client is gone has ended, whatever befell it.
REFUSED_S = 2.0  # After that an API knows that Redis is gone,
REFUSAL_S = 0.25  # and says so within this time.
REFUSAL_MAX_S = 2.0  # What no busy machine explains.
CHECK_INTERVAL_S = 0.3
ASK_AFTER_S = 20.0
DIFFERS = "differs"  # Tokens were lost, came twice, or in another order.

_answer = lru_cache(maxsize=256)(answer)


def lost_writes(began_at: float, ended_at: float, happened: Sequence[Happened]) -> bool:
    """Whether Redis may have lost what it acknowledged in this time."""
    return any(h.loses_writes and h.overlaps(began_at, ended_at) for h in happened)


def judge(history: History, happened: Sequence[Happened]) -> list[str]:
    """Return what is wrong with what one client saw."""
    ask, outcome, wrong = history.ask, history.outcome, list(history.problems)
    may_have_lost = lost_writes(history.began_at, history.ended_at, happened)
    expected = _answer(ask.tokens)
    if outcome == Outcome.COMPLETED:
        if history.text != expected:
            wrong.append(_difference(history.text, expected))
    elif not expected.startswith(history.text):
        wrong.append(_difference(history.text, expected))
    if outcome in (Outcome.SILENT, Outcome.HANG, Outcome.ODD):
        wrong.append(outcome)
    elif outcome in (Outcome.CUT, Outcome.CUT_BEFORE):
        if not any(h.cuts_clients and h.overlaps(at - CUT_MARGIN_S, at) for at in history.cuts[-1:] for h in happened):
            wrong.append("cut, and nothing of ours did that")
    elif outcome in LOST_WRITES and may_have_lost:
        pass
    elif outcome in EXPLICIT:
        around = [h.fault.target for h in happened if h.overlaps(history.began_at - BLAME_S, history.ended_at)]
        if not any(target.startswith(EXPLICIT[outcome]) for target in around):
            wrong.append(f"ended by {outcome!r}, and nothing of ours did that")
    elif outcome not in (Outcome.COMPLETED, Outcome.LEFT) and (outcome != CANCELLED or ask.manner is not Manner.STOPPING):
        wrong.append(f"ended by {outcome!r}")
    if not may_have_lost:  # Else an error may say so, to one who has all of it already.
        wrong += history.problems_after_end
    after_end = AFTER_END | AFTER_LOST_WRITES if may_have_lost else AFTER_END
    if history.status_after_end not in after_end:
        wrong.append(f"{history.status_after_end} instead of 204 after the end")
    for asked_at, took_s in history.refusals:
        if took_s > REFUSAL_MAX_S and is_plain_refusal(asked_at, took_s, happened):
            wrong.append(f"waited {took_s:.1f} s to hear that Redis is away")
    return wrong


def is_plain_refusal(asked_at: float, took_s: float, happened: Sequence[Happened]) -> bool:
    """Whether Redis was away all the time that an answer took and had been for long enough, and nothing else was."""
    around = [h for h in happened if h.overlaps(asked_at - 1.0, asked_at + took_s)]
    away = [h for h in around if h.takes_redis]
    others = [h for h in around if h.fault.target.startswith((CLIENTS_LINK, *APIS))]
    is_away = any(h.began_at + REFUSED_S <= asked_at and asked_at + took_s <= h.ended_at for h in away)
    return is_away and not others


def _difference(text: str, expected: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected)))
    around = f"{text[max(0, at - 30) : at + 30]!r} instead of {expected[max(0, at - 30) : at + 30]!r}"
    return f"text of {len(text)} characters {DIFFERS} from the {len(expected)} expected at {at}: {around}"


@dataclass(frozen=True, slots=True)
class End:
    """How a generation's log says that it ended. ``was_claimed``: a worker has had it."""

    error: dict[str, Any] | None
    usage: dict[str, int] | None
    by_worker: bool
    was_claimed: bool

    @classmethod
    def of(cls, entry: tuple[bytes, dict[bytes, bytes]]) -> "End":
        entry_id, fields = entry
        told = orjson.loads(fields[b"d"])
        # Whoever ends a log that no worker ends takes the next epoch, and tells no more than the error.
        return cls(told["error"], told.get("usage"), "duration_ms" in told, entry_id != b"1-0")


class Auditor:
    """Compares each generation's log with what its client saw, soon after the client is done and before the log expires.

    ``ends``: those of the logs, by generation. ``forgotten``: generations that Redis lost with a master. One whose job it
    lost, or whose end, nobody ends until somebody asks about it: ``ask`` does.
    """

    def __init__(self, redis: Redis, happened: Sequence[Happened], ask: Callable[[str], Awaitable[None]]) -> None:
        self._redis = redis
        self._happened = happened
        self._ask = ask
        self.audited = 0
        self.ends: dict[str, End] = {}
        self.forgotten: set[str] = set()

    async def close(self) -> None:
        await self._redis.aclose()

    async def audit(self, history: History) -> list[str]:
        """Return what is wrong with a client's generation, once that has ended."""
        if not history.generation_id or (history.cache == "hit" and not history.ask.policy):
            return []  # Nobody can come back to the second, so it has no log.
        try:
            async with asyncio.timeout(END_S):
                entries = await self._ended_log(history)
        except TimeoutError:
            return [f"the generation has no end {END_S:.0f} s after its client's"]
        if not entries:
            self.forgotten.add(history.generation_id)
            return []
        if entries[-1][1][b"k"] == b"end":
            self.ends[history.generation_id] = End.of(entries[-1])
        if self._may_have_lost(history):
            return []  # What a client had, and a failover took from the log, no log can tell.
        self.audited += 1
        return check_log(history, entries)

    def _may_have_lost(self, history: History) -> bool:
        return lost_writes(history.began_at, time.monotonic(), self._happened)

    async def _ended_log(self, history: History) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Return the log once it has ended; nothing of one that Redis has lost."""
        log_id = history.generation_id
        ask_at = time.monotonic() + ASK_AFTER_S
        while True:
            try:
                state = await self._redis.hmget(keyspace.state(log_id), "pos", "ended", "source")  # type: ignore[misc]
                pos, ended, source = state
                if source:  # It reads a log that it shares.
                    log_id = source.decode()
                    continue
                if ended == b"1":
                    entries: list[tuple[bytes, dict[bytes, bytes]]] = await self._redis.xrange(keyspace.log(log_id))
                    return entries
                if pos is None and self._may_have_lost(history):
                    return []
            except (RedisError, OSError):
                pass  # It is one of the faults.
            if time.monotonic() > ask_at and self._may_have_lost(history):
                ask_at = time.monotonic() + ASK_AFTER_S
                await self._ask(history.generation_id)
            await asyncio.sleep(CHECK_INTERVAL_S)


def check_log(history: History, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[str]:
    """Return where a client's events are not those of its generation's log, and where that is none."""
    wrong: list[str] = []
    kinds = [fields[b"k"].decode() for _, fields in entries]
    if kinds.count("end") != 1 or kinds[-1] != "end":
        return [f"a log of {kinds}"]
    data = [(entry_id.decode(), fields[b"d"]) for entry_id, fields in entries if fields[b"k"] == b"data"]
    end = orjson.loads(entries[-1][1][b"d"])
    # A log whose third worker dies between the answer's last byte and its end is not read again: reading may be what kills.
    is_poison = end["error"] is not None and end["error"].get("code") == POISON
    if history.outcome == Outcome.COMPLETED and (end["error"] or not end["usage"]) and not is_poison:
        wrong.append(f"completed for the client, but the log's end says {end}")
    if history.stream is None:
        # A body is begun anew by each claim; what one wrote that was lost behind it stands in the log still.
        begun = len(kinds) - 1 - kinds[::-1].index("fence") if "fence" in kinds else 0
        body = b"".join(fields[b"d"] for _, fields in entries[begun:] if fields[b"k"] == b"data")
        if history.outcome == Outcome.COMPLETED and history.body != body:
            wrong.append("the body is not the log's")
        return wrong
    logged = [
        (f"{frame_id}.{k}", block + b"\n\n")
        for frame_id, piece in data
        for k, block in enumerate(piece.removesuffix(b"\n\n").split(b"\n\n"), start=1)
    ]
    seen = list(history.stream.events)
    has_error = history.outcome not in (Outcome.COMPLETED, Outcome.LEFT, Outcome.CUT, Outcome.SILENT, Outcome.HANG)
    if has_error and seen:  # The error event is written by the API, from the log's end.
        error_id, _ = seen.pop()
        if error_id and error_id != f"{entries[-1][0].decode()}.1":
            wrong.append(f"the error has the id {error_id}, the log ends with {entries[-1][0].decode()}")
    for place, ((event_id, block), (logged_id, logged_block)) in enumerate(zip(seen, logged, strict=False)):
        if block != logged_block or (event_id and event_id != logged_id):
            wrong.append(f"event {place} is {event_id} {block[:120]!r}, the log has {logged_id} {logged_block[:120]!r}")
            break
    if len(seen) > len(logged) or (history.outcome == Outcome.COMPLETED and len(seen) != len(logged)):
        wrong.append(f"{len(seen)} events, the log has {len(logged)}")
    return wrong
