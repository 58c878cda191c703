"""Does Redis do for us what the work needs?

The pulse knows whether Redis answers; a Redis that answers may be full, read-only, without a command, or not let us use one.
So the probe does what the work does, on a new connection each time: it logs in, writes, runs a script with every command that
Sluice sends, waits on a list, runs a transaction, subscribes, publishes and waits for the message. Each process probes every
``PROBE_S``, and `sluice doctor` once. Nothing of it costs a request anything.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from common.canonical.errors import StoreRefuses
from common.process.loop_lag import able_timeout
from common.process.process import supervised
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import REDIS_ERRORS, is_refusal, words_of
from common.redis.pipe import Pipe
from common.redis.pulse import Pulse

log = structlog.get_logger()

PROBE_S = 2.0
UNANSWERED_MAX = 3  # A busy machine may take its time once.
BLOCK_S = "0.05"  # How long BLPOP waits where the script could not fill its list.
LISTED_MAX = 8  # Commands named of those that are refused in the same words.

_SOURCE = (Path(__file__).parent / "try_all.lua").read_text()
_SHA = hashlib.sha1(_SOURCE.encode()).hexdigest()  # noqa: S324 - Redis names scripts by SHA-1.
FIXED_KEYS = (
    *(
        keyspace.ENQUEUED,
        keyspace.DELAYED,
        keyspace.RUNNING,
        keyspace.BELL,
        keyspace.BELL_BACKGROUND,
        keyspace.ENDED,
        keyspace.WORKERS,
    ),
    *(keyspace.BOOKKEEPER, keyspace.SPENT_LOADED),
    *(keyspace.UNREADABLE, keyspace.PAUSED, keyspace.KEYS_VERSION, keyspace.KEY_ORIGINS),
)

# What no request needs on its way to its answer: the bell, the ledger, lists and pages.
_BESIDE_THE_WAY = frozenset(
    ["BLPOP", "SCAN", "LRANGE", "LTRIM", "MGET", "HVALS", "ZREVRANK", "ZREVRANGE", "UNLINK", "PSETEX", "PERSIST", "PEXPIREAT"]
)


class Harm(StrEnum):
    """What becomes of the work where Redis refuses something."""

    NONE = "none"
    SOME = "some"  # It goes on, slower, or for as long as the connections last that there are.
    ALL = "all"


class Problem(NamedTuple):
    """What Redis refuses, in its own words; ``what`` names the commands or keys."""

    words: str
    what: str
    harm: Harm = Harm.ALL

    def __str__(self) -> str:
        return f"{self.words} ({self.what})"


class Probe:
    """One process' probe: what it finds is logged when it changes."""

    def __init__(self, redis: Client, pulse: Pulse) -> None:
        self._redis = redis
        self._pulse = pulse
        self._task: asyncio.Task[None] | None = None
        self._unanswered = 0
        self._found: tuple[Problem, ...] = ()
        self.refusal: StoreRefuses | None = None  # Why no request can be worked on, where it is so.

    def start(self) -> None:
        self._task = supervised(self._run, "probe")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def problems(self) -> list[str]:
        """Return what is wrong with Redis, for those who operate it; empty where nothing is."""
        if not self._pulse.is_up:
            return [self._pulse.problem]
        return [str(problem) for problem in self._found if problem.harm is not Harm.NONE]

    async def _run(self) -> None:
        while True:
            if self._pulse.is_up:
                self.note(await try_all(self._redis))
            await asyncio.sleep(PROBE_S)

    def note(self, found: Sequence[Problem] | None) -> None:
        if not self._pulse.is_up:
            return  # The pulse has said so; what was lost on the way tells nothing of a Redis that is there.
        if found is None:
            self._unanswered += 1
            found = [_UNANSWERED] if self._unanswered >= UNANSWERED_MAX else self._found
        else:
            self._unanswered = 0
        before, self._found = self._found, tuple(found)
        self.refusal = next((StoreRefuses(each.words) for each in found if each.harm is Harm.ALL), None)
        if before == self._found:
            return
        if found:
            write = log.info if all(each.harm is Harm.NONE for each in found) else log.warning
            write("redis_refuses", problems=[str(problem) for problem in found])
        else:
            log.info("redis_serves")


_UNANSWERED = Problem(
    "it answers, but not all that Sluice asks, within two seconds", f"{UNANSWERED_MAX} times in a row", Harm.SOME
)


async def try_all(redis: Client) -> list[Problem] | None:
    """Return what Redis refuses; None where the connection was lost or no answer came, which says nothing of the reason."""
    talk: _Talk | None = None
    try:
        async with able_timeout(COMMAND_TIMEOUT_S):
            talk = await _Talk.begin(redis)
            return _together([*await _try_commands(talk), *await _try_channel(talk, redis)])
    except REDIS_ERRORS as error:
        return [Problem(words_of(error), "login", Harm.SOME)] if is_refusal(error) else None
    finally:
        if talk:
            talk.end()


async def _try_commands(talk: "_Talk") -> list[Problem]:
    name = secrets.token_hex(4)
    own = f"{keyspace.QUEUE_PREFIX}probe:{name}:"
    touched = [*FIXED_KEYS, *_families(f"gen_probe{name}")]
    commands: list[tuple[Any, ...]] = [
        ("PING",),
        ("SCRIPT", "LOAD", _SOURCE),
        ("EVALSHA", _SHA, 0, own, keyspace.live(f"gen_probe{name}"), *touched),
        ("RPUSH", own + "bell", 1),
        ("PEXPIRE", own + "bell", 10_000),
        ("BLPOP", own + "bell", BLOCK_S),
        ("MULTI",),
        ("GET", own + "text"),
        ("EXEC",),
        ("DEL", own + "bell"),
    ]
    answers = await talk.ask(*commands)
    found = [
        Problem(words_of(answer), _name(command), _harm(command[0]))
        for command, answer in zip(commands, answers, strict=True)
        if isinstance(answer, Exception) and not isinstance(answer, NoScriptError)  # It could not be loaded then.
    ]
    refused = answers[2] if isinstance(answers[2], list) else []
    for tried, words in zip(refused[::2], refused[1::2], strict=True):
        found.append(_refused(tried.decode(), words.decode(errors="replace"), own, name))
    # A transaction fails for what was refused in it.
    return [each for each in found if not each.words.startswith("EXECABORT")] or found


def _harm(command: str) -> Harm:
    return Harm.NONE if command == "INFO" else Harm.SOME if command in _BESIDE_THE_WAY else Harm.ALL


def _name(command: tuple[Any, ...]) -> str:
    return "SCRIPT LOAD" if command[0] == "SCRIPT" else command[0]


def _refused(tried: str, words: str, own: str, name: str) -> Problem:
    """One of the script's: the command, or the key where that was not the probe's own and may be what is refused."""
    command, _, key = tried.partition(" ")
    what = key.replace(f"probe{name}", "…") if command == "EXISTS" and not key.startswith(own) else command
    return Problem(words_of(RedisError(words)), what, _harm(command))


async def _try_channel(talk: "_Talk", redis: Client) -> list[Problem]:
    """Subscribe, publish and receive, as an API and a worker do together."""
    channel = keyspace.live(f"gen_probe{secrets.token_hex(4)}")
    (subscribed,) = await talk.ask(("SUBSCRIBE", channel))
    if isinstance(subscribed, Exception):
        return [Problem(words_of(subscribed), "SUBSCRIBE")]
    (published,) = await redis.exchanges.run([_packed(("PUBLISH", channel, "probe"))])
    if isinstance(published, Exception):
        return [Problem(words_of(published), "PUBLISH")]
    await talk.answer()
    (left,) = await talk.ask(("UNSUBSCRIBE", channel))
    return [Problem(words_of(left), "UNSUBSCRIBE")] if isinstance(left, Exception) else []


def _families(generation_id: str) -> list[str]:
    """One key of each family that is named after something, such as a generation; none of them is there."""
    of_generation = (
        keyspace.state,
        keyspace.log,
        keyspace.viewers,
        keyspace.request,
        keyspace.response_request,
        keyspace.response,
    )
    names = [key(generation_id) for key in (*of_generation, keyspace.tombstone, keyspace.record)]
    queued = ("job:", "waiting:interactive:", "rotation:", "recent:", "once:", "health:")
    names += [f"{keyspace.QUEUE_PREFIX}{family}{generation_id}" for family in queued]
    scoped = ("key", generation_id)
    return [
        *names,
        keyspace.limit(*scoped, "requests"),
        keyspace.slots(*scoped),
        keyspace.spent(*scoped, "d"),
        keyspace.managed_key(generation_id),
    ]


def _together(found: list[Problem]) -> list[Problem]:
    """One problem for each wording, naming what it holds for."""
    groups: dict[tuple[str, Harm], list[str]] = {}
    for words, what, harm in found:
        groups.setdefault((words, harm), []).append(what)
    return [Problem(words, _some(whats), harm) for (words, harm), whats in groups.items()]


def _some(whats: list[str]) -> str:
    more = len(whats) - LISTED_MAX
    return ", ".join(whats[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")


def _packed(command: tuple[Any, ...]) -> bytes:
    return bytes(hiredis.pack_command(command))


class _Talk:
    """One connection, its answers in turn. Every method may raise what a lost connection is."""

    _pipe: Pipe

    def __init__(self) -> None:
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    @classmethod
    async def begin(cls, redis: Client) -> "_Talk":
        talk = cls()
        lost = RedisConnectionError("the connection was lost")
        talk._pipe = await redis.open_pipe(talk._answers.put_nowait, lambda: talk._answers.put_nowait(lost))
        talk._pipe.leaves = False  # A replica's words are what is to be reported.
        return talk

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        self._pipe.send(b"".join(map(_packed, commands)))
        return [await self.answer() for _ in commands]

    async def answer(self) -> Any:
        found = await self._answers.get()
        if isinstance(found, RedisConnectionError):
            raise found
        return found

    def end(self) -> None:
        self._pipe.close()
