"""Was what a client saw what it must see? The judge over one client's history, and over its generation's log."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.client import History, Outcome
from chaos.faults import Happened
from chaos.plan import REDIS, Manner
from cli.demo_provider.script import answer
from common import keys

# Errors that a fault may end a stream or a request with, and what must have been broken for it: "" is anything.
EXPLICIT = {
    "worker_lost": ("worker", REDIS),
    "poison_job": ("worker", REDIS),
    "store_unavailable": ("api", REDIS),
    "gateway_unavailable": ("api",),
    "gateway_restarting": ("api",),
    "upstream_unavailable": ("worker",),
    "upstream_timeout": ("worker",),
    "overloaded": ("worker", REDIS),
    "deadline_exceeded": ("",),
    "queue_full": ("",),
    # Types, of dialects that have no codes, or a list of their own.
    "api_error": ("",),
    "overloaded_error": ("",),
    "timeout_error": ("",),
    "server_error": ("",),
}
BLAME_S = 20.0  # A fault that ended this long before a request is no reason any more.
CANCELLED = "cancelled"
CUT_MARGIN_S = 1.5  # Between a fault and the moment when a client notices it.
END_S = 60.0  # By then a generation whose client is gone has ended, whatever befell it.
LOOK_S = 0.3

_answer = lru_cache(maxsize=256)(answer)


def judge(history: History, happened: Sequence[Happened]) -> list[str]:
    """Return what is wrong with what one client saw."""
    ask, outcome, wrong = history.ask, history.outcome, list(history.problems)
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
    elif outcome in EXPLICIT:
        around = [h.fault.target for h in happened if h.overlaps(history.began_at - BLAME_S, history.ended_at)]
        if not any(target.startswith(EXPLICIT[outcome]) for target in around):
            wrong.append(f"ended by {outcome!r}, and nothing of ours did that")
    elif outcome not in (Outcome.COMPLETED, Outcome.LEFT) and (outcome != CANCELLED or ask.manner is not Manner.STOPPING):
        wrong.append(f"ended by {outcome!r}")
    return wrong


def _difference(text: str, expected: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected)))
    around = f"{text[max(0, at - 30) : at + 30]!r} instead of {expected[max(0, at - 30) : at + 30]!r}"
    return f"text of {len(text)} characters differs from the {len(expected)} expected at {at}: {around}"


class Auditor:
    """Compares each generation's log with what its client saw, soon after the client is done and before the log expires."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url, socket_timeout=5)
        self.audited = 0

    async def close(self) -> None:
        await self._redis.aclose()

    async def audit(self, history: History) -> list[str]:
        """Return what is wrong with a client's generation, once that has ended."""
        if not history.generation_id:
            return []
        try:
            async with asyncio.timeout(END_S):
                entries = await self._ended_log(history.generation_id)
        except TimeoutError:
            return [f"the generation has no end {END_S:.0f} s after its client's"]
        self.audited += 1
        return check_log(history, entries)

    async def _ended_log(self, generation_id: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        while True:
            try:
                if await self._redis.hget(keys.state(generation_id), "ended") == b"1":  # type: ignore[misc]
                    entries: list[tuple[bytes, dict[bytes, bytes]]] = await self._redis.xrange(keys.log(generation_id))
                    return entries
            except (RedisError, OSError):
                pass  # It is one of the faults.
            await asyncio.sleep(LOOK_S)


def check_log(history: History, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[str]:
    """Return where a client's events are not those of its generation's log, and where that is none."""
    wrong: list[str] = []
    kinds = [fields[b"k"].decode() for _, fields in entries]
    if kinds.count("end") != 1 or kinds[-1] != "end":
        return [f"a log of {kinds}"]
    data = [(entry_id.decode(), fields[b"d"]) for entry_id, fields in entries if fields[b"k"] == b"data"]
    end = orjson.loads(entries[-1][1][b"d"])
    if history.outcome == Outcome.COMPLETED and (end["error"] or not end["usage"]):
        wrong.append(f"completed for the client, but the log's end says {end}")
    if history.stream is None:
        if history.outcome == Outcome.COMPLETED and history.body != b"".join(piece for _, piece in data):
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
